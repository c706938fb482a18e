//! A repository at a registry: ping, tokens, tags, manifests and blobs (OCI distribution specification).

use super::auth::{self, Challenge, Credentials, TokenAnswer};
use super::blob::Blob;
use super::endpoint::{Endpoint, Settings};
use super::fault::{Fault, Result};
use super::transport::{Answer, Exchange, Origin, Payload, Transport, words};
use crate::image::digest::Digest;
use std::io::Read;
use std::time::{Duration, Instant};

/// Bounds on what a registry may say (bytes).
pub const MANIFEST_MAX: u64 = 4 << 20;
pub const CONFIG_MAX: u64 = 8 << 20;
const TOKEN_MAX: u64 = 1 << 20;
const TAGS_MAX: u64 = 4 << 20;
/// Pages of a tag list that are followed.
const TAG_PAGES_MAX: usize = 1000;

/// The manifest types that are asked for, in the reference's order.
pub const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
];

/// What a client brings besides the name.
#[derive(Clone, Default)]
pub struct Login {
    pub credentials: Credentials,
    /// X-Meta-* headers of the API request.
    pub meta: Vec<(String, String)>,
}

/// One repository through one endpoint.
pub struct Client {
    pub(super) transport: Transport,
    endpoint: Endpoint,
    /// "library/busybox"; empty for login and search.
    path: String,
    /// "pull" or "pull,push".
    actions: &'static str,
    login: Login,
    challenge: Option<Challenge>,
    /// Repositories besides `path` that tokens are asked for (cross-repository mounts).
    also: Vec<String>,
    token: Option<(String, Instant)>,
    refresh_token: String,
}

/// A manifest as received, its digest checked or computed over these very bytes.
pub struct Fetched {
    pub bytes: Vec<u8>,
    pub digest: Digest,
    /// Content-Type without parameters.
    pub media_type: String,
}

impl Client {
    /// Reaches the endpoint (`GET /v2/`) and learns how it wants to be spoken to.
    pub fn connect(settings: &Settings, endpoint: &Endpoint, path: &str, actions: &'static str, login: &Login) -> Result<Client> {
        let mut client = Client {
            transport: Transport::new(settings.clone()),
            endpoint: endpoint.clone(),
            path: path.into(),
            actions,
            login: if endpoint.mirror { Login::default() } else { login.clone() },
            challenge: None,
            also: Vec::new(),
            token: None,
            refresh_token: login.credentials.identity_token.clone(),
        };
        let answer = client.transport.run(Exchange::new("GET", client.url("")), endpoint.insecure)?;
        match answer.status {
            401 => client.challenge = best(answer.challenges()),
            200..=299 => {}
            _ => return Err(answer.into_fault()),
        }
        Ok(client)
    }

