//! DNS messages (RFC 1035, 6891): one bounded question in, small answers out. Nothing here knows networks.

use std::net::IpAddr;

pub const TYPE_A: u16 = 1;
pub const TYPE_PTR: u16 = 12;
pub const TYPE_MX: u16 = 15;
pub const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
/// Seconds that clients may keep an answer: the reference's 600.
const TTL: u32 = 600;
const HEADER: usize = 12;
/// The longest question: a name of 255 bytes, type, class.
const MAX_QUESTION: usize = 255 + 4;
/// What a client without EDNS takes over UDP, bytes.
pub const PLAIN_UDP: usize = 512;
/// The largest answer of ours over UDP, whatever the client offers: it stays below the usual path MTU's fragments twice over.
const MAX_UDP: usize = 4096;

const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;
const OPCODE: u16 = 0x7800;

/// Response codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Success = 0,
    FormatError = 1,
    ServerFailure = 2,
    NotImplemented = 4,
    Refused = 5,
}

/// A question with all that its answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub id: u16,
    recursion_desired: bool,
    /// Lower case, labels joined by dots, no dot at the end.
    pub name: String,
    pub kind: u16,
    pub class: u16,
    /// The question as it came, for the answer.
    question: Vec<u8>,
    /// Bytes the client takes over UDP.
    pub udp_size: usize,
}

/// Reads a question. `Err(Some(code))` is to be answered with that code, `Err(None)` not at all.
pub fn parse_query(bytes: &[u8]) -> Result<Query, Option<Code>> {
    let field = |at: usize| u16_at(bytes, at).ok_or(None);
    let (id, flags) = (field(0)?, field(2)?);
    let (questions, additional) = (field(4)?, field(10)?);
    if flags & FLAG_RESPONSE != 0 {
        return Err(None);
    }
    if flags & OPCODE != 0 {
        return Err(Some(Code::NotImplemented));
    }
    if questions != 1 || field(6)? != 0 || field(8)? != 0 {
        return Err(Some(Code::FormatError));
    }
    let (name, end) = read_name(bytes, HEADER).ok_or(Some(Code::FormatError))?;
    let kind = u16_at(bytes, end).ok_or(Some(Code::FormatError))?;
    let class = u16_at(bytes, end + 2).ok_or(Some(Code::FormatError))?;
    let end = end + 4;
    let question = bytes.get(HEADER..end).filter(|q| q.len() <= MAX_QUESTION).ok_or(Some(Code::FormatError))?.to_vec();
    let udp_size = if additional > 0 { edns_size(bytes, end).unwrap_or(PLAIN_UDP) } else { PLAIN_UDP };
    Ok(Query { id, recursion_desired: flags & FLAG_RECURSION_DESIRED != 0, name, kind, class, question, udp_size })
}

/// The requester's payload size of an OPT record that comes first among the additional ones.
fn edns_size(bytes: &[u8], at: usize) -> Option<usize> {
    (*bytes.get(at)? == 0 && u16_at(bytes, at + 1)? == TYPE_OPT)
        .then(|| u16_at(bytes, at + 3))
        .flatten()
        .map(|size| usize::from(size).clamp(PLAIN_UDP, MAX_UDP))
}

/// A name without compression (a question needs none): its text, and where it ends.
fn read_name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        if length > 63 || name.len() + length > 254 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in bytes.get(at..at + length)? {
            // A dot or a control character inside a label could pass for another name.
            if !byte.is_ascii_graphic() || *byte == b'.' {
                return None;
            }
            name.push(char::from(byte.to_ascii_lowercase()));
        }
        at += length;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl Query {
    /// An answer without records.
    pub fn empty(&self, code: Code) -> Vec<u8> {
        self.respond(code, &[], usize::MAX)
    }

    /// Addresses of the family that was asked for; over UDP only as many as fit `limit` bytes.
    pub fn addresses(&self, addresses: &[IpAddr], limit: usize) -> Vec<u8> {
        let data: Vec<Vec<u8>> = addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            })
            .collect();
        self.respond(Code::Success, &data, limit)
    }

    /// Names for a reverse question.
    pub fn names(&self, names: &[String], limit: usize) -> Vec<u8> {
        let data: Vec<Vec<u8>> = names.iter().filter_map(|name| write_name(name)).collect();
        self.respond(Code::Success, &data, limit)
    }

    fn respond(&self, code: Code, records: &[Vec<u8>], limit: usize) -> Vec<u8> {
        let mut flags = FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | code as u16;
        if self.recursion_desired {
            flags |= FLAG_RECURSION_DESIRED;
        }
        let size = |record: &Vec<u8>| 12 + record.len();
        let mut room = limit.saturating_sub(HEADER + self.question.len());
        let fitting = records
            .iter()
            .take_while(|record| match room.checked_sub(size(record)) {
                Some(rest) => {
                    room = rest;
                    true
                }
                None => false,
            })
            .count();
        if fitting < records.len() {
            flags |= FLAG_TRUNCATED;
        }
        let mut bytes = header(self.id, flags, 1, fitting);
        bytes.extend_from_slice(&self.question);
        for record in &records[..fitting] {
            // The owner is the question's name, by pointer.
            bytes.extend_from_slice(&[0xc0, 12]);
            bytes.extend_from_slice(&self.kind.to_be_bytes());
            bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
            bytes.extend_from_slice(&TTL.to_be_bytes());
            bytes.extend_from_slice(&u16::try_from(record.len()).unwrap_or(0).to_be_bytes());
            bytes.extend_from_slice(record);
        }
        bytes
    }

    /// True when `reply` answers this question: same id (the one it was sent on with), a response, the same question.
    pub fn is_answered_by(&self, reply: &[u8], id: u16) -> bool {
        let response = u16_at(reply, 2).is_some_and(|flags| flags & FLAG_RESPONSE != 0);
        let question = reply.get(HEADER..HEADER + self.question.len());
        response
            && u16_at(reply, 0) == Some(id)
            && u16_at(reply, 4) == Some(1)
            && question.is_some_and(|q| q.eq_ignore_ascii_case(&self.question))
    }

    pub fn is_internet(&self) -> bool {
        self.class == CLASS_IN
    }

    /// The address that a reverse question asks for.
    pub fn reverse_address(&self) -> Option<IpAddr> {
        if let Some(labels) = self.name.strip_suffix(".in-addr.arpa") {
            let mut octets = [0; 4];
            let mut labels = labels.rsplit('.');
            for octet in &mut octets {
                *octet = labels.next()?.parse().ok()?;
            }
            return labels.next().is_none().then(|| octets.into());
        }
        let labels = self.name.strip_suffix(".ip6.arpa")?;
        let mut octets = [0u8; 16];
        let mut labels = labels.rsplit('.');
        for octet in &mut octets {
            for _ in 0..2 {
                let label = labels.next().filter(|l| l.len() == 1)?;
                *octet = (*octet << 4) | u8::from_str_radix(label, 16).ok()?;
            }
        }
        labels.next().is_none().then(|| octets.into())
    }
}

