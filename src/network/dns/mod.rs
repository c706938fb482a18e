//! The embedded resolver: who is called what in a container's networks, and what becomes of all other questions.
//!
//! [`decide`] is pure: names in, an answer or "ask upstream" out. [`Forwards`] keeps what was asked upstream and for whom;
//! the sockets belong to the loop.

pub mod message;

use crate::network::resolv_conf::Upstream;
use message::{Code, Query, TYPE_A, TYPE_AAAA, TYPE_MX, TYPE_PTR};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// How long one upstream has for its answer, milliseconds.
pub const TIMEOUT_MS: u64 = 4000;
/// Upstreams that are asked, as in the reference.
pub const MAX_UPSTREAMS: usize = 3;
/// Questions of one container on their way at a time; more are refused at once.
pub const MAX_PENDING: usize = 256;

/// The names of one network.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    /// Lower case: "mynet" in "web.mynet".
    pub network: String,
    /// Lower-case container names, short ids, aliases → addresses of both families.
    names: BTreeMap<String, Vec<IpAddr>>,
    /// The name that a reverse question gets.
    reverse: BTreeMap<IpAddr, String>,
}

impl Zone {
    pub fn new(network: &str) -> Zone {
        Zone { network: network.to_ascii_lowercase(), ..Zone::default() }
    }

    /// Adds an endpoint: its names (the first is the one for reverse questions) and addresses.
    pub fn add(&mut self, names: &[String], addresses: &[IpAddr]) {
        for name in names {
            let known = self.names.entry(name.to_ascii_lowercase()).or_default();
            known.extend(addresses.iter().filter(|a| !known.contains(a)).copied().collect::<Vec<_>>());
        }
        if let Some(name) = names.first() {
            for address in addresses {
                self.reverse.insert(*address, name.to_ascii_lowercase());
            }
        }
    }

    /// Removes an endpoint's addresses from its names; another endpoint with the same alias keeps its own.
    pub fn remove(&mut self, names: &[String], addresses: &[IpAddr]) {
        for name in names {
            let name = name.to_ascii_lowercase();
            if let Some(known) = self.names.get_mut(&name) {
                known.retain(|address| !addresses.contains(address));
                if known.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
        for address in addresses {
            self.reverse.remove(address);
        }
    }

    fn find(&self, name: &str) -> Option<&[IpAddr]> {
        let own = name.strip_suffix(&self.network).and_then(|rest| rest.strip_suffix('.'));
        self.names.get(name).or_else(|| self.names.get(own?)).map(Vec::as_slice)
    }
}

/// What to do with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Answer(Vec<u8>),
    Forward,
}

/// Decides one question for a container in `zones`, whose own links (legacy aliases for other containers) come first.
/// `limit` is the answer's largest size; `turn` rotates the answers of a name with several addresses.
pub fn decide(query: &Query, links: &BTreeMap<String, String>, zones: &[&Zone], limit: usize, turn: usize) -> Decision {
    if !query.is_internet() {
        return Decision::Forward;
    }
    match query.kind {
        TYPE_A | TYPE_AAAA | TYPE_MX => {
            let name = links.get(&query.name).unwrap_or(&query.name);
            let Some(found) = zones.iter().find_map(|zone| zone.find(name)) else { return Decision::Forward };
            let mut wanted: Vec<IpAddr> = found
                .iter()
                .filter(|a| (query.kind == TYPE_A && a.is_ipv4()) || (query.kind == TYPE_AAAA && a.is_ipv6()))
                .copied()
                .collect();
            // The name is ours: of a family it lacks, and of mail, there is nothing, and nobody else is asked.
            if wanted.is_empty() {
                return Decision::Answer(query.empty(Code::Success));
            }
            let by = turn % wanted.len();
            wanted.rotate_left(by);
            Decision::Answer(query.addresses(&wanted, limit))
        }
        TYPE_PTR => {
            let Some(address) = query.reverse_address() else { return Decision::Forward };
            let names: Vec<String> =
                zones.iter().filter_map(|zone| zone.reverse.get(&address).map(|name| format!("{name}.{}", zone.network))).collect();
            if names.is_empty() { Decision::Forward } else { Decision::Answer(query.names(&names[..1], limit)) }
        }
        _ => Decision::Forward,
    }
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Udp(SocketAddr),
    /// The loop's number of the client's connection.
    Tcp(u64),
}

/// A question to be sent upstream.
#[derive(Clone, Debug)]
pub struct Question {
    pub query: Query,
    /// The client's bytes.
    pub request: Vec<u8>,
    pub client: Client,
    /// The id it goes up with: unpredictable, as is the source port.
    pub id: u16,
}

/// A question that was sent upstream.
#[derive(Clone, Debug)]
pub struct Pending {
    pub query: Query,
    /// The client's bytes, sent on with another id.
    request: Vec<u8>,
    pub client: Client,
    /// The id it went up with.
    pub id: u16,
    /// Which upstream has it now.
    pub upstream: usize,
    /// When that one's time is up: milliseconds of the loop's clock.
    pub deadline_ms: u64,
}

/// What to do next with a pending question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes to the upstream of that number, from a fresh socket.
    Send { upstream: usize, bytes: Vec<u8> },
    /// It is over: these bytes are the client's.
    Finish { client: Client, bytes: Vec<u8> },
    /// Not an answer to anything of ours: keep waiting.
    Ignore,
}

