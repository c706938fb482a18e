//! One client's connection: requests in order, one at a time; then an answer, a stream, or raw bytes.
//!
//! The owner polls the descriptor, calls [`Connection::fill`] and [`Connection::flush`], and takes [`Event`]s. Nothing
//! here blocks, and every buffer has a bound: the input's is [`MAX_INPUT`], the collected body's is the caller's, the
//! output's is watched by the owner through [`Connection::pending`].

use super::body::Decoder;
use super::head::{self, Head};
use super::response::{self, CommonHeaders, Response};
use super::{Framing, Refusal};
use crate::poll::Interest;
use crate::sys;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Bytes of input kept while they can't be served yet.
pub const MAX_INPUT: usize = 64 * 1024 + 4096;
/// Bytes read per turn of the loop.
const TURN: usize = 64 * 1024;
const HEAD_DEADLINE_MS: u64 = 10_000;
const IDLE_DEADLINE_MS: u64 = 300_000;
const BODY_STALL_MS: u64 = 60_000;
const LINGER_MS: u64 = 2_000;

/// What a connection tells its owner.
#[derive(Debug)]
pub enum Event {
    /// A head is complete. The owner answers by `collect_body`, `into_parts` (a worker takes over) or `refuse`.
    Head(Head),
    /// Head and whole body, after `collect_body`.
    Request(Head, Vec<u8>),
    /// Raw bytes, after `hijack`.
    Input(Vec<u8>),
    /// The client sends no more: end of a raw stream's input, or a client that left while its answer was being made.
    InputEnd,
    /// The bytes were refused; the refusal must be answered with [`Connection::refuse`].
    Refused(Refusal),
}

/// What the answer in progress has to know of its request.
#[derive(Clone, Copy, Debug)]
struct Serving {
    minor: u8,
    keep_alive: bool,
    head_only: bool,
}

enum State {
    /// Waiting for a head, or in the middle of one.
    Head,
    /// A head was handed out; the owner decides.
    Deciding(Serving),
    Body {
        head: Box<Head>,
        decoder: Decoder,
        body: Vec<u8>,
        max: usize,
    },
    /// The answer is being made.
    Serving(Serving),
    /// A chunked (or, for HTTP/1.0, open-ended) answer is being written.
    Streaming(Serving),
    Raw,
    /// Everything is said: flush, then drop what still comes in until the client closes.
    Closing {
        shut: bool,
        left: usize,
    },
}

/// A connection and its buffers.
pub struct Connection {
    socket: OwnedFd,
    common: Rc<CommonHeaders>,
    state: State,
    input: Vec<u8>,
    input_at: usize,
    output: Vec<u8>,
    output_at: usize,
    input_ended: bool,
    end_told: bool,
    failed: bool,
    paused: bool,
    deadline_ms: Option<u64>,
}

impl Connection {
    pub fn new(socket: OwnedFd, common: Rc<CommonHeaders>, now_ms: u64) -> Connection {
        Connection {
            socket,
            common,
            state: State::Head,
            input: Vec::new(),
            input_at: 0,
            output: Vec::new(),
            output_at: 0,
            input_ended: false,
            end_told: false,
            failed: false,
            paused: false,
            deadline_ms: Some(now_ms + IDLE_DEADLINE_MS),
        }
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When this connection must have made progress; `None` while it waits for us.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.deadline_ms
    }

    /// Nothing more can be read or written: drop it.
    pub fn is_finished(&self) -> bool {
        self.failed
            || match &self.state {
                State::Closing { shut, left } => *shut && (self.input_ended || *left == 0),
                State::Head => self.input_ended && self.pending() == 0,
                _ => false,
            }
    }

    /// Whether an answer or a stream is under way.
    pub fn is_busy(&self) -> bool {
        !matches!(self.state, State::Head | State::Closing { .. })
    }

    pub fn is_streaming(&self) -> bool {
        matches!(self.state, State::Streaming(_))
    }