/// An answer to something that is not even a question: the header with the client's id.
pub fn refuse(bytes: &[u8], code: Code) -> Option<Vec<u8>> {
    let opcode = u16_at(bytes, 2)? & OPCODE;
    Some(header(u16_at(bytes, 0)?, FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | opcode | code as u16, 0, 0))
}

fn header(id: u16, flags: u16, questions: u16, answers: usize) -> Vec<u8> {
    let answers = u16::try_from(answers).unwrap_or(u16::MAX);
    [id, flags, questions, answers, 0, 0].iter().flat_map(|field| field.to_be_bytes()).collect()
}

/// A name as length-prefixed labels; `None` when a label or the whole is too long.
fn write_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|l| (1..=63).contains(l))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

/// Puts another id into a message: ours on the way up, the client's on the way down.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.get_mut(..2) {
        field.copy_from_slice(&id.to_be_bytes());
    }
}

/// The response code of a reply; `None` when it is too short.
pub fn code_of(reply: &[u8]) -> Option<u16> {
    u16_at(reply, 2).map(|flags| flags & 15)
}

/// True when a reply says that it was cut.
pub fn is_truncated(reply: &[u8]) -> bool {
    u16_at(reply, 2).is_some_and(|flags| flags & FLAG_TRUNCATED != 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A question as a client's resolver makes it.
    pub(crate) fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = header(0x1234, FLAG_RECURSION_DESIRED, 1, 0);
        bytes.extend(write_name(name).unwrap());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
        bytes
    }

    #[test]
    fn questions_are_read_and_answered() {
        let query = parse_query(&question("Web.Example", TYPE_A)).unwrap();
        assert_eq!((query.id, query.name.as_str(), query.kind, query.udp_size), (0x1234, "web.example", TYPE_A, 512));
        let reply = query.addresses(&["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()], 512);
        assert_eq!(&reply[..8], [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 2]);
        assert!(reply.ends_with(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 2, 88, 0, 4, 10, 0, 0, 3]));
        assert!(query.is_answered_by(&reply, 0x1234) && !query.is_answered_by(&reply, 0x1235));
    }

    #[test]
    fn what_does_not_fit_is_cut_and_says_so() {
        let query = parse_query(&question("a", TYPE_A)).unwrap();
        let many: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let reply = query.addresses(&many, 512);
        assert!(reply.len() <= 512 && is_truncated(&reply));
        assert!(!is_truncated(&query.addresses(&many, 65535)));
    }

    #[test]
    fn edns_tells_the_clients_size() {
        let mut bytes = question("a", TYPE_A);
        bytes[11] = 1;
        bytes.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse_query(&bytes).unwrap().udp_size, 4096);
    }

    #[test]
    fn malformed_questions_are_refused() {
        assert_eq!(parse_query(&[0; 5]), Err(None));
        let good = question("a.b", TYPE_A);
        assert_eq!(parse_query(&good[..14]), Err(Some(Code::FormatError)));
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            parse_query(&bytes)
        };
        assert_eq!(with(2, 0x80), Err(None));
        assert_eq!(with(2, 0x28), Err(Some(Code::NotImplemented)));
        assert_eq!(with(5, 2), Err(Some(Code::FormatError)));
        assert_eq!(with(12, 0xc0), Err(Some(Code::FormatError)));
        assert_eq!(with(13, b'.'), Err(Some(Code::FormatError)));
        assert_eq!(with(13, 0), Err(Some(Code::FormatError)));
    }

    #[test]
    fn reverse_names_are_addresses() {
        let reverse = |name: &str| parse_query(&question(name, TYPE_PTR)).unwrap().reverse_address();
        assert_eq!(reverse("2.0.17.172.in-addr.arpa"), Some("172.17.0.2".parse().unwrap()));
        assert_eq!(reverse("17.172.in-addr.arpa"), None);
        assert_eq!(reverse("1.2.0.17.172.in-addr.arpa"), None);
        let v6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reverse(v6), Some("fd00::2".parse().unwrap()));
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut state = 88_172_645_463_325_252u64;
        for _ in 0..50_000 {
            let mut bytes = question("ab.c", TYPE_A);
            for _ in 0..4 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = usize::try_from(state).unwrap_or(0) % bytes.len();
                bytes[at] = state.to_le_bytes()[7];
            }
            if let Ok(query) = parse_query(&bytes) {
                query.empty(Code::Success);
                query.reverse_address();
            }
        }
    }
}
