//! One HTTP exchange: connections kept per origin, redirects followed by our own rules, every read bounded in time.
//!
//! ureq starts threads only in its own resolver, which is replaced. Redirects are ours because credentials must not
//! cross origins: to another scheme, host or port a request goes without Authorization, and never from https to http.

use super::endpoint::{Settings, is_insecure};
use super::fault::{self, Fault, Result};
use super::resolver::Stub;
use super::{proxy, trust};
use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Request, Uri};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, SendBody};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Nothing received, or nothing taken, for so long ends an exchange.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const REDIRECTS_MAX: usize = 10;
const HEAD_MAX: usize = 64 * 1024;

/// Scheme, host and port: what credentials belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub https: bool,
    pub host: String,
    pub port: u16,
}

impl Origin {
    pub fn of(uri: &Uri) -> Result<Origin> {
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(Fault::permanent(format!("unsupported protocol scheme {:?}", uri.scheme_str().unwrap_or("")))),
        };
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| Fault::permanent("no Host in request URL"))?;
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(Fault::permanent("credentials in a URL are not followed"));
        }
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Origin { https, host: host.to_ascii_lowercase(), port })
    }

    /// Host and port as certs.d and the insecure list name them.
    fn registry(&self) -> String {
        match (self.https, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

/// A request; its body can be sent again when credentials were missing.
pub struct Exchange<'a> {
    pub method: &'static str,
    pub url: String,
    pub headers: Vec<(String, String)>,
    /// Goes to the first origin only.
    pub authorization: Option<String>,
    pub body: Payload<'a>,
}

pub enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// Cannot be repeated; the length when it is known, else it goes chunked.
    Stream(&'a mut dyn Read, Option<u64>),
}

impl<'a> Exchange<'a> {
    pub fn new(method: &'static str, url: impl Into<String>) -> Exchange<'a> {
        Exchange { method, url: url.into(), headers: Vec::new(), authorization: None, body: Payload::None }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Exchange<'a> {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// An answer below 400, or 401 and above with its body still unread.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from, after redirects.
    pub url: String,
    pub body: Body,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body, at most `max` bytes; more is an error.
    pub fn bytes(&mut self, max: u64, what: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let reader = self.body.as_reader();
        reader.take(max + 1).read_to_end(&mut bytes).map_err(|e| Fault::transient(format!("read {what}: {}", words(&e))))?;
        if bytes.len() as u64 > max {
            return Err(Fault::permanent(format!("{what} is larger than {max} bytes")));
        }
        Ok(bytes)
    }

    /// The fault that an answer of 400 and above stands for.
    pub fn into_fault(mut self) -> Fault {
        let challenge = self.challenges().into_iter().find(|c| c.scheme == "bearer" && !c.parameter("error").is_empty());
        let mut body = Vec::new();
        let reader = self.body.as_reader();
        // What cannot be read of an error's text is left out of it.
        let _ = reader.take(fault::BODY_MAX).read_to_end(&mut body);
        let reason = ureq::http::StatusCode::from_u16(self.status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
        let bearer = challenge.as_ref().map(|c| (c.parameter("error"), c.parameter("error_description")));
        fault::from_response(self.status, reason, &body, bearer)
    }

    pub fn challenges(&self) -> Vec<super::auth::Challenge> {
        let headers = self.headers.get_all("www-authenticate").iter().take(8);
        headers.filter_map(|value| super::auth::Challenge::parse(value.to_str().ok()?)).collect()
    }
}

/// The connections of one worker.
pub struct Transport {
    settings: Settings,
    agents: HashMap<(Origin, bool), (Agent, Arc<Mutex<Option<SocketAddr>>>)>,
}

impl Transport {
    pub fn new(settings: Settings) -> Transport {
        Transport { settings, agents: HashMap::new() }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sends a request and follows redirects; the answer may have any status.
    /// `insecure`: the first origin's certificate is not checked.
    pub fn run(&mut self, exchange: Exchange, insecure: bool) -> Result<Answer> {
        let Exchange { method, url, headers, authorization, mut body } = exchange;
        let first = Origin::of(&parse(&url)?)?;
        let mut at = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let uri = parse(&at)?;
            let origin = Origin::of(&uri)?;
            if first.https && !origin.https {
                return Err(Fault::permanent(format!("redirect from https to http refused: {at}")).of_request(method, &url));
            }
            let here = origin == first;
            let insecure = if here { insecure } else { is_insecure(&origin.registry(), &self.settings) };
            let mut all: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            if let Some(value) = authorization.as_deref().filter(|_| here) {
                all.push(("Authorization", value));
            }
            let answer = self.once(method, &uri, &all, &mut body, insecure).map_err(|f| f.of_request(method, &url))?;
            let redirected = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            let Some(location) = answer.header("location").filter(|_| redirected).map(str::to_owned) else {
                return Ok(answer);
            };
            if matches!(body, Payload::Stream(..)) || !matches!(method, "GET" | "HEAD") {
                return Err(Fault::permanent(format!("unexpected redirect to {location}")).of_request(method, &url));
            }
            at = join(&at, &location)?;
        }
        Err(Fault::permanent(format!("stopped after {REDIRECTS_MAX} redirects")).of_request(method, &url))
    }

    fn once(&mut self, method: &str, uri: &Uri, headers: &[(&str, &str)], body: &mut Payload, insecure: bool) -> Result<Answer> {
        let origin = Origin::of(uri)?;
        let (agent, last) = self.agent(&origin, insecure)?;
        let mut request = Request::builder().method(method).uri(uri.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let length = match body {
            Payload::Bytes(bytes) => Some(bytes.len() as u64),
            Payload::Stream(_, length) => *length,
            Payload::None => None,
        };
        if let Some(length) = length {
            request = request.header("Content-Length", length);
        } else if matches!(body, Payload::None) && matches!(method, "POST" | "PUT" | "PATCH") {
            request = request.header("Content-Length", 0);
        }
        let malformed = |e: ureq::http::Error| Fault::permanent(e.to_string());
        let answer = match body {
            Payload::None => agent.run(request.body(()).map_err(malformed)?),
            Payload::Bytes(bytes) => agent.run(request.body(SendBody::from_reader(&mut &**bytes)).map_err(malformed)?),
            Payload::Stream(reader, _) => agent.run(request.body(SendBody::from_reader(*reader)).map_err(malformed)?),
        };
        match answer {
            Ok(answer) => {
                let (parts, body) = answer.into_parts();
                Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, url: uri.to_string(), body })
            }
            Err(e) => {
                let address = last.lock().ok().and_then(|last| *last);
                Err(describe(&e, &origin, address))
            }
        }
    }

    fn agent(&mut self, origin: &Origin, insecure: bool) -> Result<(Agent, Arc<Mutex<Option<SocketAddr>>>)> {
        let key = (origin.clone(), insecure);
        if let Some((agent, last)) = self.agents.get(&key) {
            return Ok((agent.clone(), last.clone()));
        }
        let tls = trust::tls_config(&origin.registry(), &self.settings.certs_d, !insecure).map_err(|e| Fault::permanent(e.message))?;
        let proxy = proxy::for_target(&|name| std::env::var(name).ok(), origin.https, &origin.host, origin.port);
        let proxy = proxy.map(|url| ureq::Proxy::new(&url)).transpose().map_err(|e| Fault::permanent(format!("proxyconnect: {e}")))?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .proxy(proxy)
            .tls_config(tls)
            .user_agent(self.settings.user_agent.as_str())
            .accept_encoding("identity")
            .max_response_header_size(HEAD_MAX)
            .input_buffer_size(256 * 1024)
            .output_buffer_size(256 * 1024)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .timeout_per_write(Some(STALL_TIMEOUT))
            .build();
        let stub = Stub { names: self.settings.names.clone(), ..Stub::default() };
        let last = stub.last.clone();
        let agent = Agent::with_parts(config, DefaultConnector::default(), stub);
        self.agents.insert(key, (agent.clone(), last.clone()));
        Ok((agent, last))
    }
}

fn parse(url: &str) -> Result<Uri> {
    url.parse().map_err(|e| Fault::permanent(format!("parse {url:?}: {e}")))
}

/// A Location header against the URL that it answers.
pub fn join(base: &str, location: &str) -> Result<String> {
    if location.contains("://") {
        return Ok(location.into());
    }
    let scheme_end = base.find("://").ok_or_else(|| Fault::permanent("not an absolute URL"))? + 3;
    let (scheme, rest) = base.split_at(scheme_end);
    if let Some(authority) = location.strip_prefix("//") {
        return Ok(format!("{scheme}{authority}"));
    }
    let authority = rest.find(['/', '?']).map_or(rest, |end| &rest[..end]);
    if location.starts_with('/') {
        return Ok(format!("{scheme}{authority}{location}"));
    }
    let path = rest[authority.len()..].split('?').next().unwrap_or_default();
    let dir = path.rfind('/').map_or("/", |end| &path[..=end]);
    Ok(format!("{scheme}{authority}{dir}{location}"))
}

/// An I/O failure in the words of Go's net package.
pub fn words(e: &std::io::Error) -> String {
    if let Some(inner) = e.get_ref().and_then(|inner| inner.downcast_ref::<crate::error::Error>()) {
        return inner.message.clone();
    }
    if let Some(inner) = e.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        return match inner {
            ureq::Error::Io(e) => words(e),
            ureq::Error::Timeout(_) => "i/o timeout".into(),
            ureq::Error::Protocol(_) => "unexpected EOF".into(),
            other => other.to_string(),
        };
    }
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "unexpected EOF".into(),
        std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => "i/o timeout".into(),
        _ => crate::error::strerror(e),
    }
}

/// A failed exchange as Go's HTTP client tells it.
fn describe(e: &ureq::Error, origin: &Origin, address: Option<SocketAddr>) -> Fault {
    let address = address.map_or_else(|| format!("{}:{}", origin.host, origin.port), |a| a.to_string());
    match e {
        ureq::Error::HostNotFound => Fault::permanent(format!("dial tcp: lookup {}: no such host", origin.host)),
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            Fault::transient(format!("dial tcp {address}: i/o timeout"))
        }
        ureq::Error::Timeout(_) => Fault::transient("net/http: timeout awaiting response headers"),
        ureq::Error::Io(e) => match e.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ETIMEDOUT) => {
                Fault::transient(format!("dial tcp {address}: connect: {}", crate::error::strerror(e)))
            }
            _ => {
                // rustls wraps its own errors into io::Error during the handshake.
                let text = e.to_string();
                tls_words(&text, origin).map_or_else(|| Fault::transient(io_words(e)), Fault::permanent)
            }
        },
        ureq::Error::Rustls(e) => {
            let text = e.to_string();
            Fault::permanent(tls_words(&text, origin).unwrap_or_else(|| format!("tls: {text}")))
        }
        ureq::Error::LargeResponseHeader(..) => Fault::permanent("net/http: server response headers exceeded 65536 bytes; aborted"),
        ureq::Error::ConnectProxyFailed(why) => Fault::transient(format!("proxyconnect tcp: {why}")),
        ureq::Error::Protocol(why) => Fault::transient(format!("net/http: HTTP/1.x transport connection broken: {why}")),
        other => Fault::transient(other.to_string()),
    }
}

