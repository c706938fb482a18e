//! D-Bus messages as bytes (D-Bus specification, "Message Protocol"): just what talking to systemd needs.

use super::systemd::Property;

/// Larger messages are refused: systemd's answers here are some hundred bytes.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Every message starts with this many bytes: the fixed fields and the length of the array of header fields.
pub const FIXED_HEADER: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
}

/// Writes values in the machine's own byte order, each aligned to its size.
#[derive(Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub fn number(&mut self, n: u32) -> &mut Self {
        self.align(4);
        self.bytes.extend(n.to_ne_bytes());
        self
    }

    fn wide_number(&mut self, n: u64) {
        self.align(8);
        self.bytes.extend(n.to_ne_bytes());
    }

    pub fn flag(&mut self, on: bool) -> &mut Self {
        self.number(u32::from(on))
    }

    /// Strings and object paths.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.number(length(text.len()));
        self.bytes.extend(text.bytes());
        self.bytes.push(0);
        self
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(u8::try_from(signature.len()).unwrap_or(0));
        self.bytes.extend(signature.bytes());
        self.bytes.push(0);
    }

    /// An array: its length in bytes, a gap up to the elements' alignment that is not counted, the elements.
    fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.number(0);
        let at = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        elements(self);
        let counted = length(self.bytes.len() - start).to_ne_bytes();
        if let Some(place) = self.bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&counted);
        }
    }

    /// `a(sv)`.
    pub fn properties<'a>(&mut self, list: impl IntoIterator<Item = (&'a str, &'a Property)>) -> &mut Self {
        self.array(8, |all| {
            for (name, value) in list {
                all.align(8);
                all.text(name);
                all.variant(value);
            }
        });
        self
    }

    /// An empty array of structs.
    pub fn no_structs(&mut self) -> &mut Self {
        self.array(8, |_| {});
        self
    }

    fn variant(&mut self, value: &Property) {
        match value {
            Property::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Property::Flag(on) => {
                self.signature("b");
                self.flag(*on);
            }
            Property::Number(n) => {
                self.signature("t");
                self.wide_number(*n);
            }
            Property::Mask(mask) => {
                self.signature("ay");
                self.array(1, |all| all.bytes.extend(mask));
            }
            Property::Pids(pids) => {
                self.signature("au");
                self.array(4, |all| {
                    for pid in pids {
                        all.number(*pid);
                    }
                });
            }
        }
    }
}

fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Whom a call goes to, and what it is called.
pub struct Address<'a> {
    /// The bus name; `None` on a connection without a bus.
    pub destination: Option<&'a str>,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
}

/// A method call, whole. `signature` describes what `body` has been given.
pub fn call(serial: u32, to: &Address, signature: &str, body: &Encoder) -> Vec<u8> {
    let mut message = Encoder::default();
    let order = if cfg!(target_endian = "little") { b'l' } else { b'B' };
    message.bytes.extend([order, Kind::Call as u8, 0, 1]);
    message.number(length(body.bytes.len())).number(serial);
    message.array(8, |fields| {
        let mut field = |code: u8, kind: &str, text: &str| {
            fields.align(8);
            fields.bytes.push(code);
            fields.signature(kind);
            match kind {
                "g" => fields.signature(text),
                _ => _ = fields.text(text),
            }
        };
        field(1, "o", to.path);
        field(2, "s", to.interface);
        field(3, "s", to.member);
        if let Some(destination) = to.destination {
            field(6, "s", destination);
        }
        if !signature.is_empty() {
            field(8, "g", signature);
        }
    });
    message.align(8);
    message.bytes.extend(&body.bytes);
    message.bytes
}

/// A received message: who it answers or what it tells, and its body.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    /// The serial of the call that it answers.
    pub reply_to: u32,
    pub member: String,
    pub error_name: String,
    pub signature: String,
    body: Vec<u8>,
    little: bool,
}

impl Message {
    /// The length of the whole message of which these are the first [`FIXED_HEADER`] bytes; `None` when it is none, or too long.
    pub fn length(start: &[u8]) -> Option<usize> {
        let little = byte_order(start)?;
        let mut reader = Decoder { bytes: start, at: 4, little };
        let body = usize::try_from(reader.number()?).ok()?;
        reader.at = 12;
        let fields = usize::try_from(reader.number()?).ok()?;
        let total = FIXED_HEADER.checked_add(fields)?.checked_next_multiple_of(8)?.checked_add(body)?;
        (total <= MAX_MESSAGE).then_some(total)
    }

