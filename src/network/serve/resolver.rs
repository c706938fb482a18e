//! The embedded resolvers' sockets in the loop. What is answered and what is passed on is decided in [`crate::network::dns`].

use super::{Tick, Watched};
use crate::daemon::{Daemon, Source, Timer};
use crate::network::attach::ResolverSockets;
use crate::network::dns::message::{self, Query};
use crate::network::dns::{self, Client, Decision, Forwards, Question, Step, Zone};
use crate::network::netns;
use crate::network::resolv_conf::Upstream;
use crate::poll::{Interest, Token};
use crate::sys;
use crate::sys::socket::SockAddr;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

/// The largest message over TCP, with its length.
const MAX_MESSAGE: usize = 65_535 + 2;
/// TCP clients of one container.
const MAX_CLIENTS: usize = 64;
/// A TCP client that says nothing for this long is closed, milliseconds.
const CLIENT_MS: u64 = 10_000;

#[derive(Default)]
pub struct Resolvers {
    resolvers: HashMap<u64, Resolver>,
    clients: HashMap<u64, Stream>,
    upstreams: HashMap<u64, UpstreamSocket>,
    tick_armed: bool,
}

struct Resolver {
    container: String,
    sockets: ResolverSockets,
    udp: Token,
    tcp: Token,
    forwards: Forwards,
    /// Counts answers, so that names with several addresses take turns.
    turn: usize,
}

/// A TCP connection with length-prefixed messages.
struct Stream {
    resolver: u64,
    socket: OwnedFd,
    token: Token,
    input: Vec<u8>,
    output: Vec<u8>,
    last_ms: u64,
}

struct UpstreamSocket {
    resolver: u64,
    socket: OwnedFd,
    token: Token,
    /// Over TCP: what is still to be sent, and what has come.
    stream: Option<(Vec<u8>, Vec<u8>)>,
}

/// Takes the first whole message off a stream's bytes.
fn take_message(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes(input.get(..2)?.try_into().ok()?));
    let message = input.get(2..2 + length)?.to_vec();
    input.drain(..2 + length);
    Some(message)
}

fn with_length(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

/// Reads what is there; false at the end, on failure, or when a peer sends more than a message can be.
fn fill(socket: &OwnedFd, input: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match sys::socket::recv(socket.as_fd(), &mut buffer, 0) {
            Ok(0) => return false,
            Ok(n) => input.extend_from_slice(&buffer[..n]),
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
        }
        if input.len() >= MAX_MESSAGE {
            return true;
        }
    }
}