fn io_words(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "EOF".into(),
        _ => words(e),
    }
}

/// A TLS failure's words, if the text is one.
fn tls_words(text: &str, origin: &Origin) -> Option<String> {
    let told = if text.contains("UnknownIssuer") {
        "tls: failed to verify certificate: x509: certificate signed by unknown authority".into()
    } else if text.contains("Expired") || text.contains("expired") {
        "tls: failed to verify certificate: x509: certificate has expired or is not yet valid".into()
    } else if text.contains("NotValidForName") || text.contains("not valid for name") {
        format!("tls: failed to verify certificate: x509: certificate is not valid for {}", origin.host)
    } else if text.contains("InvalidContentType") || text.contains("corrupt message") {
        "http: server gave HTTP response to HTTPS client".into()
    } else if text.contains("certificate") || text.contains("alert") || text.contains("Handshake") {
        format!("remote error: tls: {text}")
    } else {
        return None;
    };
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_join() {
        for (base, location, joined) in [
            ("http://h:1/v2/a", "https://x/y?z", "https://x/y?z"),
            ("http://h:1/v2/a", "//x/y", "http://x/y"),
            ("http://h:1/v2/a?b/c", "/y", "http://h:1/y"),
            ("http://h:1/v2/a?b/c", "y", "http://h:1/v2/y"),
            ("http://h", "y", "http://h/y"),
        ] {
            assert_eq!(join(base, location).unwrap(), joined);
        }
    }

    #[test]
    fn origins_differ_by_port_and_scheme() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap());
        assert_eq!(origin("https://H/x").unwrap(), origin("https://h:443/y").unwrap());
        assert_ne!(origin("https://h/x").unwrap(), origin("https://h:5000/x").unwrap());
        assert_ne!(origin("https://h/x").unwrap(), origin("http://h:443/x").unwrap());
        assert!(origin("ftp://h/x").is_err());
        assert!(origin("http://u:p@h/x").is_err());
        assert!(origin("/x").is_err());
    }
}