/// The questions of one container on their way, by a number of the caller's (its socket).
#[derive(Debug, Default)]
pub struct Forwards {
    pending: BTreeMap<u64, Pending>,
}

impl Forwards {
    /// Takes a question on. Without an upstream, or with too many on their way, it fails at once.
    pub fn begin(&mut self, key: u64, question: Question, upstreams: &[Upstream], now_ms: u64) -> Step {
        let Question { query, mut request, client, id } = question;
        if upstreams.is_empty() || self.pending.len() >= MAX_PENDING {
            let code = if upstreams.is_empty() { Code::ServerFailure } else { Code::Refused };
            return Step::Finish { client, bytes: query.empty(code) };
        }
        message::set_id(&mut request, id);
        let bytes = request.clone();
        let pending = Pending { query, request, client, id, upstream: 0, deadline_ms: now_ms + TIMEOUT_MS };
        self.pending.insert(key, pending);
        Step::Send { upstream: 0, bytes }
    }

    /// Bytes from the upstream. A refusal or failure of one upstream is not the last word while there are others.
    pub fn on_reply(&mut self, key: u64, reply: &[u8], upstreams: &[Upstream], now_ms: u64) -> Step {
        let Some(pending) = self.pending.get(&key) else { return Step::Ignore };
        if !pending.query.is_answered_by(reply, pending.id) {
            return Step::Ignore;
        }
        let failed = matches!(message::code_of(reply), Some(code) if code == Code::ServerFailure as u16 || code == Code::Refused as u16);
        if failed && pending.upstream + 1 < upstreams.len().min(MAX_UPSTREAMS) {
            return self.on_failure(key, upstreams, now_ms);
        }
        let mut bytes = reply.to_vec();
        message::set_id(&mut bytes, pending.query.id);
        let client = pending.client;
        self.pending.remove(&key);
        Step::Finish { client, bytes }
    }

    /// The upstream could not be asked, or its time is up: the next one, or failure.
    pub fn on_failure(&mut self, key: u64, upstreams: &[Upstream], now_ms: u64) -> Step {
        let Some(pending) = self.pending.get_mut(&key) else { return Step::Ignore };
        pending.upstream += 1;
        if pending.upstream < upstreams.len().min(MAX_UPSTREAMS) {
            pending.deadline_ms = now_ms + TIMEOUT_MS;
            return Step::Send { upstream: pending.upstream, bytes: pending.request.clone() };
        }
        let step = Step::Finish { client: pending.client, bytes: pending.query.empty(Code::ServerFailure) };
        self.pending.remove(&key);
        step
    }

    /// Keys whose time is up.
    pub fn due(&self, now_ms: u64) -> Vec<u64> {
        self.pending.iter().filter(|(_, p)| p.deadline_ms <= now_ms).map(|(key, _)| *key).collect()
    }

