//! The daemon's API as a build worker uses it: a container per RUN step, made, watched and removed by requests.

use crate::container::config::{Config, HostConfig};
use crate::error::{Error, Kind, Result};
use crate::worker::Context;
use crate::worker::message::Message;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Bytes of an answer.
const ANSWER_MAX: u64 = 4 << 20;
/// Bytes of an answer's head.
const HEAD_MAX: usize = 64 << 10;

/// A container that was made for a step.
pub struct StepContainer {
    pub id: String,
    pub warnings: Vec<String>,
}

/// Makes a container and ties it to this worker's life.
pub fn create(context: &mut Context, config: &Config, host: &HostConfig) -> Result<StepContainer> {
    let encode = |e: serde_json::Error| Error::system(format!("encode container: {e}"));
    let mut body = serde_json::to_value(config).map_err(encode)?;
    body["HostConfig"] = serde_json::to_value(host).map_err(encode)?;
    let answer = request(context, "POST", "/containers/create", Some(&body))?;
    let id = answer["Id"].as_str().unwrap_or_default().to_owned();
    context.ask(&Message::Owns { container: id.clone() })?;
    let warnings = answer["Warnings"].as_array().into_iter().flatten().filter_map(|w| w.as_str().map(str::to_owned)).collect();
    Ok(StepContainer { id, warnings })
}

/// Starts a container, passes its output on (`true`: stderr), and gives its exit code.
pub fn run(context: &mut Context, id: &str, mut output: impl FnMut(&mut Context, bool, &[u8]) -> Result<()>) -> Result<i64> {
    let failed = |e: io::Error| Error::io("read a container's output", &e);
    let mut stream = context.connect()?;
    let attach =
        format!("POST /v1.51/containers/{id}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: build\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(attach.as_bytes()).map_err(failed)?;
    let (status, rest) = head(&mut stream)?;
    if status != 200 && status != 101 {
        return Err(Error::system(format!("attach to container {id}: status {status}")));
    }
    request(context, "POST", &format!("/containers/{id}/start"), None)?;
    let mut stream = rest.as_slice().chain(stream);
    let mut header = [0; 8];
    let mut buffer = vec![0; 32 << 10];
    // A frame: the stream's number, three zeros, the length.
    while read_or_end(&mut stream, &mut header).map_err(failed)? {
        let mut left = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        while left > 0 {
            let part = buffer.len().min(left);
            let chunk = buffer.get_mut(..part).unwrap_or_default();
            stream.read_exact(chunk).map_err(failed)?;
            output(context, header[0] == 2, chunk)?;
            left -= part;
        }
    }
    let answer = request(context, "POST", &format!("/containers/{id}/wait"), None)?;
    if let Some(message) = answer["Error"]["Message"].as_str().filter(|m| !m.is_empty()) {
        return Err(Error::system(message));
    }
    Ok(answer["StatusCode"].as_i64().unwrap_or(-1))
}

/// Removes a container with its anonymous volumes.
pub fn remove(context: &mut Context, id: &str) -> Result<()> {
    request(context, "DELETE", &format!("/containers/{id}?force=1&v=1"), None).map(drop)
}

/// One request on a connection of its own; an error answer is an error.
fn request(context: &mut Context, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let failed = |e: io::Error| Error::io("ask the daemon", &e);
    let mut stream = context.connect()?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    // HTTP/1.0: the answer ends with the connection.
    let text = format!("{method} /v1.51{path} HTTP/1.0\r\nHost: build\r\n{kind}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).map_err(failed)?;
    let (status, mut answer) = head(&mut stream)?;
    stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(failed)?;
    let value = if answer.is_empty() { json!({}) } else { serde_json::from_slice(&answer).unwrap_or_default() };
    if status < 400 {
        return Ok(value);
    }
    let kind = match status {
        400 => Kind::InvalidParameter,
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        _ => Kind::System,
    };
    Err(Error::new(kind, value["message"].as_str().unwrap_or("the daemon gave no reason")))
}

/// Reads up to the end of the head: the status, and what came after.
fn head(stream: &mut UnixStream) -> Result<(u16, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
            let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(500);
            return Ok((status, bytes.get(end + 4..).unwrap_or_default().to_vec()));
        }
        let count = stream.read(&mut buffer).map_err(|e| Error::io("hear the daemon", &e))?;
        if count == 0 || bytes.len() > HEAD_MAX {
            return Err(Error::system("the daemon's answer has no head"));
        }
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
}

/// Fills the buffer; false at an end before its first byte.
fn read_or_end(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(buffer.get_mut(filled..).unwrap_or_default()) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}
