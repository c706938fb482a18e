//! What went wrong with a registry, in the reference's words, and what the daemon's API calls it.

use crate::error::{Error, Kind};
use crate::image::reference::Reference;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;

/// Bytes of an error's body that are read.
pub const BODY_MAX: u64 = 64 * 1024;

/// A failure of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The registry's own error code ("MANIFEST_UNKNOWN"); empty when it gave none.
    pub code: String,
    pub message: String,
    /// HTTP status; 0 when there was no answer.
    pub status: u16,
    /// Trying again may help.
    pub transient: bool,
}

pub type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    /// A failure that no repetition heals.
    pub fn permanent(message: impl Into<String>) -> Fault {
        Fault { code: String::new(), message: message.into(), status: 0, transient: false }
    }

    /// A failure of the network.
    pub fn transient(message: impl Into<String>) -> Fault {
        Fault { transient: true, ..Fault::permanent(message) }
    }

    fn coded(code: &str, message: &str, status: u16) -> Fault {
        Fault {
            code: code.into(),
            message: format!("{}: {message}", code.to_lowercase().replace('_', " ")),
            status,
            transient: code == "TOOMANYREQUESTS" || code == "UNAVAILABLE",
        }
    }

    /// For code that reads a blob as a stream: its words come through unchanged.
    pub fn into_io(self) -> std::io::Error {
        std::io::Error::other(Error::from(self))
    }

    /// As Go's HTTP client wraps an error: `Get "https://…": cause`.
    pub fn of_request(self, method: &str, url: &str) -> Fault {
        let mut letters = method.chars();
        let method: String = letters.next().into_iter().chain(letters.flat_map(char::to_lowercase)).collect();
        Fault { message: format!("{method} {url:?}: {}", self.message), ..self }
    }

    /// The failure of a push: missing credentials are told without the request that missed them.
    pub fn of_push(self) -> Error {
        let missing = "no basic auth credentials";
        if self.message.ends_with(missing) { Error::new(Kind::System, missing) } else { self.into() }
    }

    /// The failure of a pull or of a look at a manifest.
    pub fn of_pull(self, reference: &Reference) -> Error {
        match self.code.as_str() {
            "DENIED" => Error::not_found(format!(
                "pull access denied for {}, repository does not exist or may require 'docker login': {}",
                reference.familiar_name(),
                self.message
            )),
            "MANIFEST_UNKNOWN" => Error::not_found(format!("manifest for {} not found: {}", reference.familiar(), self.message)),
            "NAME_UNKNOWN" => Error::not_found(format!("repository {} not found: {}", reference.familiar_name(), self.message)),
            "NO_MATCH" => Error::not_found(self.message),
            _ => self.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        let kind = match fault.code.as_str() {
            "UNAUTHORIZED" => Kind::Unauthorized,
            "DENIED" => Kind::Forbidden,
            _ => Kind::System,
        };
        Error::new(kind, fault.message)
    }
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    errors: Vec<Entry>,
    #[serde(default)]
    details: Option<Value>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Reads an answer of 400 and above; `bearer_error` is the challenge's `error` with its description.
pub fn from_response(status: u16, reason: &str, body: &[u8], bearer_error: Option<(&str, &str)>) -> Fault {
    if !(400..500).contains(&status) {
        let message = format!("received unexpected HTTP status: {status} {reason}");
        return Fault { status, transient: status >= 500, ..Fault::permanent(message.trim_end()) };
    }
    if let Some((error, description)) = bearer_error {
        let (code, default) = match error {
            "insufficient_scope" => ("DENIED", "requested access to the resource is denied"),
            _ => ("UNAUTHORIZED", "authentication required"),
        };
        return Fault::coded(code, if description.is_empty() { default } else { description }, status);
    }
    let parsed = serde_json::from_slice::<Body>(body);
    let details = parsed.as_ref().ok().and_then(|b| b.details.as_ref()).and_then(Value::as_str).filter(|d| !d.is_empty());
    if let Some(details) = details {
        let code = match status {
            401 => "UNAUTHORIZED",
            403 => "DENIED",
            429 => "TOOMANYREQUESTS",
            _ => "UNKNOWN",
        };
        return Fault::coded(code, details, status);
    }
    match parsed {
        Ok(Body { errors, .. }) if !errors.is_empty() => {
            let faults: Vec<Fault> = errors
                .iter()
                .take(8)
                .map(|e| {
                    let code = if known(&e.code) { e.code.as_str() } else { "UNKNOWN" };
                    let message = if e.message.is_empty() { default_message(code) } else { &e.message };
                    Fault::coded(code, message, status)
                })
                .collect();
            match faults.as_slice() {
                [one] => one.clone(),
                many => {
                    let lines: String = many.iter().map(|f| format!("{f}\n")).collect();
                    Fault { message: format!("errors:\n{lines}"), ..many.first().cloned().unwrap_or_else(|| Fault::permanent("")) }
                }
            }
        }
        _ if status == 401 => Fault::coded("UNAUTHORIZED", "authentication required", status),
        Ok(_) => unexpected(status, "no error details found in HTTP response body", body),
        Err(e) if body.is_empty() || e.is_eof() => unexpected(status, "unexpected end of JSON input", body),
        Err(_) => {
            let first = String::from_utf8_lossy(body).chars().next().unwrap_or(' ');
            unexpected(status, &format!("invalid character '{first}' looking for beginning of value"), body)
        }
    }
}

fn unexpected(status: u16, why: &str, body: &[u8]) -> Fault {
    let shown: String = String::from_utf8_lossy(body).chars().take(512).collect();
    let quoted = crate::build::golang::quote(&shown);
    Fault {
        status,
        transient: status == 408 || status == 429,
        ..Fault::permanent(format!("error parsing HTTP {status} response body: {why}: {quoted}"))
    }
}

fn known(code: &str) -> bool {
    !code.is_empty() && code.len() < 64 && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
}

fn default_message(code: &str) -> &'static str {
    match code {
        "UNAUTHORIZED" => "authentication required",
        "DENIED" => "requested access to the resource is denied",
        "MANIFEST_UNKNOWN" => "manifest unknown",
        "NAME_UNKNOWN" => "repository name not known to registry",
        "BLOB_UNKNOWN" => "blob unknown to registry",
        "TOOMANYREQUESTS" => "too many requests",
        _ => "unknown error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_become_words() {
        for (status, body, bearer, message) in [
            (404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#, None, "manifest unknown: manifest unknown"),
            (
                401,
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
                None,
                "unauthorized: authentication required",
            ),
            (401, r#"{"details":"incorrect username or password"}"#, None, "unauthorized: incorrect username or password"),
            (401, "x", Some(("insufficient_scope", "")), "denied: requested access to the resource is denied"),
            (401, "nope", None, "unauthorized: authentication required"),
            (404, "<html>", None, "error parsing HTTP 404 response body: invalid character '<' looking for beginning of value: \"<html>\""),
            (404, "{}", None, "error parsing HTTP 404 response body: no error details found in HTTP response body: \"{}\""),
            (404, "", None, "error parsing HTTP 404 response body: unexpected end of JSON input: \"\""),
            (500, "x", None, "received unexpected HTTP status: 500 Internal Server Error"),
            (
                400,
                r#"{"errors":[{"code":"A","message":"b"},{"code":"DENIED"}]}"#,
                None,
                "errors:\na: b\ndenied: requested access to the resource is denied\n",
            ),
        ] {
            let fault = from_response(status, "Internal Server Error", body.as_bytes(), bearer);
            assert_eq!(fault.message, message);
        }
    }

    #[test]
    fn pulls_say_what_is_missing() {
        let reference = Reference::parse("me/app:1").unwrap();
        let fault = |code: &str, message: &str| Fault::coded(code, message, 404).of_pull(&reference);
        assert_eq!(
            fault("DENIED", "requested access to the resource is denied").message,
            "pull access denied for me/app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
        );
        let unknown = fault("MANIFEST_UNKNOWN", "manifest unknown");
        assert_eq!(unknown.message, "manifest for me/app:1 not found: manifest unknown: manifest unknown");
        assert_eq!(unknown.kind, Kind::NotFound);
        assert_eq!(fault("UNAUTHORIZED", "authentication required").kind, Kind::Unauthorized);
        let wrapped = Fault::permanent("no basic auth credentials").of_request("HEAD", "http://h/v2/");
        assert_eq!(wrapped.message, "Head \"http://h/v2/\": no basic auth credentials");
    }
}
