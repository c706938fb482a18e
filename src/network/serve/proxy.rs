//! The userland proxy: published ports for loopback, for hosts that cannot translate, and as a mode of its own.
//!
//! TCP is spliced through two pipes a connection, so that no byte is copied to the daemon; UDP keeps a socket per client.

use super::{Tick, Watched};
use crate::daemon::{Daemon, Source, Timer};
use crate::network::ports::Protocol;
use crate::poll::{Interest, Poller, Ready, Token};
use crate::sys;
use crate::sys::socket::SockAddr;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes that one direction moves in a turn.
const TURN: usize = 64 * 1024;
/// TCP connections at once: each has six descriptors.
const MAX_CONNECTIONS: usize = 4096;
/// UDP clients at once; more are dropped, as a full router drops.
const MAX_SESSIONS: usize = 4096;
/// A UDP session that is quiet for this long is forgotten, milliseconds.
const SESSION_MS: u64 = 90_000;

#[derive(Default)]
pub struct Proxies {
    ports: HashMap<u64, Port>,
    connections: HashMap<u64, Connection>,
    sessions: HashMap<u64, Session>,
    /// (port, client) → session.
    by_client: HashMap<(u64, SocketAddr), u64>,
    sweeping: bool,
}

/// A published port's socket on the host.
struct Port {
    container: String,
    socket: OwnedFd,
    token: Token,
    target: SocketAddr,
}

struct Connection {
    port: u64,
    client: End,
    target: End,
    connecting: bool,
    /// From the client to the target, and back.
    up: Flow,
    down: Flow,
}

struct End {
    socket: OwnedFd,
    /// `None` once nothing more is expected of it: poll would report its hang-up for ever.
    token: Option<Token>,
}

/// One direction.
struct Flow {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in the pipe.
    buffered: usize,
    /// The source has ended.
    ended: bool,
    /// The end has been passed on.
    closed: bool,
}

struct Session {
    port: u64,
    client: SocketAddr,
    socket: OwnedFd,
    token: Token,
    last_ms: u64,
}

impl Flow {
    fn new() -> io::Result<Flow> {
        let (read, write) = sys::fd::pipe2(libc::O_NONBLOCK)?;
        Ok(Flow { read, write, buffered: 0, ended: false, closed: false })
    }