    /// Reads a whole message; `None` when it is malformed.
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let little = byte_order(bytes)?;
        let kind = *bytes.get(1)?;
        let mut reader = Decoder { bytes, at: 12, little };
        let end = usize::try_from(reader.number()?).ok()?.checked_add(FIXED_HEADER)?;
        let empty = String::new;
        let mut message = Message { kind, reply_to: 0, member: empty(), error_name: empty(), signature: empty(), body: Vec::new(), little };
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            let signature = reader.signature()?;
            match (code, signature.as_str()) {
                (5, "u") => message.reply_to = reader.number()?,
                (3, "s") => message.member = reader.text()?,
                (4, "s") => message.error_name = reader.text()?,
                (8, "g") => message.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.number()?),
                _ => return None,
            }
        }
        message.body = bytes.get(end.checked_next_multiple_of(8)?..)?.to_vec();
        Some(message)
    }

    /// The strings, object paths and 32-bit numbers (as text) that the body begins with.
    pub fn texts(&self) -> Vec<String> {
        let mut reader = Decoder { bytes: &self.body, at: 0, little: self.little };
        let mut texts = Vec::new();
        for kind in self.signature.chars() {
            let text = match kind {
                's' | 'o' => reader.text(),
                'u' | 'b' => reader.number().map(|n| n.to_string()),
                _ => None,
            };
            match text {
                Some(text) => texts.push(text),
                None => break,
            }
        }
        texts
    }
}

fn byte_order(start: &[u8]) -> Option<bool> {
    match start.first()? {
        b'l' => Some(true),
        b'B' => Some(false),
        _ => None,
    }
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    little: bool,
}

impl Decoder<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let little = self.little;
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn text(&mut self) -> Option<String> {
        let count = usize::try_from(self.number()?).ok()?;
        self.terminated(count)
    }

    fn signature(&mut self) -> Option<String> {
        let count = usize::from(self.byte()?);
        self.terminated(count)
    }

    fn terminated(&mut self, count: usize) -> Option<String> {
        let text = String::from_utf8(self.take(count)?.to_vec()).ok()?;
        (self.byte()? == 0).then_some(text)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What the other side would send: an answer to `reply_to`, or an error or a signal called `name`.
    pub(crate) fn answer(kind: u8, reply_to: u32, name: &str, signature: &str, texts: &[&str]) -> Vec<u8> {
        let mut message = Encoder::default();
        message.bytes.extend([if cfg!(target_endian = "little") { b'l' } else { b'B' }, kind, 0, 1]);
        let mut body = Encoder::default();
        for (kind, text) in signature.chars().zip(texts) {
            _ = if kind == 'u' { body.number(text.parse().unwrap()) } else { body.text(text) };
        }
        message.number(length(body.bytes.len())).number(77);
        message.array(8, |fields| {
            fields.bytes.push(5);
            fields.signature("u");
            fields.number(reply_to);
            for (code, kind, text) in [(if kind == 3 { 4 } else { 3 }, "s", name), (8, "g", signature)] {
                fields.align(8);
                fields.bytes.push(code);
                fields.signature(kind);
                match kind {
                    "g" => fields.signature(text),
                    _ => _ = fields.text(text),
                }
            }
        });
        message.align(8);
        message.bytes.extend(&body.bytes);
        message.bytes
    }

    fn systemd(member: &'static str) -> Address<'static> {
        Address { destination: Some("org.freedesktop.systemd1"), path: "/org/freedesktop/systemd1", interface: "a.b", member }
    }

    #[test]
    fn values_are_aligned_as_the_specification_says() {
        let mut body = Encoder::default();
        body.text("ab").flag(true);
        assert_eq!(body.bytes.len(), 4 + 3 + 1 + 4, "the string's end, a gap, the number");
        let mut body = Encoder::default();
        body.properties([("X", &Property::Number(7))]);
        // Length and gap; "X" at 8 (4 + 1 + 1), its signature "t" (3 bytes) up to 17, a gap up to 24, the number.
        assert_eq!(body.bytes.len(), 32);
        assert_eq!(body.bytes[..4], 24u32.to_ne_bytes());
        assert_eq!(body.bytes[24..], 7u64.to_ne_bytes());
        let mut body = Encoder::default();
        body.properties([("P", &Property::Pids(vec![1, 2])), ("M", &Property::Mask(vec![3]))]);
        assert_eq!(body.bytes.last(), Some(&3));
    }

    #[test]
    fn a_call_is_read_back_as_it_was_written() {
        let mut body = Encoder::default();
        body.text("unit.scope").text("fail").number(9);
        let bytes = call(5, &systemd("StopUnit"), "ssu", &body);
        assert_eq!(Message::length(&bytes), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str(), message.signature.as_str()), (1, "StopUnit", "ssu"));
        assert_eq!(message.texts(), ["unit.scope", "fail", "9"]);
    }

    #[test]
    fn the_other_byte_order_is_understood() {
        let mut bytes = vec![b'B', 2, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 15];
        bytes.extend([5, 1, b'u', 0, 0, 0, 0, 7]); // reply to 7
        bytes.extend([8, 1, b'g', 0, 1, b's', 0, 0]); // signature "s", and the gap
        bytes.extend([0, 0, 0, 3, b'a', b'b', b'c', 0]);
        assert_eq!(Message::length(&bytes), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.reply_to, message.texts()), (7, vec!["abc".to_owned()]));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let bytes = call(5, &systemd("X"), "", &Encoder::default());
        for end in 0..bytes.len() {
            // Cut anywhere it is malformed, or its body is: nothing panics.
            let _ = Message::parse(&bytes[..end]);
        }
        let mut huge = bytes.clone();
        huge[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(Message::length(&huge), None);
        let mut fields = bytes;
        fields[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!((Message::length(&fields), Message::parse(&fields)), (None, None));
    }
}