    pub fn is_raw(&self) -> bool {
        matches!(self.state, State::Raw)
    }

    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Stops or resumes reading raw input: back-pressure from where it goes.
    pub fn pause_input(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub fn interest(&self) -> Interest {
        let read = !self.input_ended
            && match self.state {
                State::Raw => !self.paused,
                _ => self.input.len() - self.input_at < MAX_INPUT,
            };
        Interest { read, write: self.pending() > 0 }
    }

    /// Bytes of output that the client has not taken yet.
    pub fn pending(&self) -> usize {
        self.output.len() - self.output_at
    }

    /// Reads what there is, at most one turn's worth.
    pub fn fill(&mut self, scratch: &mut [u8]) {
        if self.input_ended || self.failed {
            return;
        }
        let size = scratch.len().min(TURN);
        match sys::fd::read(self.socket.as_fd(), &mut scratch[..size]) {
            Ok(0) => self.input_ended = true,
            Ok(n) => match &mut self.state {
                State::Closing { left, .. } => *left = left.saturating_sub(n),
                _ => {
                    if self.input_at > 0 && self.input_at == self.input.len() {
                        self.input.clear();
                        self.input_at = 0;
                    }
                    self.input.extend_from_slice(&scratch[..n]);
                }
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.failed = true,
        }
    }

    /// Writes what the client takes.
    pub fn flush(&mut self) {
        while !self.failed && self.pending() > 0 {
            match sys::socket::send(self.socket.as_fd(), &self.output[self.output_at..], 0) {
                Ok(n) => self.output_at += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.failed = true,
            }
        }
        self.output.clear();
        self.output_at = 0;
        if self.output.capacity() > 256 * 1024 {
            self.output.shrink_to(64 * 1024);
        }
        if let State::Closing { shut: shut @ false, .. } = &mut self.state {
            *shut = true;
            let _ = sys::socket::shutdown(self.socket.as_fd(), libc::SHUT_WR);
        }
    }

    /// The next event in what has been read, if any.
    pub fn next_event(&mut self, now_ms: u64) -> Option<Event> {
        if self.failed {
            return None;
        }
        loop {
            match &mut self.state {
                State::Head => {
                    let unread = &self.input[self.input_at..];
                    if unread.is_empty() {
                        self.release_input();
                        return None;
                    }
                    match head::parse(unread) {
                        Ok(None) => {
                            if self.deadline_ms.is_none_or(|at| at > now_ms + HEAD_DEADLINE_MS) {
                                self.deadline_ms = Some(now_ms + HEAD_DEADLINE_MS);
                            }
                            return None;
                        }
                        Ok(Some((head, length))) => {
                            self.input_at += length;
                            self.deadline_ms = None;
                            self.state = State::Deciding(Serving {
                                minor: head.minor,
                                keep_alive: head.keep_alive,
                                head_only: head.method == tiny_http::Method::Head,
                            });
                            return Some(Event::Head(head));
                        }
                        Err(refusal) => {
                            self.deadline_ms = None;
                            self.state = State::Deciding(Serving { minor: 1, keep_alive: false, head_only: false });
                            return Some(Event::Refused(refusal));
                        }
                    }
                }
                State::Body { head, decoder, body, max } => {
                    if decoder.is_done() {
                        let (head, body) = (std::mem::replace(head, Box::new(placeholder())), std::mem::take(body));
                        self.state = State::Serving(serving(&head));
                        self.deadline_ms = None;
                        return Some(Event::Request(*head, body));
                    }
                    let unread = &self.input[self.input_at..];
                    if unread.is_empty() {
                        if self.input_ended {
                            self.failed = true; // a body that ends early is never executed
                        }
                        self.release_input();
                        return None;
                    }
                    let result = decoder.step(unread).and_then(|step| {
                        if body.len() + step.data.len() > *max {
                            return Err(Refusal::new(413, "http: request body too large"));
                        }
                        body.extend_from_slice(&unread[step.data]);
                        Ok(step.consumed)
                    });
                    match result {
                        Ok(consumed) => {
                            self.input_at += consumed;
                            self.deadline_ms = Some(now_ms + BODY_STALL_MS);
                        }
                        Err(refusal) => {
                            self.deadline_ms = None;
                            self.state = State::Deciding(Serving { minor: 1, keep_alive: false, head_only: false });
                            return Some(Event::Refused(refusal));
                        }
                    }
                }
                State::Raw => {
                    if self.input_at < self.input.len() {
                        let data = self.input.split_off(self.input_at);
                        self.release_input();
                        return Some(Event::Input(data));
                    }
                    return self.tell_end();
                }
                State::Serving(_) | State::Streaming(_) => return self.tell_end(),
                State::Deciding(_) | State::Closing { .. } => return None,
            }
        }
    }

    fn tell_end(&mut self) -> Option<Event> {
        (self.input_ended && !std::mem::replace(&mut self.end_told, true)).then_some(Event::InputEnd)
    }

    fn release_input(&mut self) {
        self.input = Vec::new();
        self.input_at = 0;
    }

    /// After [`Event::Head`]: collect the body, at most `max` bytes, and then tell [`Event::Request`].
    pub fn collect_body(&mut self, head: Head, max: usize, now_ms: u64) {
        if let Framing::Length(n) = head.framing
            && n > max as u64
        {
            self.state = State::Deciding(serving(&head));
            self.refuse_with(&Refusal::new(413, "http: request body too large"), now_ms);
            return;
        }
        if head.expect_continue && head.framing != Framing::None && self.input_at == self.input.len() {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.flush();
        }
        self.deadline_ms = Some(now_ms + BODY_STALL_MS);
        self.state = State::Body { decoder: Decoder::new(head.framing), head: Box::new(head), body: Vec::new(), max };
    }

    /// Answers whole. Does nothing when no request is being served.
    pub fn respond(&mut self, response: &Response, now_ms: u64) {
        let (State::Serving(serving) | State::Deciding(serving)) = self.state else { return };
        let common = self.common.clone();
        response.write(&mut self.output, &common, serving.minor, serving.head_only, serving.keep_alive);
        self.next_request(serving, now_ms);
        self.flush();
    }

    /// Answers and closes: for refusals, and for answers given before the body was read.
    pub fn respond_and_close(&mut self, response: &Response, now_ms: u64) {
        if let State::Serving(serving) | State::Deciding(serving) = &mut self.state {
            serving.keep_alive = false;
        }
        self.respond(response, now_ms);
    }

    fn refuse_with(&mut self, refusal: &Refusal, now_ms: u64) {
        let response = Response::json(refusal.status, &serde_json::json!({"message": refusal.message}));
        self.respond_and_close(&response, now_ms);
    }

    /// Answers a refusal of the bytes themselves and closes.
    pub fn refuse(&mut self, refusal: &Refusal, now_ms: u64) {
        self.refuse_with(refusal, now_ms);
    }

    fn next_request(&mut self, serving: Serving, now_ms: u64) {
        if serving.keep_alive && !self.end_told {
            self.state = State::Head;
            self.deadline_ms = Some(now_ms + IDLE_DEADLINE_MS);
        } else {
            self.close_soon(now_ms);
        }
    }

    /// Flushes, then closes with a short linger so that the client reads the last answer.
    pub fn close_soon(&mut self, now_ms: u64) {
        self.state = State::Closing { shut: false, left: 1 << 20 };
        self.deadline_ms = Some(now_ms + LINGER_MS);
        self.release_input();
        if self.pending() == 0 {
            self.flush();
        }
    }

    /// Writes the head of a streamed answer; chunks follow by [`Connection::send`].
    pub fn start_stream(&mut self, status: u16, headers: &[(String, String)]) {
        let State::Serving(serving) = self.state else { return };
        response::stream_head(&mut self.output, &self.common, serving.minor, status, headers, serving.keep_alive);
        self.state = State::Streaming(serving);
        self.flush();
    }

    /// Sends data on a stream (as one chunk) or a raw connection. What the socket does not take is buffered.
    pub fn send(&mut self, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length == 0 || self.failed {
            return;
        }
        match self.state {
            State::Streaming(Serving { minor: 1, head_only: false, .. }) => {
                let head = response::chunk_head(length);
                let mut all: Vec<&[u8]> = Vec::with_capacity(parts.len() + 2);
                all.push(head.as_bytes());
                all.extend_from_slice(parts);
                all.push(b"\r\n");
                self.send_slices(&all);
            }
            State::Streaming(Serving { head_only: false, .. }) | State::Raw => self.send_slices(parts),
            _ => {}
        }
    }

    fn send_slices(&mut self, parts: &[&[u8]]) {
        let mut skip = 0;
        if self.pending() == 0 {
            let slices: Vec<IoSlice> = parts.iter().map(|part| IoSlice::new(part)).collect();
            match sys::fd::writev(self.socket.as_fd(), &slices) {
                Ok(n) => skip = n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.failed = true;
                    return;
                }
            }
        }
        for part in parts {
            let taken = skip.min(part.len());
            skip -= taken;
            self.output.extend_from_slice(&part[taken..]);
        }
    }

    /// Ends a streamed answer.
    pub fn finish_stream(&mut self, now_ms: u64) {
        let State::Streaming(serving) = self.state else { return };
        if serving.minor == 1 && !serving.head_only {
            self.output.extend_from_slice(response::LAST_CHUNK);
        }
        self.next_request(Serving { keep_alive: serving.keep_alive && serving.minor == 1, ..serving }, now_ms);
        self.flush();
    }

    /// Turns the connection into a raw stream of bytes.
    pub fn hijack(&mut self, upgrade: Option<&str>, content_type: &str) {
        if let State::Serving(_) = self.state {
            response::hijack_head(&mut self.output, &self.common, upgrade, content_type);
            self.state = State::Raw;
            self.flush();
        }
    }

    /// As [`Connection::hijack`], with a head made by the caller (WebSocket).
    pub fn hijack_with(&mut self, head: &[u8]) {
        if let State::Serving(_) = self.state {
            self.output.extend_from_slice(head);
            self.state = State::Raw;
            self.flush();
        }
    }

    /// Gives the connection to a worker: the socket, and the bytes already read.
    pub fn into_parts(self) -> (OwnedFd, Vec<u8>) {
        (self.socket, self.input[self.input_at..].to_vec())
    }
}

fn serving(head: &Head) -> Serving {
    Serving { minor: head.minor, keep_alive: head.keep_alive, head_only: head.method == tiny_http::Method::Head }
}

/// Stands for a head that has been moved out; never served.
fn placeholder() -> Head {
    head::parse(b"GET / HTTP/1.0\r\n\r\n").ok().flatten().expect("a constant request parses").0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Connection, OwnedFd) {
        let (ours, theirs) = sys::socket::socketpair(libc::SOCK_STREAM | libc::SOCK_NONBLOCK).unwrap();
        (Connection::new(ours, Rc::default(), 0), theirs)
    }