/// Writes what can be written; false on failure.
fn flush(socket: &OwnedFd, output: &mut Vec<u8>) -> bool {
    while !output.is_empty() {
        match sys::socket::send(socket.as_fd(), output, 0) {
            Ok(n) => drop(output.drain(..n)),
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

impl Daemon {
    /// Serves a container's resolver.
    pub(crate) fn serve_resolver(&mut self, container: &str, sockets: ResolverSockets) {
        let number = self.unique();
        let udp = self.poller.add(sockets.udp.as_fd(), Source::Network(Watched::ResolverUdp(number)), Interest::READ);
        let tcp = self.poller.add(sockets.tcp.as_fd(), Source::Network(Watched::ResolverTcp(number)), Interest::READ);
        let resolver = Resolver { container: container.to_string(), sockets, udp, tcp, forwards: Forwards::default(), turn: 0 };
        self.network_loop.resolvers.resolvers.insert(number, resolver);
        if let Some(sandbox) = self.networks.sandboxes.get_mut(container) {
            sandbox.resolver = number;
        }
    }

    /// Closes a resolver with all that it has open: an open socket would keep the container's namespace alive.
    pub(super) fn end_resolver(&mut self, number: u64) {
        let resolvers = &mut self.network_loop.resolvers;
        let Some(resolver) = resolvers.resolvers.remove(&number) else { return };
        self.poller.remove(resolver.udp);
        self.poller.remove(resolver.tcp);
        let clients: Vec<u64> = resolvers.clients.iter().filter(|(_, c)| c.resolver == number).map(|(n, _)| *n).collect();
        let upstreams: Vec<u64> = resolvers.upstreams.iter().filter(|(_, u)| u.resolver == number).map(|(n, _)| *n).collect();
        clients.into_iter().for_each(|n| self.end_resolver_client(n));
        upstreams.into_iter().for_each(|n| self.end_upstream(n));
    }

    pub(super) fn on_resolver_udp(&mut self, number: u64) {
        let mut buffer = vec![0; 4096];
        for _ in 0..32 {
            let Some(resolver) = self.network_loop.resolvers.resolvers.get(&number) else { return };
            let Ok((n, from)) = sys::socket::recvfrom(resolver.sockets.udp.as_fd(), &mut buffer) else { return };
            if let Some(client) = from.to_inet() {
                self.on_question(number, &buffer[..n], Client::Udp(client));
            }
        }
    }

    fn on_question(&mut self, number: u64, bytes: &[u8], client: Client) {
        let query = match message::parse_query(bytes) {
            Ok(query) => query,
            Err(code) => {
                if let Some(refusal) = code.and_then(|code| message::refuse(bytes, code)) {
                    self.answer(number, client, &refusal);
                }
                return;
            }
        };
        let limit = if matches!(client, Client::Tcp(_)) { 65_535 } else { query.udp_size };
        match self.decide(number, &query, limit) {
            Some(Decision::Answer(reply)) => self.answer(number, client, &reply),
            Some(Decision::Forward) => self.forward(number, query, bytes, client),
            None => {}
        }
    }

    fn decide(&mut self, number: u64, query: &Query, limit: usize) -> Option<Decision> {
        let resolver = self.network_loop.resolvers.resolvers.get_mut(&number)?;
        resolver.turn = resolver.turn.wrapping_add(1);
        let sandbox = self.networks.sandboxes.get(&resolver.container)?;
        let zones: Vec<&Zone> = sandbox.endpoints.iter().filter_map(|e| self.networks.zones.get(&e.network)).collect();
        let links: BTreeMap<String, String> = sandbox.endpoints.iter().flat_map(|e| e.links.clone()).collect();
        Some(dns::decide(query, &links, &zones, limit, resolver.turn))
    }

    fn upstreams_of(&self, number: u64) -> Vec<Upstream> {
        let resolver = self.network_loop.resolvers.resolvers.get(&number);
        let sandbox = resolver.and_then(|r| self.networks.sandboxes.get(&r.container));
        // Looked at each time: a container that was connected to an outer network later may ask from then on.
        match sandbox {
            Some(sandbox) if sandbox.endpoints.iter().any(|e| !e.internal) => sandbox.upstreams.clone().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn forward(&mut self, number: u64, query: Query, bytes: &[u8], client: Client) {
        let mut random = [0; 2];
        if sys::security::getrandom(&mut random).is_err() {
            return;
        }
        let (key, now, upstreams) = (self.unique(), self.now_ms(), self.upstreams_of(number));
        let question = Question { query, request: bytes.to_vec(), client, id: u16::from_ne_bytes(random) };
        let Some(resolver) = self.network_loop.resolvers.resolvers.get_mut(&number) else { return };
        let step = resolver.forwards.begin(key, question, &upstreams, now);
        self.take_step(number, key, &upstreams, step);
    }

    /// Carries out what the forwarding table says, until a question is on its way or done with.
    fn take_step(&mut self, number: u64, key: u64, upstreams: &[Upstream], mut step: Step) {
        loop {
            match step {
                Step::Ignore => return,
                Step::Finish { client, bytes } => {
                    self.end_upstream(key);
                    return self.answer(number, client, &bytes);
                }
                Step::Send { upstream, bytes } => {
                    self.end_upstream(key);
                    let Err(e) = self.send_upstream(number, key, &upstreams[upstream], &bytes) else { return self.arm_resolver_tick() };
                    log::debug!("resolver: {}: {e}", upstreams[upstream].server);
                    let now = self.now_ms();
                    let Some(resolver) = self.network_loop.resolvers.resolvers.get_mut(&number) else { return };
                    step = resolver.forwards.on_failure(key, upstreams, now);
                }
            }
        }
    }

    fn send_upstream(&mut self, number: u64, key: u64, upstream: &Upstream, bytes: &[u8]) -> io::Result<()> {
        let gone = || io::Error::from_raw_os_error(libc::ENOENT);
        let resolver = self.network_loop.resolvers.resolvers.get(&number).ok_or_else(gone)?;
        let over_tcp = resolver.forwards.get(key).is_some_and(|p| matches!(p.client, Client::Tcp(_)));
        let kind = if over_tcp { libc::SOCK_STREAM } else { libc::SOCK_DGRAM };
        let family = if upstream.server.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let open = || sys::socket::socket(family, kind | libc::SOCK_NONBLOCK, 0);
        let socket = if upstream.from_host {
            open()?
        } else {
            let sandbox = self.networks.sandboxes.get(&resolver.container).ok_or_else(gone)?;
            netns::inside(sandbox.netns.as_ref().ok_or_else(gone)?.as_fd(), open)??
        };
        match sys::socket::connect(socket.as_fd(), &SockAddr::inet(SocketAddr::new(upstream.server.address, 53))) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        let stream = over_tcp.then(|| (with_length(bytes), Vec::new()));
        if stream.is_none() {
            sys::socket::send(socket.as_fd(), bytes, 0)?;
        }
        let interest = if over_tcp { Interest::BOTH } else { Interest::READ };
        let token = self.poller.add(socket.as_fd(), Source::Network(Watched::Upstream(key)), interest);
        self.network_loop.resolvers.upstreams.insert(key, UpstreamSocket { resolver: number, socket, token, stream });
        Ok(())
    }

    /// An upstream has answered, or refuses to.
    pub(super) fn on_upstream(&mut self, key: u64) {
        let Some(upstream) = self.network_loop.resolvers.upstreams.get_mut(&key) else { return };
        let number = upstream.resolver;
        let received = match &mut upstream.stream {
            None => {
                let mut buffer = vec![0; 65_535];
                match sys::socket::recv(upstream.socket.as_fd(), &mut buffer, 0) {
                    Ok(n) => {
                        buffer.truncate(n);
                        Ok(Some(buffer))
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                    Err(e) => Err(e),
                }
            }
            Some((output, input)) => {
                let alive = flush(&upstream.socket, output) && fill(&upstream.socket, input);
                self.poller.set_interest(upstream.token, if output.is_empty() { Interest::READ } else { Interest::BOTH });
                match (take_message(input), alive) {
                    (Some(message), _) => Ok(Some(message)),
                    (None, true) => Ok(None),
                    (None, false) => Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
                }
            }
        };
        let (now, upstreams) = (self.now_ms(), self.upstreams_of(number));
        let Some(resolver) = self.network_loop.resolvers.resolvers.get_mut(&number) else { return };
        let step = match received {
            Ok(Some(reply)) => resolver.forwards.on_reply(key, &reply, &upstreams, now),
            Ok(None) => return,
            Err(_) => resolver.forwards.on_failure(key, &upstreams, now),
        };
        self.take_step(number, key, &upstreams, step);
    }

    fn answer(&mut self, number: u64, client: Client, bytes: &[u8]) {
        match client {
            Client::Udp(address) => {
                if let Some(resolver) = self.network_loop.resolvers.resolvers.get(&number) {
                    let _ = sys::socket::sendto(resolver.sockets.udp.as_fd(), bytes, &SockAddr::inet(address));
                }
            }
            Client::Tcp(stream) => {
                if let Some(client) = self.network_loop.resolvers.clients.get_mut(&stream) {
                    client.output.extend_from_slice(&with_length(bytes));
                    self.on_resolver_client(stream);
                }
            }
        }
    }

    fn end_upstream(&mut self, key: u64) {
        if let Some(upstream) = self.network_loop.resolvers.upstreams.remove(&key) {
            self.poller.remove(upstream.token);
        }
    }

    pub(super) fn on_resolver_tcp(&mut self, number: u64) {
        for _ in 0..16 {
            let Some(resolver) = self.network_loop.resolvers.resolvers.get(&number) else { return };
            let Ok(socket) = sys::socket::accept4(resolver.sockets.tcp.as_fd()) else { return };
            let clients = &self.network_loop.resolvers.clients;
            if clients.values().filter(|c| c.resolver == number).count() >= MAX_CLIENTS {
                continue;
            }
            let (stream, last_ms) = (self.unique(), self.now_ms());
            let token = self.poller.add(socket.as_fd(), Source::Network(Watched::ResolverClient(stream)), Interest::READ);
            let client = Stream { resolver: number, socket, token, input: Vec::new(), output: Vec::new(), last_ms };
            self.network_loop.resolvers.clients.insert(stream, client);
            self.arm_resolver_tick();
        }
    }

    pub(super) fn on_resolver_client(&mut self, stream: u64) {
        let now = self.now_ms();
        let Some(client) = self.network_loop.resolvers.clients.get_mut(&stream) else { return };
        let open = flush(&client.socket, &mut client.output) && fill(&client.socket, &mut client.input);
        let question = take_message(&mut client.input);
        let number = client.resolver;
        if !open || client.output.len() > MAX_MESSAGE || (question.is_none() && client.input.len() >= MAX_MESSAGE) {
            return self.end_resolver_client(stream);
        }
        let interest = if client.output.is_empty() { Interest::READ } else { Interest::BOTH };
        self.poller.set_interest(client.token, interest);
        if let Some(question) = question {
            client.last_ms = now;
            self.on_question(number, &question, Client::Tcp(stream));
        }
    }

    fn end_resolver_client(&mut self, stream: u64) {
        if let Some(client) = self.network_loop.resolvers.clients.remove(&stream) {
            self.poller.remove(client.token);
        }
    }

    fn arm_resolver_tick(&mut self) {
        let next = self.next_resolver_deadline();
        if let (Some(next), false) = (next, self.network_loop.resolvers.tick_armed) {
            self.network_loop.resolvers.tick_armed = true;
            let now = self.now_ms();
            self.after(next.saturating_sub(now).max(50), Timer::Network(Tick::Resolver));
        }
    }

    fn next_resolver_deadline(&self) -> Option<u64> {
        let resolvers = &self.network_loop.resolvers;
        let questions = resolvers.resolvers.values().filter_map(|r| r.forwards.next_deadline_ms());
        questions.chain(resolvers.clients.values().map(|c| c.last_ms + CLIENT_MS)).min()
    }

    pub(super) fn on_resolver_tick(&mut self) {
        self.network_loop.resolvers.tick_armed = false;
        let now = self.now_ms();
        let resolvers = &self.network_loop.resolvers;
        let due: Vec<(u64, u64)> =
            resolvers.resolvers.iter().flat_map(|(n, r)| r.forwards.due(now).into_iter().map(|key| (*n, key))).collect();
        let quiet: Vec<u64> = resolvers.clients.iter().filter(|(_, c)| c.last_ms + CLIENT_MS <= now).map(|(n, _)| *n).collect();
        quiet.into_iter().for_each(|n| self.end_resolver_client(n));
        for (number, key) in due {
            let upstreams = self.upstreams_of(number);
            let Some(resolver) = self.network_loop.resolvers.resolvers.get_mut(&number) else { continue };
            let step = resolver.forwards.on_failure(key, &upstreams, now);
            self.take_step(number, key, &upstreams, step);
        }
        self.arm_resolver_tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_off_a_stream_one_by_one() {
        let mut input = with_length(b"one");
        input.extend(with_length(b"two"));
        input.truncate(9);
        assert_eq!(take_message(&mut input).as_deref(), Some(&b"one"[..]));
        assert_eq!(take_message(&mut input), None);
        input.push(b'o');
        assert_eq!(take_message(&mut input).as_deref(), Some(&b"two"[..]));
    }
}
