//! Connections: accepting, reading requests, finding their route, answering.

use super::{ConnId, Daemon, Source, Timer};
use crate::api::routes::{self, Found};
use crate::api::{self, Reply, Request};
use crate::error::{Error, Kind};
use crate::http::{Connection, Event, Head, Query, Refusal, Response};
use crate::poll::{Ready, Token};
use crate::sys;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// JSON bodies, bytes.
const MAX_BODY: usize = 16 << 20;
/// Connections at once; the last few are kept for a ping.
const MAX_CONNECTIONS: usize = 16_384;

/// A connection and what it is used for.
pub struct Client {
    pub connection: Connection,
    pub(super) token: Token,
}

impl Daemon {
    pub(super) fn accept(&mut self, index: usize) {
        // A bounded number a turn, so that one listener cannot starve the rest.
        for _ in 0..64 {
            let Some(listener) = self.listeners.get(index) else { return };
            let socket = match sys::socket::accept4(listener.socket.as_fd()) {
                Ok(socket) => socket,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    // EMFILE and its like: try again when a descriptor is free, not in a tight loop.
                    log::error!("accept: {e}");
                    return;
                }
            };
            if self.clients.len() >= MAX_CONNECTIONS {
                log::warn!("{MAX_CONNECTIONS} connections are open; one more is refused");
                continue;
            }
            if listener.tcp {
                let _ = sys::socket::setsockopt_int(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
            }
            self.adopt_connection(socket);
        }
    }

    /// Serves a connected, non-blocking socket from now on.
    pub(super) fn adopt_connection(&mut self, socket: OwnedFd) {
        let id = ConnId(self.unique());
        let connection = Connection::new(socket, self.common.clone(), self.now_ms());
        let token = self.poller.add(connection.socket(), Source::Conn(id), connection.interest());
        self.clients.insert(id, Client { connection, token });
        self.arm_sweep();
    }

    pub(super) fn on_conn(&mut self, id: ConnId, ready: Ready) {
        let mut scratch = std::mem::take(&mut self.scratch);
        if let Some(client) = self.clients.get_mut(&id) {
            if ready.write {
                client.connection.flush();
            }
            if ready.read {
                client.connection.fill(&mut scratch);
            }
        }
        self.scratch = scratch;
        self.touched.push(id);
    }

    /// Serves every connection that a handler or the poll has touched.
    pub(super) fn serve_touched(&mut self) {
        for _ in 0..64 {
            if self.touched.is_empty() {
                return;
            }
            let mut touched = std::mem::take(&mut self.touched);
            touched.sort_unstable();
            touched.dedup();
            for id in touched {
                self.serve(id);
            }
        }
    }

    fn serve(&mut self, id: ConnId) {
        loop {
            let now = self.now_ms();
            let Some(client) = self.clients.get_mut(&id) else { return };
            match client.connection.next_event(now) {
                Some(event) => self.on_event(id, event),
                None => break,
            }
        }
        self.after_output(id);
        let Some(client) = self.clients.get(&id) else { return };
        if client.connection.is_finished() {
            self.drop_conn(id);
            return;
        }
        self.poller.set_interest(client.token, client.connection.interest());
        if client.connection.deadline_ms().is_some() {
            self.arm_sweep();
        }
    }

    fn on_event(&mut self, id: ConnId, event: Event) {
        match event {
            Event::Head(head) => self.on_head(id, head),
            Event::Request(head, body) => self.on_request(id, head, body),
            Event::Refused(refusal) => {
                let now = self.now_ms();
                self.with_conn(id, |connection| connection.refuse(&refusal, now));
            }
            Event::Input(data) => self.on_input(id, data),
            Event::InputEnd => self.on_input_end(id),
        }
    }

    /// A head is there: a worker's route takes the connection now, any other waits for its body.
    fn on_head(&mut self, id: ConnId, head: Head) {
        let found = find(&head);
        let now = self.now_ms();
        match found {
            Ok((minor, Found { route, params })) => match route.kind {
                routes::Handler::Worker(handler) => match request(id, head, minor, params, Vec::new()) {
                    Ok(request) => match handler(self, &request) {
                        Ok(job) => self.hand_over(id, request.head, minor, job),
                        Err(error) => self.refuse_early(id, &error, minor),
                    },
                    Err(refusal) => self.with_conn(id, |c| c.refuse(&refusal, now)),
                },
                _ => self.with_conn(id, |c| c.collect_body(head, MAX_BODY, now)),
            },
            Err((minor, error)) if head.expect_continue => self.refuse_early(id, &error, minor),
            // The body is read and dropped, so that the connection can go on.
            Err(_) => self.with_conn(id, |c| c.collect_body(head, MAX_BODY, now)),
        }
    }