    /// When the next one's time is up.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.pending.values().map(|p| p.deadline_ms).min()
    }

    pub fn get(&self, key: u64) -> Option<&Pending> {
        self.pending.get(&key)
    }

    /// Forgets a question whose client has gone.
    pub fn forget(&mut self, key: u64) {
        self.pending.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::message::{parse_query, tests::question};
    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::new("MyNet");
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        zone.add(&["web".into(), "0123456789ab".into(), "Alias".into()], &[ip("10.0.0.2"), ip("fd00::2")]);
        zone.add(&["web2".into(), "alias".into()], &[ip("10.0.0.3")]);
        zone
    }

    fn ask(name: &str, kind: u16) -> Decision {
        let query = parse_query(&question(name, kind)).unwrap();
        decide(&query, &BTreeMap::from([("db".into(), "web2".into())]), &[&zone()], 512, 0)
    }

    fn answers(decision: &Decision) -> Option<u8> {
        match decision {
            Decision::Answer(bytes) => Some(bytes[7]),
            Decision::Forward => None,
        }
    }

    #[test]
    fn names_of_the_network_are_answered() {
        for (name, kind, wanted) in [
            ("web", TYPE_A, Some(1)),
            ("WEB.mynet", TYPE_A, Some(1)),
            ("alias", TYPE_A, Some(2)),
            ("alias", TYPE_AAAA, Some(1)),
            ("web2", TYPE_AAAA, Some(0)),
            ("web", TYPE_MX, Some(0)),
            ("db", TYPE_A, Some(1)),
            ("0123456789ab", TYPE_A, Some(1)),
            ("2.0.0.10.in-addr.arpa", TYPE_PTR, Some(1)),
            ("9.0.0.10.in-addr.arpa", TYPE_PTR, None),
            ("example.org", TYPE_A, None),
            ("web.other", TYPE_A, None),
            ("web", 16, None),
        ] {
            assert_eq!(answers(&ask(name, kind)), wanted, "{name} {kind}");
        }
        let Decision::Answer(bytes) = ask("2.0.0.10.in-addr.arpa", TYPE_PTR) else { panic!() };
        assert!(bytes.ends_with(b"\x03web\x05mynet\0"));
    }

    #[test]
    fn endpoints_that_leave_take_only_their_own_addresses() {
        let mut zone = zone();
        zone.remove(&["web".into(), "alias".into()], &["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]);
        assert_eq!(zone.find("web"), None);
        assert_eq!(zone.find("alias"), Some(&["10.0.0.3".parse().unwrap()][..]));
    }

    #[test]
    fn answers_take_turns() {
        let query = parse_query(&question("alias", TYPE_A)).unwrap();
        let first = |turn| match decide(&query, &BTreeMap::new(), &[&zone()], 512, turn) {
            Decision::Answer(bytes) => bytes[bytes.len() - 1],
            Decision::Forward => 0,
        };
        assert_ne!(first(0), first(1));
        assert_eq!(first(0), first(2));
    }

    fn upstreams(n: usize) -> Vec<Upstream> {
        let server = crate::network::resolv_conf::Server { address: "10.9.9.9".parse().unwrap(), zone: String::new() };
        vec![Upstream { server, from_host: false }; n]
    }

    fn reply(query: &Query, id: u16, code: Code) -> Vec<u8> {
        let mut bytes = query.empty(code);
        message::set_id(&mut bytes, id);
        bytes
    }

    #[test]
    fn a_forwarded_question_comes_back_with_the_clients_id() {
        let bytes = question("example.org", TYPE_A);
        let query = parse_query(&bytes).unwrap();
        let mut forwards = Forwards::default();
        let client = Client::Udp("127.0.0.1:5000".parse().unwrap());
        let asked = |id| Question { query: query.clone(), request: bytes.clone(), client, id };
        let Step::Send { upstream: 0, bytes: sent } = forwards.begin(7, asked(0xabcd), &upstreams(2), 0) else { panic!() };
        assert_eq!((&sent[..2], &sent[2..]), (&[0xab, 0xcd][..], &bytes[2..]));
        assert_eq!(forwards.on_reply(7, &reply(&query, 1, Code::Success), &upstreams(2), 1), Step::Ignore);
        assert_eq!(
            forwards.on_reply(7, &reply(&query, 0xabcd, Code::Success), &upstreams(2), 1),
            Step::Finish { client, bytes: query.empty(Code::Success) }
        );
        assert_eq!(forwards.next_deadline_ms(), None);
    }

    #[test]
    fn failing_upstreams_hand_over_to_the_next() {
        let bytes = question("example.org", TYPE_A);
        let query = parse_query(&bytes).unwrap();
        let mut forwards = Forwards::default();
        let (client, ups) = (Client::Tcp(3), upstreams(2));
        let asked = Question { query: query.clone(), request: bytes, client, id: 9 };
        forwards.begin(7, asked.clone(), &ups, 0);
        assert!(matches!(forwards.on_reply(7, &reply(&query, 9, Code::Refused), &ups, 5), Step::Send { upstream: 1, .. }));
        assert_eq!(forwards.due(TIMEOUT_MS), [0u64; 0]);
        assert_eq!(forwards.due(TIMEOUT_MS + 5), [7]);
        let Step::Finish { bytes, .. } = forwards.on_failure(7, &ups, TIMEOUT_MS + 5) else { panic!() };
        assert_eq!(message::code_of(&bytes), Some(Code::ServerFailure as u16));
        let Step::Finish { bytes, .. } = forwards.begin(8, asked, &[], 0) else { panic!() };
        assert_eq!(message::code_of(&bytes), Some(Code::ServerFailure as u16));
    }
}