    /// The same repository for another process: what is known goes along, connections do not.
    pub fn sibling(&self) -> Client {
        Client {
            transport: Transport::new(self.transport.settings().clone()),
            endpoint: self.endpoint.clone(),
            path: self.path.clone(),
            actions: self.actions,
            login: self.login.clone(),
            challenge: self.challenge.clone(),
            also: self.also.clone(),
            token: self.token.clone(),
            refresh_token: self.refresh_token.clone(),
        }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tokens from now on cover these repositories too.
    pub fn also_pull_from(&mut self, repositories: Vec<String>) {
        if repositories != self.also {
            self.also = repositories;
            self.token = None;
        }
    }

    /// `/v2/<path>/<rest>` at the endpoint.
    pub fn url(&self, rest: &str) -> String {
        match rest {
            "" => format!("{}/v2/", self.endpoint.base()),
            rest => format!("{}/v2/{}/{rest}", self.endpoint.base(), self.path),
        }
    }

    /// Sends a request with credentials; an answer of 400 and above is a fault, but 401 is tried once more with a new token.
    pub fn send(&mut self, mut exchange: Exchange) -> Result<Answer> {
        let repeatable = !matches!(exchange.body, Payload::Stream(..));
        let ours =
            Origin::of(&exchange.url.parse().map_err(|e| Fault::permanent(format!("parse {:?}: {e}", exchange.url)))?)? == self.origin()?;
        if !ours {
            // Not the registry itself (an upload's location elsewhere): nothing of the client's goes along.
            let answer = self.transport.run(exchange, false)?;
            return if answer.status < 400 { Ok(answer) } else { Err(answer.into_fault()) };
        }
        exchange.headers.extend(self.login.meta.iter().cloned());
        let (method, url) = (exchange.method, exchange.url.clone());
        exchange.authorization = self.authorization().map_err(|f| f.of_request(method, &url))?;
        let again = Exchange {
            method,
            url: url.clone(),
            headers: exchange.headers.clone(),
            authorization: None,
            body: match &exchange.body {
                Payload::Bytes(bytes) => Payload::Bytes(bytes),
                _ => Payload::None,
            },
        };
        let answer = self.transport.run(exchange, self.endpoint.insecure)?;
        if answer.status == 401 && repeatable {
            let challenge = best(answer.challenges());
            let refused_scope = answer.challenges().iter().any(|c| c.parameter("error") == "insufficient_scope");
            if challenge.is_some() && !refused_scope && (self.challenge != challenge || self.token.is_some()) {
                self.challenge = challenge;
                self.token = None;
                let authorization = self.authorization().map_err(|f| f.of_request(method, &url))?;
                let answer = self.transport.run(Exchange { authorization, ..again }, self.endpoint.insecure)?;
                return if answer.status < 400 { Ok(answer) } else { Err(answer.into_fault()) };
            }
        }
        if answer.status < 400 { Ok(answer) } else { Err(answer.into_fault()) }
    }

    fn origin(&self) -> Result<Origin> {
        Origin::of(&self.endpoint.base().parse().map_err(|e| Fault::permanent(format!("parse {:?}: {e}", self.endpoint.base())))?)
    }

    /// The Authorization header that the registry's challenge asks for.
    fn authorization(&mut self) -> Result<Option<String>> {
        if !self.login.credentials.registry_token.is_empty() {
            return Ok(Some(format!("Bearer {}", self.login.credentials.registry_token)));
        }
        let Some(challenge) = self.challenge.clone() else { return Ok(None) };
        if challenge.scheme == "basic" {
            return self.login.credentials.basic().map(Some).ok_or_else(|| Fault::permanent("no basic auth credentials"));
        }
        if let Some((token, until)) = &self.token
            && Instant::now() < *until
        {
            return Ok(Some(format!("Bearer {token}")));
        }
        let mut scopes = vec![format!("repository:{}:{}", self.path, self.actions)];
        scopes.extend(self.also.iter().map(|path| format!("repository:{path}:pull")));
        if self.path.is_empty() {
            scopes.clear();
        }
        let answer = self.fetch_token(&challenge, &scopes, false)?;
        let token =
            answer.bearer().ok_or_else(|| Fault::permanent("authorization server did not include a token in the response"))?.to_owned();
        let seconds = u64::try_from(answer.expires_in).unwrap_or(0).clamp(60, 24 * 3600);
        // A little early, so that it does not run out on the way.
        self.token = Some((token.clone(), Instant::now() + Duration::from_secs(seconds - 10)));
        Ok(Some(format!("Bearer {token}")))
    }

    /// Asks the challenge's token server; `offline` wants a refresh token too (login).
    fn fetch_token(&mut self, challenge: &Challenge, scopes: &[String], offline: bool) -> Result<TokenAnswer> {
        let realm = challenge.parameter("realm").to_owned();
        if realm.is_empty() {
            return Err(Fault::permanent("no realm specified for token auth challenge"));
        }
        let origin = Origin::of(&realm.parse().map_err(|e| Fault::permanent(format!("invalid token auth challenge realm: {e}")))?)?;
        if self.endpoint.https && !origin.https {
            return Err(Fault::permanent(format!("token auth challenge realm {realm:?} is not https")));
        }
        let insecure = self.endpoint.insecure && origin == self.origin()?;
        let service = challenge.parameter("service").to_owned();
        let user = self.login.credentials.username.clone();
        if !self.refresh_token.is_empty() {
            let pairs = [
                ("client_id", "docker".to_owned()),
                ("grant_type", "refresh_token".into()),
                ("refresh_token", self.refresh_token.clone()),
                ("scope", scopes.join(" ")),
                ("service", service),
            ];
            let body = auth::form(&pairs);
            let mut exchange = Exchange::new("POST", &realm).header("Content-Type", "application/x-www-form-urlencoded");
            exchange.body = Payload::Bytes(body.as_bytes());
            return self.token_answer(exchange, insecure);
        }
        let separator = if realm.contains('?') { '&' } else { '?' };
        let query = auth::token_query(challenge, scopes, &user, offline);
        let mut exchange = Exchange::new("GET", format!("{realm}{separator}{query}"));
        exchange.authorization = self.login.credentials.basic();
        self.token_answer(exchange, insecure)
    }

    fn token_answer(&mut self, exchange: Exchange, insecure: bool) -> Result<TokenAnswer> {
        let mut answer = self.transport.run(exchange, insecure)?;
        if answer.status >= 400 {
            return Err(answer.into_fault());
        }
        let bytes = answer.bytes(TOKEN_MAX, "token")?;
        let token: TokenAnswer =
            serde_json::from_slice(&bytes).map_err(|e| Fault::permanent(format!("unable to decode token response: {e}")))?;
        if !token.refresh_token.is_empty() && self.refresh_token.is_empty() {
            self.refresh_token.clone_from(&token.refresh_token);
        }
        Ok(token)
    }

    /// Logs in: the identity token when the registry's token server gives one, else an empty string.
    pub fn login(&mut self) -> Result<String> {
        let url = self.url("");
        let challenge = self.challenge.clone();
        if let Some(challenge) = challenge.filter(|c| c.scheme == "bearer") {
            let had = self.refresh_token.clone();
            let answer = self.fetch_token(&challenge, &[], true).map_err(|f| f.of_request("GET", &url))?;
            let token = answer.bearer().ok_or_else(|| Fault::permanent("authorization server did not include a token in the response"))?;
            self.token = Some((token.to_owned(), Instant::now() + Duration::from_secs(50)));
            if had.is_empty() {
                self.refresh_token.clone_from(&answer.refresh_token);
            }
        }
        let mut exchange = Exchange::new("GET", &url);
        exchange.authorization = self.authorization().map_err(|f| f.of_request("GET", &url))?;
        let answer = self.transport.run(exchange, self.endpoint.insecure)?;
        if answer.status != 200 {
            let reason = ureq::http::StatusCode::from_u16(answer.status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
            let message = format!("login attempt to {url} failed with status: {} {reason}", answer.status);
            return Err(Fault { status: answer.status, ..Fault::permanent(message) });
        }
        Ok(self.refresh_token.clone())
    }

    /// A tag's digest without its manifest; `None` when the registry does not say.
    pub fn resolve(&mut self, tag: &str) -> Result<Option<Digest>> {
        let exchange = manifest_request("HEAD", self.url(&format!("manifests/{tag}")));
        match self.send(exchange) {
            Ok(answer) => Ok(answer.header("docker-content-digest").and_then(|d| d.parse().ok())),
            // A HEAD has no body to explain itself: the GET that follows tells.
            Err(fault) if fault.status >= 400 => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Fetches a manifest by tag or digest; by digest, the bytes must have it.
    pub fn manifest(&mut self, by: &str) -> Result<Fetched> {
        let mut answer = self.send(manifest_request("GET", self.url(&format!("manifests/{by}"))))?;
        let media_type = answer.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = answer.bytes(MANIFEST_MAX, "manifest")?;
        let digest = Digest::of(&bytes);
        if let Ok(expected) = by.parse::<Digest>()
            && expected != digest
        {
            return Err(Fault::permanent(format!("manifest verification failed for digest {expected}")));
        }
        if let Some(claimed) = answer.header("docker-content-digest")
            && !media_type.contains("manifest.v1")
            && claimed.starts_with("sha256:")
            && claimed.parse::<Digest>().ok() != Some(digest)
        {
            return Err(Fault::permanent(format!("manifest verification failed for digest {claimed}")));
        }
        Ok(Fetched { bytes, digest, media_type })
    }

    /// A manifest by digest from another repository of this registry.
    pub fn manifest_of(&mut self, path: &str, digest: Digest) -> Result<Fetched> {
        if path == self.path {
            return self.manifest(&digest.to_string());
        }
        self.also_pull_from(vec![path.to_owned()]);
        let own = std::mem::replace(&mut self.path, path.to_owned());
        let fetched = self.manifest(&digest.to_string());
        self.path = own;
        self.token = None;
        fetched
    }

    /// A small blob whole, checked against its descriptor.
    pub fn blob_bytes(&mut self, digest: Digest, size: u64, max: u64) -> Result<Vec<u8>> {
        if size > max {
            return Err(Fault::permanent(format!("blob {digest} is larger than {max} bytes")));
        }
        let mut reader = self.blob(digest, size);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(|e| Fault::permanent(words(&e)))?;
        Ok(bytes)
    }

    /// A blob as a stream that resumes by itself and ends well only when size and digest match.
    pub fn blob(&mut self, digest: Digest, size: u64) -> Blob<'_> {
        Blob::new(self, digest, size)
    }

    /// Whether the repository has a blob; its size when told.
    pub fn has_blob(&mut self, digest: Digest) -> Result<Option<u64>> {
        match self.send(Exchange::new("HEAD", self.url(&format!("blobs/{digest}")))) {
            Ok(answer) => Ok(Some(answer.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0))),
            Err(fault) if fault.status == 404 => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// All tags, page by page.
    pub fn tags(&mut self) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let mut tags = Vec::new();
        let mut url = self.url("tags/list");
        for _ in 0..TAG_PAGES_MAX {
            let mut answer = self.send(Exchange::new("GET", &url))?;
            let bytes = answer.bytes(TAGS_MAX, "tag list")?;
            let page: Page = serde_json::from_slice(&bytes).map_err(|e| Fault::permanent(format!("decode tag list: {e}")))?;
            tags.extend(page.tags.unwrap_or_default());
            let next = answer.header("link").and_then(|link| Some(link.split_once('<')?.1.split_once('>')?.0.to_owned()));
            match next {
                Some(next) => url = super::transport::join(&url, &next)?,
                None => return Ok(tags),
            }
        }
        Err(Fault::permanent("tag list does not end"))
    }
}

fn manifest_request<'a>(method: &'static str, url: String) -> Exchange<'a> {
    MANIFEST_TYPES.iter().fold(Exchange::new(method, url), |exchange, kind| exchange.header("Accept", *kind))
}

/// Bearer before basic; others cannot be answered.
fn best(challenges: Vec<Challenge>) -> Option<Challenge> {
    let find = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme).cloned();
    find("bearer").or_else(|| find("basic"))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
