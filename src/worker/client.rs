//! A worker's client: blocking reads of the body, blocking writes of the answer, on a socket that stays non-blocking
//! (the flag belongs to the open file, which the daemon shares).

use crate::http::body::Decoder;
use crate::http::head::Head;
use crate::http::response::{self, CommonHeaders, Response};
use crate::http::{Framing, Method};
use crate::sys;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;

/// Milliseconds without a byte from or to the client.
const STALL_MS: i32 = 600_000;

pub struct Client {
    socket: RawFd,
    input: Vec<u8>,
    at: usize,
    decoder: Decoder,
    head: Head,
    common: Rc<CommonHeaders>,
    continue_due: bool,
    started: bool,
    streaming: bool,
    finished: bool,
}

impl Client {
    pub(super) fn new(socket: BorrowedFd, input: Vec<u8>, head: Head, common: Rc<CommonHeaders>) -> Client {
        let continue_due = head.expect_continue && head.framing != Framing::None && input.is_empty();
        Client {
            socket: socket.as_raw_fd(),
            input,
            at: 0,
            decoder: Decoder::new(head.framing),
            head,
            common,
            continue_due,
            started: false,
            streaming: false,
            finished: false,
        }
    }

    pub fn started(&self) -> bool {
        self.started
    }

    /// The API version of the request, as its minor number.
    pub fn api_minor(&self) -> u16 {
        crate::api::version_of_path(&self.head.path)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        sys::fd::borrow(self.socket)
    }

    fn wait(&self, events: i16) -> io::Result<()> {
        let mut fds = [libc::pollfd { fd: self.socket, events, revents: 0 }];
        if sys::poll::poll(&mut fds, STALL_MS)? > 0 { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    fn write_raw(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match sys::socket::send(self.fd(), bytes, 0) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(libc::POLLOUT)?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn head_only(&self) -> bool {
        self.head.method == Method::Head
    }

    pub(super) fn respond(&mut self, response: &Response) -> io::Result<()> {
        let mut out = Vec::new();
        response.write(&mut out, &self.common, self.head.minor, self.head_only(), false);
        self.started = true;
        self.write_raw(&out)
    }

    pub(super) fn start(&mut self, status: u16, headers: &[(String, String)]) -> io::Result<()> {
        let mut out = Vec::new();
        response::stream_head(&mut out, &self.common, self.head.minor, status, headers, false);
        self.started = true;
        self.streaming = true;
        self.write_raw(&out)
    }

    /// Ends the answer, and reads off what the client still sends, so that closing does not cut off what it has yet to read.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        if self.streaming && self.head.minor == 1 && !self.head_only() {
            self.write_raw(response::LAST_CHUNK)?;
        }
        sys::socket::shutdown(self.fd(), libc::SHUT_WR)?;
        let mut scratch = [0; 65536];
        let mut fds = [libc::pollfd { fd: self.socket, events: libc::POLLIN, revents: 0 }];
        for _ in 0..64 {
            if sys::poll::poll(&mut fds, 500)? == 0 || sys::fd::read(self.fd(), &mut scratch)? == 0 {
                break;
            }
        }
        Ok(())
    }
}

impl Read for Client {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.decoder.is_done() || buf.is_empty() {
                return Ok(0);
            }
            if self.at == self.input.len() {
                if std::mem::take(&mut self.continue_due) {
                    self.write_raw(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                self.at = 0;
                self.input.resize(65536, 0);
                let n = match sys::fd::read(sys::fd::borrow(self.socket), &mut self.input) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.input.clear();
                        self.wait(libc::POLLIN)?;
                        continue;
                    }
                    other => other?,
                };
                self.input.truncate(n);
                if n == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF"));
                }
            }
            let unread = &self.input[self.at..];
            let unread = &unread[..unread.len().min(buf.len())];
            let step = self.decoder.step(unread).map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal.message))?;
            let data = &unread[step.data.clone()];
            buf[..data.len()].copy_from_slice(data);
            self.at += step.consumed;
            if !step.data.is_empty() {
                return Ok(step.data.len());
            }
        }
    }
}

impl Write for Client {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() || !self.streaming || self.head_only() {
            return Ok(buf.len());
        }
        if self.head.minor == 0 {
            self.write_raw(buf)?;
        } else if buf.len() < 4096 {
            let mut chunk = response::chunk_head(buf.len()).into_bytes();
            chunk.extend_from_slice(buf);
            chunk.extend_from_slice(b"\r\n");
            self.write_raw(&chunk)?;
        } else {
            self.write_raw(response::chunk_head(buf.len()).as_bytes())?;
            self.write_raw(buf)?;
            self.write_raw(b"\r\n")?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
