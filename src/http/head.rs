//! Request heads: parsed by httparse, then held to the rules that it leaves open (RFC 9112; a lenient head is how
//! requests get smuggled).

use super::Refusal;
use std::str::FromStr;
use tiny_http::Method;

/// Bytes of request line and headers together.
pub const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;
const MAX_TARGET: usize = 16 * 1024;

/// How the body is delimited (RFC 9112 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    /// Content-Length, bytes.
    Length(u64),
    Chunked,
}

/// A request's head.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: Method,
    /// Path as sent, still percent-encoded.
    pub path: String,
    /// What follows `?`, still percent-encoded.
    pub query: String,
    /// HTTP/1.`minor`.
    pub minor: u8,
    headers: Vec<(String, String)>,
    pub framing: Framing,
    /// Whether the client lets the connection live after this request.
    pub keep_alive: bool,
    /// `Expect: 100-continue`: the client waits for a nod before it sends the body.
    pub expect_continue: bool,
    /// The protocol of `Upgrade`, when `Connection` lists it.
    pub upgrade: Option<String>,
}

impl Head {
    /// The first header of this name (any case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }
}

/// Parses a head at the start of `buf`: the head and its length, or `None` when more bytes are needed.
pub fn parse(buf: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    let Some(length) = end_of_head(buf)? else {
        refuse_other_protocols(buf)?;
        if buf.len() >= MAX_HEAD {
            return Err(too_large(buf));
        }
        return Ok(None);
    };
    if length > MAX_HEAD {
        return Err(too_large(buf));
    }
    let bytes = &buf[..length];
    let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut storage);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Refusal::bad("malformed request head")),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::new(431, "too many request headers")),
        Err(e) => return Err(Refusal::bad(format!("malformed request head: {e}"))),
    }
    let method = request.method.and_then(|m| Method::from_str(m).ok()).ok_or_else(|| Refusal::bad("malformed method"))?;
    let target = request.path.unwrap_or_default();
    if target.len() > MAX_TARGET {
        return Err(Refusal::new(414, "request target too long"));
    }
    let (path, query) = split_target(&method, target)?;
    let mut headers = Vec::with_capacity(request.headers.len());
    for header in request.headers.iter() {
        if header.name.is_empty() || header.value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
            return Err(Refusal::bad("control byte in a request header"));
        }
        let value = String::from_utf8_lossy(header.value).trim().to_string();
        headers.push((header.name.to_string(), value));
    }
    let minor = request.version.unwrap_or(1);
    let mut head =
        Head { method, path, query, minor, headers, framing: Framing::None, keep_alive: minor == 1, expect_continue: false, upgrade: None };
    head.framing = framing(&head)?;
    connection_options(&mut head)?;
    Ok(Some((head, length)))
}

/// The length of the head including its empty line; refuses bare LF, NUL and folded lines on the way.
fn end_of_head(buf: &[u8]) -> Result<Option<usize>, Refusal> {
    let mut start = 0;
    // RFC 9112 §2.2: an empty line before the request line is tolerated; httparse skips it too.
    let mut seen_text = false;
    for (i, byte) in buf.iter().enumerate() {
        match byte {
            0 => return Err(Refusal::bad("NUL in the request head")),
            b'\n' => {
                if i == 0 || buf[i - 1] != b'\r' {
                    return Err(Refusal::bad("bare line feed in the request head"));
                }
                let line = &buf[start..i - 1];
                if line.contains(&b'\r') {
                    return Err(Refusal::bad("bare carriage return in the request head"));
                }
                if line.is_empty() && seen_text {
                    return Ok(Some(i + 1));
                }
                if seen_text && matches!(line.first(), Some(b' ' | b'\t')) {
                    return Err(Refusal::bad("folded request header"));
                }
                if line.is_empty() && i > 8 {
                    return Err(Refusal::bad("empty request"));
                }
                seen_text |= !line.is_empty();
                start = i + 1;
            }
            _ => {}
        }
        if i >= MAX_HEAD {
            return Ok(Some(i + 1));
        }
    }
    Ok(None)
}

/// TLS and HTTP/2 are told from their first bytes, so that such a client gets an answer and not a timeout.
fn refuse_other_protocols(buf: &[u8]) -> Result<(), Refusal> {
    if buf.first() == Some(&0x16) {
        return Err(Refusal::bad("Client sent an HTTPS request to an HTTP server."));
    }
    if buf.first().is_some_and(|b| *b < 0x20 && *b != b'\r' && *b != b'\n') {
        return Err(Refusal::bad("not an HTTP/1 request"));
    }
    Ok(())
}

fn too_large(buf: &[u8]) -> Refusal {
    let line = buf.iter().position(|b| *b == b'\n').unwrap_or(buf.len());
    if line > MAX_TARGET { Refusal::new(414, "request target too long") } else { Refusal::new(431, "request head too large") }
}

