//! DNS messages (RFC 1035): one question out, addresses in. Bytes only; `resolver` sends them.

use std::net::IpAddr;

pub const TYPE_A: u16 = 1;
pub const TYPE_AAAA: u16 = 28;
const TYPE_CNAME: u16 = 5;
const CLASS_IN: u16 = 1;
/// A name pointer may be followed this often before the message counts as malformed.
const POINTERS_MAX: usize = 32;

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Addresses(Vec<IpAddr>),
    /// The name does not exist.
    NoSuchName,
    /// Cut off: ask again by TCP.
    Truncated,
    /// Refused or failed: ask another server.
    Failed,
}

/// The bytes of a recursive query; `None` for a name that DNS cannot carry.
pub fn query(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 18);
    for word in [id, 0x0100, 1, 0, 0, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    let name = name.trim_end_matches('.');
    if name.is_empty() || name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?;
        out.push(length);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    Some(out)
}

/// Reads the answer to `query`; `None` when it is not one (another id or question, or malformed).
pub fn reply(query: &[u8], message: &[u8], kind: u16) -> Option<Reply> {
    let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let flags = word(2)?;
    let question = query.get(12..)?;
    let same = word(0)? == u16::from_be_bytes([*query.first()?, *query.get(1)?])
        && flags & 0x8000 != 0
        && word(4)? == 1
        && message.get(12..12 + question.len())?.eq_ignore_ascii_case(question);
    if !same {
        return None;
    }
    match flags & 0x0f {
        0 => {}
        3 => return Some(Reply::NoSuchName),
        _ => return Some(Reply::Failed),
    }
    if flags & 0x0200 != 0 {
        return Some(Reply::Truncated);
    }
    let mut wanted = name_at(message, 12)?.0;
    let mut at = 12 + question.len();
    let mut found = Vec::new();
    for _ in 0..word(6)? {
        let (owner, next) = name_at(message, at)?;
        let (record, class, length) = (word(next)?, word(next + 2)?, usize::from(word(next + 8)?));
        let data = message.get(next + 10..next + 10 + length)?;
        if owner == wanted && class == CLASS_IN {
            match (record, data) {
                (TYPE_CNAME, _) => wanted = name_at(message, next + 10)?.0,
                (TYPE_A, data) if kind == TYPE_A => found.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
                (TYPE_AAAA, data) if kind == TYPE_AAAA => found.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
                _ => {}
            }
        }
        at = next + 10 + length;
    }
    Some(Reply::Addresses(found))
}

/// A name, lower case, and where the bytes after it begin.
fn name_at(message: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let mut name = Vec::new();
    let mut after = None;
    let mut pointers = 0;
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some((name, after.unwrap_or(at + 1))),
            1..=63 => {
                name.extend(message.get(at + 1..at + 1 + length)?.to_ascii_lowercase());
                name.push(b'.');
                at += 1 + length;
            }
            0xc0.. => {
                after.get_or_insert(at + 2);
                at = (length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                pointers += 1;
            }
            _ => return None,
        }
        if pointers > POINTERS_MAX || name.len() > 255 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(query: &[u8], flags: u16, records: &[u8], count: u16) -> Vec<u8> {
        let mut message = query.to_vec();
        message[2..4].copy_from_slice(&flags.to_be_bytes());
        message[6..8].copy_from_slice(&count.to_be_bytes());
        message.extend_from_slice(records);
        message
    }

    #[test]
    fn follows_an_alias_to_the_address() {
        let query = query(7, "a.Example", TYPE_A).unwrap();
        // a.example CNAME b.example (by pointer), b.example A 1.2.3.4
        let records = [
            &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 1, 0, 4, 1, b'b', 0xc0, 14][..],
            &[0xc0, 39, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 1, 2, 3, 4],
            &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 9, 9, 9, 9],
        ]
        .concat();
        let message = answer(&query, 0x8180, &records, 3);
        assert_eq!(reply(&query, &message, TYPE_A), Some(Reply::Addresses(vec!["1.2.3.4".parse().unwrap()])));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let query = query(7, "a.example", TYPE_A).unwrap();
        assert_eq!(reply(&query, &answer(&query, 0x8183, &[], 0), TYPE_A), Some(Reply::NoSuchName));
        assert_eq!(reply(&query, &answer(&query, 0x8182, &[], 0), TYPE_A), Some(Reply::Failed));
        assert_eq!(reply(&query, &answer(&query, 0x8380, &[], 0), TYPE_A), Some(Reply::Truncated));
        assert_eq!(reply(&query, &answer(&query, 0x0100, &[], 0), TYPE_A), None);
        let mut other = answer(&query, 0x8180, &[], 0);
        other[1] = 8;
        assert_eq!(reply(&query, &other, TYPE_A), None);
        // a pointer to itself, and a record beyond the end
        assert_eq!(reply(&query, &answer(&query, 0x8180, &[0xc0, 27, 0, 1, 0, 1], 1), TYPE_A), None);
        assert_eq!(reply(&query, &answer(&query, 0x8180, &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 40], 1), TYPE_A), None);
        assert_eq!(reply(&query, b"\0\x07", TYPE_A), None);
    }

    #[test]
    fn names_that_dns_cannot_carry() {
        assert!(super::query(1, "", TYPE_A).is_none());
        assert!(super::query(1, "a..b", TYPE_A).is_none());
        assert!(super::query(1, &"x".repeat(64), TYPE_A).is_none());
        assert!(super::query(1, "host.", TYPE_A).is_some());
    }
}