    fn refuse_early(&mut self, id: ConnId, error: &Error, minor: u16) {
        let now = self.now_ms();
        let response = api::error_response(error, minor);
        self.with_conn(id, |connection| connection.respond_and_close(&response, now));
    }

    fn on_request(&mut self, id: ConnId, head: Head, body: Vec<u8>) {
        let (minor, outcome) = match find(&head) {
            Ok((minor, Found { route, params })) => {
                let request = match request(id, head, minor, params, body) {
                    Ok(request) => request,
                    Err(refusal) => return self.fail(id, &Error::invalid(refusal.message), minor),
                };
                log::debug!("{} {}", request.head.method, request.head.path);
                match route.kind {
                    routes::Handler::Now(handler) => (minor, handler(self, &request)),
                    routes::Handler::Worker(_) => (minor, Err(Error::system("a worker's route came to the loop"))),
                }
            }
            Err((minor, error)) => (minor, Err(error)),
        };
        match outcome {
            Ok(Reply::Now(response)) => self.respond(id, &response),
            Ok(Reply::Parked) => self.touched.push(id),
            Err(error) => self.fail(id, &error, minor),
        }
    }

    /// Answers a connection, at once or when what it was parked for has come.
    pub fn respond(&mut self, id: ConnId, response: &Response) {
        let now = self.now_ms();
        self.with_conn(id, |connection| connection.respond(response, now));
    }

    /// Answers with an error, in the shape that the request's version wants.
    pub fn fail(&mut self, id: ConnId, error: &Error, minor: u16) {
        if error.kind == Kind::System {
            log::error!("{error}");
        }
        self.respond(id, &api::error_response(error, minor));
    }

    /// Runs `act` on a connection that still exists, and has it looked at before the next poll.
    pub fn with_conn(&mut self, id: ConnId, act: impl FnOnce(&mut Connection)) {
        if let Some(client) = self.clients.get_mut(&id) {
            act(&mut client.connection);
            self.touched.push(id);
        }
    }

    /// Bytes that a client has yet to take; `None` when it is gone.
    pub fn pending(&self, id: ConnId) -> Option<usize> {
        self.clients.get(&id).filter(|c| !c.connection.is_failed()).map(|c| c.connection.pending())
    }

    /// Closes a connection now.
    pub fn drop_conn(&mut self, id: ConnId) {
        if let Some(client) = self.clients.remove(&id) {
            self.poller.remove(client.token);
            self.on_conn_closed(id);
        }
    }

    /// Raw bytes from a hijacked connection.
    fn on_input(&mut self, id: ConnId, data: Vec<u8>) {
        self.on_client_input(id, &data);
    }

    /// The client sends no more.
    fn on_input_end(&mut self, id: ConnId) {
        let Some(client) = self.clients.get(&id) else { return };
        if client.connection.is_streaming() {
            self.drop_conn(id);
        } else if client.connection.is_raw() {
            self.on_client_input_end(id);
        }
    }

    /// Room in a client's buffer: whoever feeds it may go on.
    fn after_output(&mut self, id: ConnId) {
        self.wake_follower(id);
    }

    fn on_conn_closed(&mut self, id: ConnId) {
        self.forget_subscriber(id);
        self.followers.forget(id);
        self.detach(id);
    }

    fn arm_sweep(&mut self) {
        if !std::mem::replace(&mut self.sweep_armed, true) {
            self.after(5_000, Timer::SweepConnections);
        }
    }

    /// Closes connections whose deadline has passed. One timer for all: it is armed while a deadline is open.
    pub(super) fn sweep_connections(&mut self) {
        self.sweep_armed = false;
        let now = self.now_ms();
        let expired = |c: &Client| c.connection.deadline_ms().is_some_and(|at| at <= now);
        let late: Vec<ConnId> = self.clients.iter().filter(|(_, c)| expired(c)).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.drop_conn(id));
        if let Some(next) = self.clients.values().filter_map(|c| c.connection.deadline_ms()).min() {
            self.sweep_armed = true;
            self.after(next.saturating_sub(now).max(1_000), Timer::SweepConnections);
        }
    }
}

/// The route of a head; an error with the version whose shape it should have.
fn find(head: &Head) -> Result<(u16, Found), (u16, Error)> {
    let (minor, path) = api::split_version(&head.path).map_err(|e| (api::MAX_MINOR, e))?;
    routes::find(&head.method, path, minor).map(|found| (minor, found)).map_err(|e| (minor, e))
}

fn request(conn: ConnId, head: Head, minor: u16, params: Vec<String>, body: Vec<u8>) -> Result<Request, Refusal> {
    let query = Query::parse(&head.query)?;
    Ok(Request { head, minor, params, query, body, conn })
}
