//! Answers: whole ones through tiny_http's writer; the few heads that it cannot say, here.

use serde::Serialize;
use std::io::Cursor;
use tiny_http::{HTTPVersion, Header, StatusCode};

/// Headers of every answer; the owner of the connection sets them once.
#[derive(Clone, Debug, Default)]
pub struct CommonHeaders(pub Vec<(&'static str, String)>);

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// A JSON body, ended by a newline as Go's encoder ends it.
    pub fn json(status: u16, value: &impl Serialize) -> Response {
        let mut body = serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec());
        body.push(b'\n');
        escape_html(&mut body);
        Response { status, headers: vec![("Content-Type".into(), "application/json".into())], body }
    }

    /// No body at all.
    pub fn empty(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Vec::new() }
    }

    pub fn text(status: u16, text: &str) -> Response {
        Response { status, headers: vec![("Content-Type".into(), "text/plain; charset=utf-8".into())], body: text.as_bytes().to_vec() }
    }

    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Response {
        self.headers.push((name.to_string(), value.into()));
        self
    }

    /// Appends the answer's bytes to `out`. `minor` is the request's HTTP/1 minor version; HEAD gets no body.
    pub fn write(&self, out: &mut Vec<u8>, common: &CommonHeaders, minor: u8, head_only: bool, keep_alive: bool) {
        // 1xx, 204 and 304 have no body, and no length either (RFC 9110 §8.6).
        let bodiless = matches!(self.status, 100..=199 | 204 | 304);
        if !keep_alive || bodiless || head_only || minor == 0 {
            self.write_plainly(out, common, minor, head_only || bodiless, keep_alive, bodiless);
            return;
        }
        let headers = common.0.iter().map(|(n, v)| (*n, v.as_str())).chain(self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        let headers = headers.filter_map(|(name, value)| header(name, value)).collect();
        let response = tiny_http::Response::new(StatusCode(self.status), headers, Cursor::new(&self.body), Some(self.body.len()), None)
            .with_chunked_threshold(usize::MAX);
        response.raw_print(out, HTTPVersion(1, 1), &[], false, None).expect("writing to memory does not fail");
    }

    /// The cases that tiny_http's writer cannot say: `Connection: close`, no length, HTTP/1.0.
    fn write_plainly(&self, out: &mut Vec<u8>, common: &CommonHeaders, minor: u8, no_body: bool, keep_alive: bool, no_length: bool) {
        status_line(out, minor, self.status);
        for (name, value) in common.0.iter().map(|(n, v)| (*n, v)).chain(self.headers.iter().map(|(n, v)| (n.as_str(), v))) {
            header_line(out, name, value);
        }
        header_line(out, "Date", &httpdate_now());
        if !no_length {
            header_line(out, "Content-Length", &self.body.len().to_string());
        }
        if !keep_alive {
            header_line(out, "Connection", "close");
        } else if minor == 0 {
            header_line(out, "Connection", "keep-alive");
        }
        out.extend_from_slice(b"\r\n");
        if !no_body {
            out.extend_from_slice(&self.body);
        }
    }
}

/// A header for tiny_http, refused when a name or value carries control bytes: its own check lets CR and LF through.
fn header(name: &str, value: &str) -> Option<Header> {
    if name.bytes().chain(value.bytes()).any(|b| b < 0x20 || b == 0x7f) {
        return None;
    }
    Header::from_bytes(name, value).ok()
}

fn status_line(out: &mut Vec<u8>, minor: u8, status: u16) {
    let reason = StatusCode(status).default_reason_phrase();
    out.extend_from_slice(format!("HTTP/1.{minor} {status} {reason}\r\n").as_bytes());
}