fn split_target(method: &Method, target: &str) -> Result<(String, String), Refusal> {
    if target.bytes().any(|b| b <= 0x20 || b == 0x7f) {
        return Err(Refusal::bad("control byte in the request target"));
    }
    let local = if target == "*" && *method == Method::Options {
        "*"
    } else if let Some(rest) = target.strip_prefix("http://") {
        rest.find('/').map_or("/", |slash| &rest[slash..])
    } else if target.starts_with('/') {
        target
    } else {
        return Err(Refusal::bad("unsupported request target"));
    };
    let local = local.split('#').next().unwrap_or_default();
    let (path, query) = local.split_once('?').unwrap_or((local, ""));
    Ok((path.to_string(), query.to_string()))
}

fn framing(head: &Head) -> Result<Framing, Refusal> {
    let all = |name: &str| head.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    let (lengths, encodings) = (all("content-length"), all("transfer-encoding"));
    if !lengths.is_empty() && !encodings.is_empty() {
        return Err(Refusal::bad("both Content-Length and Transfer-Encoding"));
    }
    match (lengths.as_slice(), encodings.as_slice()) {
        ([], []) => Ok(Framing::None),
        ([length], []) => {
            if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Refusal::bad("malformed Content-Length"));
            }
            match length.parse() {
                Ok(0) => Ok(Framing::None),
                Ok(n) if n <= i64::MAX.cast_unsigned() => Ok(Framing::Length(n)),
                _ => Err(Refusal::bad("Content-Length out of range")),
            }
        }
        ([], [encoding]) if encoding.eq_ignore_ascii_case("chunked") && head.minor == 1 => Ok(Framing::Chunked),
        ([], [_]) if head.minor == 0 => Err(Refusal::bad("Transfer-Encoding in an HTTP/1.0 request")),
        ([], [_]) => Err(Refusal::new(501, "unsupported Transfer-Encoding")),
        ([], _) => Err(Refusal::bad("several Transfer-Encoding headers")),
        _ => Err(Refusal::bad("several Content-Length headers")),
    }
}

fn connection_options(head: &mut Head) -> Result<(), Refusal> {
    let hosts = head.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("host")).count();
    if hosts > 1 || (hosts == 0 && head.minor == 1) {
        return Err(Refusal::bad(if hosts > 1 { "several Host headers" } else { "missing required Host header" }));
    }
    let mut upgrade_listed = false;
    for (_, value) in head.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("connection")) {
        for option in value.split(',').map(str::trim) {
            if option.eq_ignore_ascii_case("close") {
                head.keep_alive = false;
            } else if option.eq_ignore_ascii_case("keep-alive") {
                head.keep_alive = true;
            } else if option.eq_ignore_ascii_case("upgrade") {
                upgrade_listed = true;
            }
        }
    }
    if upgrade_listed {
        head.upgrade = head.header("upgrade").map(str::to_ascii_lowercase);
    }
    head.expect_continue = head.minor == 1 && head.header("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue"));
    if head.header("expect").is_some() && !head.expect_continue {
        return Err(Refusal::new(417, "unsupported Expect"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> u16 {
        match parse(text.as_bytes()) {
            Err(refusal) => refusal.status,
            Ok(Some(_)) => 0,
            Ok(None) => 1,
        }
    }

    #[test]
    fn reads_a_plain_request() {
        let text = b"\r\nPOST /v1.51/x?a=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\nConnection: Upgrade\r\nUpgrade: TCP\r\n\r\nabc";
        let (head, length) = parse(text).unwrap().unwrap();
        assert_eq!((head.path.as_str(), head.query.as_str(), head.framing), ("/v1.51/x", "a=1", Framing::Length(3)));
        assert_eq!((head.upgrade.as_deref(), head.keep_alive), (Some("tcp"), true));
        assert_eq!(&text[length..], b"abc");
    }

    #[test]
    fn refuses_what_smuggles() {
        let host = "Host: d\r\n";
        for (headers, expected) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: +5\r\n", 400),
            ("Content-Length: 99999999999999999999\r\n", 400),
            ("Content-Length : 5\r\n", 400),
            ("Transfer-Encoding: gzip\r\n", 501),
            ("X: a\r\n b\r\n", 400),
            ("X: a\nY: b\r\n", 400),
            ("X: a\x01\r\n", 400),
            ("Host: e\r\n", 400),
            ("Expect: tea\r\n", 417),
            ("", 0),
        ] {
            assert_eq!(status(&format!("GET / HTTP/1.1\r\n{host}{headers}\r\n")), expected, "{headers:?}");
        }
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), 0);
        assert_eq!(status("CONNECT d:80 HTTP/1.1\r\nHost: d\r\n\r\n"), 400);
        assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHos"), 1);
    }

    #[test]
    fn bounds_head_target_and_count() {
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\nHost: d\r\n\r\n", "a".repeat(MAX_TARGET + 1))), 414);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: d\r\nX: {}\r\n\r\n", "a".repeat(MAX_HEAD))), 431);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: d\r\n{}\r\n", "X: a\r\n".repeat(MAX_HEADERS))), 431);
    }

    #[test]
    fn every_prefix_asks_for_more_or_refuses() {
        let text = b"POST /a?b=c HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n";
        for end in 0..text.len() {
            assert!(parse(&text[..end]).unwrap().is_none(), "{end}");
        }
    }
}
