//! A raw HTTP/1.1 client over Unix sockets: every byte is the test's to choose.

use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long one read may wait before the test is told that the daemon said nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// One answer, its body decoded from whatever framing it came in.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub version: String,
    pub reason: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {} {:?}", self.status, self.text()))
    }

    /// The documents of a body of JSON lines.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        serde_json::Deserializer::from_slice(&self.body)
            .into_iter()
            .collect::<Result<_, _>>()
            .unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The `message` of an error answer.
    #[track_caller]
    pub fn message(&self) -> String {
        match self.json().get("message").and_then(Value::as_str) {
            Some(message) => message.to_owned(),
            None => panic!("{}: no message in {}", self.status, self.text()),
        }
    }

    /// Fails, showing the answer, unless the status is this.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "answer was: {} {:?} {}", self.status, self.headers, self.text());
        self
    }

    /// Fails unless status and message are these; which letters are capital changed between Docker's releases.
    #[track_caller]
    pub fn refuses(&self, status: u16, message: &str) {
        let said = self.message();
        assert!(self.status == status && said.eq_ignore_ascii_case(message), "{} {said:?}, not {status} {message:?}", self.status);
    }
}

/// One connection and the bytes read from it that nobody has taken yet.
pub struct Connection {
    stream: UnixStream,
    ahead: Vec<u8>,
}

impl Connection {
    #[track_caller]
    pub fn open(socket: &Path) -> Connection {
        let stream = UnixStream::connect(socket).unwrap_or_else(|e| panic!("connect {}: {e}", socket.display()));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout above zero");
        Connection { stream, ahead: Vec::new() }
    }

    pub fn set_patience(&self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).expect("a timeout above zero");
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Ends our direction; the daemon sees EOF and may go on answering.
    pub fn shut_write(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("the socket is connected");
    }

    /// Writes bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap_or_else(|e| panic!("send: {e}"));
    }

    /// As [`send`](Self::send), where the daemon may rightly have closed already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends a request whose body length is told.
    #[track_caller]
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: docker\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || method == "POST" || method == "PUT" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(body);
        self.send(bytes);
    }

    /// One read into the buffer; false at the end.
    #[track_caller]
    fn more(&mut self) -> bool {
        let mut buf = [0; 65536];
        match self.stream.read(&mut buf) {
            Ok(n) => {
                self.ahead.extend_from_slice(&buf[..n]);
                n > 0
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => false,
            Err(e) => panic!("the daemon did not answer: {e}; so far: {:?}", shown(&self.ahead)),
        }
    }

    /// At most `most` bytes, at least one; empty at the end.
    #[track_caller]
    pub fn read_some(&mut self, most: usize) -> Vec<u8> {
        if self.ahead.is_empty() {
            self.more();
        }
        let n = most.min(self.ahead.len());
        self.ahead.drain(..n).collect()
    }

    #[track_caller]
    pub fn read_exact(&mut self, length: usize) -> Vec<u8> {
        while self.ahead.len() < length {
            assert!(self.more(), "ended after {} of {length} bytes: {:?}", self.ahead.len(), shown(&self.ahead));
        }
        self.ahead.drain(..length).collect()
    }

    /// Everything until the daemon closes.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.ahead)
    }

    /// Reads until `needle` has been seen and gives back all up to its end.
    #[track_caller]
    pub fn read_until(&mut self, needle: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = find(&self.ahead, needle) {
                return self.ahead.drain(..at + needle.len()).collect();
            }
            assert!(self.more(), "ended without {:?}: {:?}", String::from_utf8_lossy(needle), shown(&self.ahead));
        }
    }

    /// True when the daemon has closed and nothing is left to read.
    #[track_caller]
    pub fn is_closed(&mut self) -> bool {
        self.ahead.is_empty() && !self.more()
    }

    /// A line without its CR LF.
    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = self.read_until(b"\r\n");
        line.truncate(line.len() - 2);
        String::from_utf8(line).expect("heads are ASCII")
    }

    /// The head of an answer; its body stays unread.
    #[track_caller]
    pub fn read_head(&mut self) -> Answer {
        let start = self.line();
        let mut parts = start.splitn(3, ' ');
        let version = parts.next().unwrap_or_default().to_owned();
        assert!(version.starts_with("HTTP/1."), "not a status line: {start:?}");
        let status = parts.next().and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("not a status line: {start:?}"));
        let reason = parts.next().unwrap_or_default().to_owned();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None if line.is_empty() => break,
                None => panic!("not a header line: {line:?}"),
            }
        }
        Answer { status, version, reason, headers, body: Vec::new() }
    }

    /// A whole answer; 100 (Continue) before it is skipped.
    #[track_caller]
    pub fn read_answer(&mut self) -> Answer {
        self.read_answer_to("GET")
    }

    /// As [`read_answer`](Self::read_answer), to a request of that method (the answer to HEAD has no body).
    #[track_caller]
    pub fn read_answer_to(&mut self, method: &str) -> Answer {
        let mut answer = self.read_head();
        while answer.status == 100 {
            answer = self.read_head();
        }
        if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
            return answer;
        }
        if answer.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            while let Some(chunk) = self.read_chunk() {
                answer.body.extend(chunk);
            }
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap_or_else(|_| panic!("Content-Length: {length:?}"));
            answer.body = self.read_exact(length);
        } else {
            answer.body = self.read_to_end();
        }
        answer
    }

    /// The next chunk of a chunked body; `None` after the last.
    #[track_caller]
    pub fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line();
        let size = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("not a chunk size: {line:?}"));
        let chunk = self.read_exact(size);
        assert_eq!(self.read_exact(2), b"\r\n", "a chunk ends with CR LF");
        (size > 0).then_some(chunk)
    }

    /// The next JSON line of a chunked stream.
    #[track_caller]
    pub fn read_json_chunk(&mut self) -> Value {
        let chunk = self.read_chunk().expect("the stream goes on");
        serde_json::from_slice(&chunk).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&chunk)))
    }

    /// One frame of Docker's multiplexed stream: (1 = stdout, 2 = stderr, 3 = system error; bytes). `None` at the end.
    #[track_caller]
    pub fn read_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        if self.ahead.is_empty() && !self.more() {
            return None;
        }
        let head = self.read_exact(8);
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        Some((head[0], self.read_exact(length as usize)))
    }
}

/// The start of some bytes, for a message.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1000)]).into_owned();
    if bytes.len() > 1000 { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

/// Where `needle` starts in `hay`.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

/// Takes a multiplexed stream apart: (stdout, stderr).
#[track_caller]
pub fn demultiplex(mut bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        assert!(bytes.len() >= 8, "a frame's head is cut short: {bytes:?}");
        let length = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        assert!(bytes.len() >= 8 + length, "a frame is cut short");
        let sink = match bytes[0] {
            1 => &mut out,
            2 => &mut err,
            kind => panic!("frame of kind {kind}"),
        };
        sink.extend_from_slice(&bytes[8..8 + length]);
        bytes = &bytes[8 + length..];
    }
    (out, err)
}

/// Percent-encodes everything but letters and digits.
pub fn encode(text: &str) -> String {
    text.bytes().map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