/// Appends one header line; a value with control bytes is left out rather than split into two lines.
pub fn header_line(out: &mut Vec<u8>, name: &str, value: &str) {
    if !name.bytes().chain(value.bytes()).any(|b| b < 0x20 || b == 0x7f) {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
}

/// The head of an answer whose body is streamed: chunked for HTTP/1.1, until close for 1.0.
pub fn stream_head(out: &mut Vec<u8>, common: &CommonHeaders, minor: u8, status: u16, headers: &[(String, String)], keep_alive: bool) {
    status_line(out, minor, status);
    for (name, value) in common.0.iter().map(|(n, v)| (*n, v)).chain(headers.iter().map(|(n, v)| (n.as_str(), v))) {
        header_line(out, name, value);
    }
    header_line(out, "Date", &httpdate_now());
    if minor == 1 {
        header_line(out, "Transfer-Encoding", "chunked");
    }
    if !keep_alive || minor == 0 {
        header_line(out, "Connection", "close");
    }
    out.extend_from_slice(b"\r\n");
}

/// One chunk's framing around `length` bytes of data: what goes before it; `\r\n` goes after it.
pub fn chunk_head(length: usize) -> String {
    format!("{length:x}\r\n")
}

/// The end of a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The head by which a connection becomes a raw stream: 101 when the client asked to upgrade, else an open-ended 200.
pub fn hijack_head(out: &mut Vec<u8>, common: &CommonHeaders, upgrade: Option<&str>, content_type: &str) {
    match upgrade {
        Some(protocol) => {
            out.extend_from_slice(b"HTTP/1.1 101 UPGRADED\r\n");
            header_line(out, "Content-Type", content_type);
            header_line(out, "Connection", "Upgrade");
            header_line(out, "Upgrade", protocol);
        }
        None => {
            out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            header_line(out, "Content-Type", content_type);
        }
    }
    for (name, value) in &common.0 {
        header_line(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

fn httpdate_now() -> String {
    httpdate::fmt_http_date(std::time::SystemTime::now())
}

/// Go's encoder writes `<`, `>` and `&` as escapes, and U+2028/2029 too; clients that compare bytes see it.
pub fn escape_html(json: &mut Vec<u8>) {
    let needs = |w: &[u8]| matches!(w[0], b'<' | b'>' | b'&') || w.starts_with(&[0xe2, 0x80, 0xa8]) || w.starts_with(&[0xe2, 0x80, 0xa9]);
    if !(0..json.len()).any(|i| needs(&json[i..])) {
        return;
    }
    let mut out = Vec::with_capacity(json.len() + 64);
    let mut i = 0;
    while i < json.len() {
        match &json[i..] {
            [b'<', ..] => out.extend_from_slice(b"\\u003c"),
            [b'>', ..] => out.extend_from_slice(b"\\u003e"),
            [b'&', ..] => out.extend_from_slice(b"\\u0026"),
            [0xe2, 0x80, last @ (0xa8 | 0xa9), ..] => {
                out.extend_from_slice(if *last == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                i += 2;
            }
            rest => out.push(rest[0]),
        }
        i += 1;
    }
    *json = out;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(response: &Response, minor: u8, head_only: bool, keep_alive: bool) -> String {
        let mut out = Vec::new();
        let common = CommonHeaders(vec![("Server", "S".into())]);
        response.write(&mut out, &common, minor, head_only, keep_alive);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn whole_answers_have_a_length_and_one_server() {
        let text = written(&Response::text(200, "OK"), 1, false, true);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nOK"), "{text}");
        assert_eq!(text.matches("Server:").count(), 1, "{text}");
        assert!(text.contains("Content-Length: 2\r\n"));
    }

    #[test]
    fn close_head_and_no_content() {
        let text = written(&Response::text(200, "OK"), 1, true, false);
        assert!(text.contains("Content-Length: 2\r\n") && text.contains("Connection: close") && text.ends_with("\r\n\r\n"), "{text}");
        let text = written(&Response::empty(204), 1, false, true);
        assert!(!text.contains("Content-Length"), "{text}");
    }

    #[test]
    fn header_values_cannot_split_the_head() {
        let text = written(&Response::empty(200).with_header("X", "a\r\nSet: b"), 1, false, true);
        assert!(!text.contains("Set: b"));
    }

    #[test]
    fn json_is_escaped_as_go_escapes_it() {
        let mut json = "{\"a\":\"<b>&\u{2028}é\"}".as_bytes().to_vec();
        escape_html(&mut json);
        assert_eq!(String::from_utf8(json).unwrap(), "{\"a\":\"\\u003cb\\u003e\\u0026\\u2028é\"}");
    }
}
