//! Netlink messages as bytes: a builder that pads and nests, and a bounded reader.
//!
//! Layout as in netlink(7) and rtnetlink(7): a 16 byte header, a fixed part, then attributes of
//! `{length: u16, kind: u16, value}`, each padded to four bytes; host byte order throughout.

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// Attribute kinds carry two flag bits on top.
const KIND_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// One request under construction.
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// A message of `kind` (RTM_*, NFT_MSG_* …); NLM_F_REQUEST is always set.
    pub fn new(kind: u16, flags: u16) -> Message {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | flag(libc::NLM_F_REQUEST)).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Message(bytes)
    }

    /// Appends the fixed part that follows the header.
    pub fn fixed(mut self, part: &[u8]) -> Message {
        self.0.extend_from_slice(part);
        self.pad();
        self
    }

    /// Appends one attribute.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Message {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    pub fn u8(self, kind: u16, value: u8) -> Message {
        self.attr(kind, &[value])
    }
    pub fn u16(self, kind: u16, value: u16) -> Message {
        self.attr(kind, &value.to_ne_bytes())
    }
    pub fn u32(self, kind: u16, value: u32) -> Message {
        self.attr(kind, &value.to_ne_bytes())
    }
    /// Network byte order, as nf_tables wants its numbers.
    pub fn be32(self, kind: u16, value: u32) -> Message {
        self.attr(kind, &value.to_be_bytes())
    }

    /// A NUL-terminated string.
    pub fn text(self, kind: u16, value: &str) -> Message {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An attribute that holds what `fill` appends.
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = u16::try_from(filled.0.len() - start).unwrap_or(u16::MAX);
        filled.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// Appends the attribute only when there is a value.
    pub fn when<T>(self, value: Option<T>, append: impl FnOnce(Message, T) -> Message) -> Message {
        match value {
            Some(value) => append(self, value),
            None => self,
        }
    }

    /// The finished bytes; the sequence number is set by the socket that sends them.
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A libc flag constant (c_int) in the 16 bits that the header has for it.
pub fn flag(value: libc::c_int) -> u16 {
    u16::try_from(value).unwrap_or(0)
}

/// Writes `sequence` into finished bytes.
pub fn set_sequence(message: &mut [u8], sequence: u32) {
    if let Some(field) = message.get_mut(8..12) {
        field.copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// One received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// Splits a datagram into its messages; stops at the first whose length does not fit.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let payload = datagram.get(HEADER..length)?;
        let message = Received { kind: u16_at(datagram, 4)?, flags: u16_at(datagram, 6)?, sequence: u32_at(datagram, 8)?, payload };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes in `bytes`, as (kind without flag bits, value); stops at the first whose length does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & KIND_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The first attribute of `kind`.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A string attribute up to its NUL; not UTF-8 reads as empty.
pub fn text_of(value: &[u8]) -> &str {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_messages_read_back() {
        let bytes = Message::new(16, 5)
            .fixed(&[1, 2, 3, 4])
            .text(3, "eth0")
            .nest(18, |m| m.text(1, "veth").nest(2, |m| m.u32(7, 42)))
            .u16(9, 77)
            .finish();
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.payload.len() % 4), (16, 5, 0));
        let body = &message.payload[4..];
        assert_eq!(text_of(attribute(body, 3).unwrap()), "eth0");
        let data = attribute(attribute(body, 18).unwrap(), 2).unwrap();
        assert_eq!(u32_at(attribute(data, 7).unwrap(), 0), Some(42));
        assert_eq!(attribute(body, 9), Some(&77u16.to_ne_bytes()[..]));
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        for bytes in [&[0u8; 16][..], &[255; 40], &[5, 0, 0, 0], &[20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]] {
            assert_eq!(messages(bytes).count(), 0);
        }
        assert_eq!(attributes(&[3, 0, 1, 0, 9, 9]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1, 0, 200, 0, 1, 0]).count(), 1);
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..20_000 {
            let mut bytes = [0u8; 64];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = state.to_le_bytes()[5] & 31;
            }
            for message in messages(&bytes) {
                attributes(message.payload).for_each(drop);
            }
        }
    }
}