    fn feed(connection: &mut Connection, client: &OwnedFd, bytes: &[u8]) -> Option<Event> {
        sys::fd::write(client.as_fd(), bytes).unwrap();
        connection.fill(&mut [0; 4096]);
        connection.next_event(0)
    }

    #[test]
    fn pipelined_requests_are_served_in_order() {
        let (mut connection, client) = pair();
        let two = b"GET /a HTTP/1.1\r\nHost: d\r\n\r\nGET /b HTTP/1.1\r\nHost: d\r\n\r\n";
        let Some(Event::Head(head)) = feed(&mut connection, &client, two) else { panic!("no head") };
        assert_eq!(head.path, "/a");
        connection.collect_body(head, 10, 0);
        assert!(matches!(connection.next_event(0), Some(Event::Request(_, body)) if body.is_empty()));
        assert!(connection.next_event(0).is_none(), "the second waits for the first's answer");
        connection.respond(&Response::empty(200), 0);
        assert!(matches!(connection.next_event(0), Some(Event::Head(head)) if head.path == "/b"));
    }

    #[test]
    fn truncated_body_is_never_told() {
        let (mut connection, client) = pair();
        let event = feed(&mut connection, &client, b"POST / HTTP/1.1\r\nHost: d\r\nContent-Length: 9\r\n\r\nabc");
        let Some(Event::Head(head)) = event else { panic!("no head") };
        connection.collect_body(head, 100, 0);
        assert!(connection.next_event(0).is_none());
        drop(client);
        connection.fill(&mut [0; 64]);
        assert!(connection.next_event(0).is_none() && connection.is_finished());
    }

    #[test]
    fn expect_continue_is_answered_when_the_body_is_wanted() {
        let (mut connection, client) = pair();
        let event = feed(&mut connection, &client, b"POST / HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
        let Some(Event::Head(head)) = event else { panic!("no head") };
        connection.collect_body(head, 100, 0);
        let mut buf = [0; 64];
        let n = sys::fd::read(client.as_fd(), &mut buf).unwrap();
        assert_eq!(&buf[..n], b"HTTP/1.1 100 Continue\r\n\r\n");
        assert!(matches!(feed(&mut connection, &client, b"abc"), Some(Event::Request(_, body)) if body == b"abc"));
    }

    #[test]
    fn bodies_beyond_the_bound_are_refused() {
        let (mut connection, client) = pair();
        let event = feed(&mut connection, &client, b"POST / HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        let Some(Event::Head(head)) = event else { panic!("no head") };
        connection.collect_body(head, 4, 0);
        assert!(matches!(connection.next_event(0), Some(Event::Refused(refusal)) if refusal.status == 413));
    }
}
