//! One entry of Docker's json-file format: `{"log":"text\n","stream":"stdout","time":"…"}`, byte for byte.

use super::Stream;
use super::split::Message;
use crate::timestamp;

/// Appends an entry and its newline. `attributes` is a JSON object's text, or "".
pub fn append(out: &mut Vec<u8>, stream: Stream, message: &Message, attributes: &str, time: &str) {
    out.extend_from_slice(b"{");
    if !message.text.is_empty() || message.ends_line {
        out.extend_from_slice(b"\"log\":\"");
        escape(out, message.text);
        if message.ends_line {
            out.extend_from_slice(b"\\n");
        }
        out.extend_from_slice(b"\",");
    }
    out.extend_from_slice(b"\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    if !attributes.is_empty() {
        out.extend_from_slice(b"\",\"attrs\":");
        out.extend_from_slice(attributes.as_bytes());
        out.extend_from_slice(b",\"time\":\"");
    } else {
        out.extend_from_slice(b"\",\"time\":\"");
    }
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\"}\n");
}

/// Bytes that stand for themselves in the format's strings.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte: u8 = 0x20;
    while byte < 0x80 {
        plain[byte as usize] = !matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&');
        byte += 1;
    }
    plain
};

/// JSON-escapes as the reference's encoder does; what is not UTF-8 becomes `\ufffd`, byte by byte.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let plain = rest.iter().position(|b| !PLAIN[usize::from(*b)]).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        let Some(byte) = rest.first() else { return };
        let mut taken = 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f | b'<' | b'>' | b'&' => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(crate::hex::encode(&[*byte]).as_bytes());
            }
            _ => {
                taken = character(rest);
                match &rest[..taken] {
                    [0xe2, 0x80, 0xa8] => out.extend_from_slice(b"\\u2028"),
                    [0xe2, 0x80, 0xa9] => out.extend_from_slice(b"\\u2029"),
                    [byte] if *byte >= 0x80 => {
                        taken = 1;
                        out.extend_from_slice(b"\\ufffd");
                    }
                    whole => out.extend_from_slice(whole),
                }
            }
        }
        rest = &rest[taken..];
    }
}

/// The length of the UTF-8 character at the start; 1 for a byte that starts none.
fn character(text: &[u8]) -> usize {
    let length = match text.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => 1,
    };
    if text.get(..length).is_some_and(|bytes| str::from_utf8(bytes).is_ok()) { length } else { 1 }
}

/// An entry as it is read back. `text` includes the newline where the entry has one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub text: Vec<u8>,
    pub stderr: bool,
    pub time_ns: i64,
    /// The time as written.
    pub time: String,
    /// `attrs`' JSON text, or "".
    pub attributes: String,
}

/// Parses one line of the file (without its newline); `None` for a torn or foreign one.
pub fn parse(line: &[u8]) -> Option<Entry> {
    parse_own(line).or_else(|| parse_any(line))
}

/// The exact shape that [`append`] writes without attributes: no general parser in the hot path.
fn parse_own(line: &[u8]) -> Option<Entry> {
    let rest = line.strip_prefix(b"{\"log\":\"")?;
    let mut text = Vec::with_capacity(rest.len());
    let mut at = 0;
    loop {
        let stop = at + memchr::memchr2(b'"', b'\\', &rest[at..])?;
        text.extend_from_slice(&rest[at..stop]);
        if rest[stop] == b'"' {
            at = stop + 1;
            break;
        }
        at = stop + 2;
        match rest.get(stop + 1)? {
            b'n' => text.push(b'\n'),
            b'r' => text.push(b'\r'),
            b't' => text.push(b'\t'),
            escaped @ (b'"' | b'\\' | b'/') => text.push(*escaped),
            b'u' => {
                let hex = str::from_utf8(rest.get(at..at + 4)?).ok()?;
                let c = char::from_u32(u32::from_str_radix(hex, 16).ok()?)?;
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                at += 4;
            }
            _ => return None,
        }
    }
    let rest = rest[at..].strip_prefix(b",\"stream\":\"std")?;
    let (stderr, rest) = match rest.strip_prefix(b"out\",\"time\":\"") {
        Some(rest) => (false, rest),
        None => (true, rest.strip_prefix(b"err\",\"time\":\"")?),
    };
    let time = str::from_utf8(rest.strip_suffix(b"\"}")?).ok()?;
    Some(Entry { text, stderr, time_ns: timestamp::parse_rfc3339(time)?, time: time.to_string(), attributes: String::new() })
}

fn parse_any(line: &[u8]) -> Option<Entry> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    let time = value.get("time")?.as_str()?;
    let attributes = value.get("attrs").filter(|a| !a.is_null()).map(ToString::to_string).unwrap_or_default();
    Some(Entry {
        text: value.get("log").and_then(|v| v.as_str()).unwrap_or_default().as_bytes().to_vec(),
        stderr: value.get("stream").and_then(|v| v.as_str()) == Some("stderr"),
        time_ns: timestamp::parse_rfc3339(time)?,
        time: time.to_string(),
        attributes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &[u8], ends_line: bool) -> String {
        let mut out = Vec::new();
        append(&mut out, Stream::Stdout, &Message { text, ends_line, time_ns: 0 }, "", "1970-01-01T00:00:00Z");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn entries_are_the_format_s_bytes() {
        assert_eq!(written(b"hi", true), "{\"log\":\"hi\\n\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:00Z\"}\n");
        assert_eq!(
            written("a\"\\\t\x01<é>\u{2028}".as_bytes(), false),
            "{\"log\":\"a\\\"\\\\\\t\\u0001\\u003cé\\u003e\\u2028\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:00Z\"}\n"
        );
        assert!(written(b"\xff\xc3", true).contains("\\ufffd\\ufffd\\n"));
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in ["plain", "q\"\\\t<&>\u{1}é\u{2029}", ""] {
            let line = written(text.as_bytes(), true);
            let entry = parse(line.trim_end().as_bytes()).unwrap();
            assert_eq!(entry.text, format!("{text}\n").into_bytes());
        }
        assert_eq!(parse(b"{\"log\":\"torn"), None);
        let with = parse(br#"{"log":"x\n","stream":"stderr","attrs":{"a":"b"},"time":"1970-01-01T00:00:01Z"}"#).unwrap();
        assert!(with.stderr && with.time_ns == 1_000_000_000 && with.attributes == r#"{"a":"b"}"#);
    }
}