    /// Moves what can be moved; an error means that the connection is beyond help.
    fn pump(&mut self, from: BorrowedFd, to: BorrowedFd) -> io::Result<()> {
        let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
        let mut moved = 0;
        while moved < TURN && !self.closed {
            let mut stuck = true;
            if !self.ended && self.buffered == 0 {
                match sys::fd::splice(from, self.write.as_fd(), TURN, flags) {
                    Ok(0) => self.ended = true,
                    Ok(n) => {
                        self.buffered += n;
                        stuck = false;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            if self.buffered > 0 {
                match sys::fd::splice(self.read.as_fd(), to, self.buffered, flags) {
                    Ok(n) => {
                        self.buffered -= n.min(self.buffered);
                        moved += n;
                        stuck = false;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            if self.ended && self.buffered == 0 {
                // The other direction may go on: half-closed connections are legal.
                let _ = sys::socket::shutdown(to, libc::SHUT_WR);
                self.closed = true;
            }
            if stuck {
                break;
            }
        }
        Ok(())
    }
}

impl Connection {
    fn pump(&mut self) -> io::Result<()> {
        if self.connecting {
            sys::socket::take_error(self.target.socket.as_fd())?;
            self.connecting = false;
        }
        self.up.pump(self.client.socket.as_fd(), self.target.socket.as_fd())?;
        self.down.pump(self.target.socket.as_fd(), self.client.socket.as_fd())
    }

    fn is_over(&self) -> bool {
        self.up.closed && self.down.closed
    }

    /// Watches each end for what it can do next; an end with nothing left to do is not watched.
    fn watch(&mut self, poller: &mut Poller<Source>) {
        let ends = [(&mut self.client, &self.up, &self.down), (&mut self.target, &self.down, &self.up)];
        for (end, from, into) in ends {
            let Some(token) = end.token else { continue };
            if from.ended && into.closed {
                poller.remove(token);
                end.token = None;
                continue;
            }
            let interest = Interest { read: !from.ended && from.buffered == 0, write: into.buffered > 0 };
            poller.set_interest(token, interest);
        }
    }
}

impl Daemon {
    /// Serves a container's published ports, where a proxy is wanted.
    pub(super) fn serve_ports(&mut self, container: &str) {
        let settings = &self.networks.settings;
        if !settings.userland_proxy && settings.publishing != super::Publishing::Proxy {
            return;
        }
        let Some(sandbox) = self.networks.sandboxes.get_mut(container) else { return };
        let mut sockets = Vec::new();
        for published in &mut sandbox.published {
            sockets.extend(published.socket.take().map(|socket| (socket, published.protocol, published.target)));
        }
        for (socket, protocol, target) in sockets {
            let number = self.unique();
            let watched = if protocol == Protocol::Udp { Watched::ProxyUdp(number) } else { Watched::ProxyListener(number) };
            let token = self.poller.add(socket.as_fd(), Source::Network(watched), Interest::READ);
            self.network_loop.proxies.ports.insert(number, Port { container: container.to_string(), socket, token, target });
        }
    }

    /// Closes a container's ports and all that goes through them.
    pub(super) fn end_ports(&mut self, container: &str) {
        let proxies = &mut self.network_loop.proxies;
        let ports: Vec<u64> = proxies.ports.iter().filter(|(_, p)| p.container == container).map(|(n, _)| *n).collect();
        for number in ports {
            if let Some(port) = self.network_loop.proxies.ports.remove(&number) {
                self.poller.remove(port.token);
            }
            let of_port =
                |map: &HashMap<u64, Connection>| map.iter().filter(|(_, c)| c.port == number).map(|(n, _)| *n).collect::<Vec<_>>();
            of_port(&self.network_loop.proxies.connections).into_iter().for_each(|n| self.end_proxy_connection(n));
            let sessions = &self.network_loop.proxies.sessions;
            let sessions: Vec<u64> = sessions.iter().filter(|(_, s)| s.port == number).map(|(n, _)| *n).collect();
            sessions.into_iter().for_each(|n| self.end_session(n));
        }
    }

    pub(super) fn on_proxy_listener(&mut self, number: u64) {
        for _ in 0..64 {
            let Some(port) = self.network_loop.proxies.ports.get(&number) else { return };
            let client = match sys::socket::accept4(port.socket.as_fd()) {
                Ok(client) => client,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => return log::error!("proxy: accept: {e}"),
            };
            if self.network_loop.proxies.connections.len() >= MAX_CONNECTIONS {
                log::warn!("proxy: {MAX_CONNECTIONS} connections are open; one more is refused");
                continue;
            }
            let target = port.target;
            if let Err(e) = self.open_proxy_connection(number, client, target) {
                log::debug!("proxy: connect {target}: {e}");
            }
        }
    }

    fn open_proxy_connection(&mut self, port: u64, client: OwnedFd, target: SocketAddr) -> io::Result<()> {
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = sys::socket::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        for end in [client.as_fd(), socket.as_fd()] {
            sys::socket::setsockopt_int(end, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        }
        let connecting = match sys::socket::connect(socket.as_fd(), &SockAddr::inet(target)) {
            Ok(()) => false,
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(e) => return Err(e),
        };
        let (up, down) = (Flow::new()?, Flow::new()?);
        let number = self.unique();
        let client_token = self.poller.add(client.as_fd(), Source::Network(Watched::ProxyClient(number)), Interest::NONE);
        let target_token = self.poller.add(socket.as_fd(), Source::Network(Watched::ProxyTarget(number)), Interest::WRITE);
        let connection = Connection {
            port,
            client: End { socket: client, token: Some(client_token) },
            target: End { socket, token: Some(target_token) },
            connecting,
            up,
            down,
        };
        self.network_loop.proxies.connections.insert(number, connection);
        if !connecting {
            self.on_proxy_connection(number, Ready::default());
        }
        Ok(())
    }

    pub(super) fn on_proxy_connection(&mut self, number: u64, ready: Ready) {
        let Some(connection) = self.network_loop.proxies.connections.get_mut(&number) else { return };
        // While the target does not answer, only its socket can say something new; a client that hangs up is gone.
        if connection.connecting && !ready.write && !ready.hangup {
            return;
        }
        match connection.pump() {
            Ok(()) if !connection.is_over() => connection.watch(&mut self.poller),
            Ok(()) => self.end_proxy_connection(number),
            Err(e) => {
                log::debug!("proxy: {e}");
                self.end_proxy_connection(number);
            }
        }
    }

    fn end_proxy_connection(&mut self, number: u64) {
        if let Some(connection) = self.network_loop.proxies.connections.remove(&number) {
            for token in [connection.client.token, connection.target.token].into_iter().flatten() {
                self.poller.remove(token);
            }
        }
    }

    /// Datagrams from clients.
    pub(super) fn on_proxy_udp(&mut self, number: u64) {
        let mut buffer = std::mem::take(&mut self.scratch);
        for _ in 0..32 {
            let Some(port) = self.network_loop.proxies.ports.get(&number) else { break };
            let Ok((n, from)) = sys::socket::recvfrom(port.socket.as_fd(), &mut buffer) else { break };
            let (Some(client), target) = (from.to_inet(), port.target) else { continue };
            let session = match self.network_loop.proxies.by_client.get(&(number, client)) {
                Some(session) => Ok(*session),
                None => self.open_session(number, client, target),
            };
            let now = self.now_ms();
            match session {
                Ok(session) => {
                    if let Some(session) = self.network_loop.proxies.sessions.get_mut(&session) {
                        session.last_ms = now;
                        // A lost datagram is the sender's to notice; so is a closed port.
                        let _ = sys::socket::send(session.socket.as_fd(), &buffer[..n], 0);
                    }
                }
                Err(e) => log::debug!("proxy: session for {client}: {e}"),
            }
        }
        self.scratch = buffer;
    }

    fn open_session(&mut self, port: u64, client: SocketAddr, target: SocketAddr) -> io::Result<u64> {
        if self.network_loop.proxies.sessions.len() >= MAX_SESSIONS {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = sys::socket::socket(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
        sys::socket::connect(socket.as_fd(), &SockAddr::inet(target))?;
        let number = self.unique();
        let token = self.poller.add(socket.as_fd(), Source::Network(Watched::ProxySession(number)), Interest::READ);
        let last_ms = self.now_ms();
        self.network_loop.proxies.sessions.insert(number, Session { port, client, socket, token, last_ms });
        self.network_loop.proxies.by_client.insert((port, client), number);
        if !std::mem::replace(&mut self.network_loop.proxies.sweeping, true) {
            self.after(SESSION_MS, Timer::Network(Tick::Sessions));
        }
        Ok(number)
    }

    /// Datagrams from a container, for the one client that the session is for.
    pub(super) fn on_proxy_session(&mut self, number: u64) {
        let mut buffer = std::mem::take(&mut self.scratch);
        let now = self.now_ms();
        for _ in 0..32 {
            let Some(session) = self.network_loop.proxies.sessions.get_mut(&number) else { break };
            // An error (the port is closed) is taken off the socket by the call itself.
            let Ok(n) = sys::socket::recv(session.socket.as_fd(), &mut buffer, 0) else { break };
            session.last_ms = now;
            if let Some(port) = self.network_loop.proxies.ports.get(&session.port) {
                let _ = sys::socket::sendto(port.socket.as_fd(), &buffer[..n], &SockAddr::inet(session.client));
            }
        }
        self.scratch = buffer;
    }

    fn end_session(&mut self, number: u64) {
        if let Some(session) = self.network_loop.proxies.sessions.remove(&number) {
            self.poller.remove(session.token);
            self.network_loop.proxies.by_client.remove(&(session.port, session.client));
        }
    }

    pub(super) fn on_sessions_tick(&mut self) {
        let now = self.now_ms();
        let quiet = |s: &Session| s.last_ms + SESSION_MS <= now;
        let old: Vec<u64> = self.network_loop.proxies.sessions.iter().filter(|(_, s)| quiet(s)).map(|(n, _)| *n).collect();
        old.into_iter().for_each(|n| self.end_session(n));
        let next = self.network_loop.proxies.sessions.values().map(|s| s.last_ms + SESSION_MS).min();
        self.network_loop.proxies.sweeping = next.is_some();
        if let Some(next) = next {
            self.after(next.saturating_sub(now).max(1000), Timer::Network(Tick::Sessions));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    /// Both sides of a TCP connection on loopback.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_and_their_end_pass_in_both_directions() {
        let ((mut client, client_end), (mut server, target_end)) = (pair(), pair());
        client_end.set_nonblocking(true).unwrap();
        target_end.set_nonblocking(true).unwrap();
        let end = |stream: TcpStream| End { socket: stream.into(), token: None };
        let mut connection = Connection {
            port: 0,
            client: end(client_end),
            target: end(target_end),
            connecting: false,
            up: Flow::new().unwrap(),
            down: Flow::new().unwrap(),
        };
        client.write_all(b"question").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        while !connection.up.closed {
            connection.pump().unwrap();
        }
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"question");
        assert!(!connection.is_over());
        server.write_all(b"answer").unwrap();
        drop(server);
        while !connection.is_over() {
            connection.pump().unwrap();
        }
        got.clear();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"answer");
    }
}
