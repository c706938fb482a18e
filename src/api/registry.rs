//! Registries: pull, push, login, search, distribution. The network is spoken to by workers.

use super::Request;
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::http::Response;
use crate::image::config::Platform;
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::registry::auth::{Credentials, LoginAnswer};
use crate::registry::client::{Client, Login};
use crate::registry::endpoint::{INDEX_HOST, Settings, endpoints};
use crate::registry::fault::Fault;
use crate::registry::pull::{self, Pull};
use crate::registry::push::{self, Push};
use crate::registry::search::{self, Wish};
use crate::registry::{auth, inspect};
use crate::worker::Job;
use std::io::Read;

/// Bytes of a login's body.
const BODY_MAX: u64 = 1 << 20;

/// The daemon's settings for registries, and the client's name as registries see it.
pub fn settings(daemon: &Daemon, request: &Request) -> Settings {
    let options = &daemon.options;
    let count = |flag| usize::try_from(options.int(flag)).unwrap_or(1).max(1);
    let base = Settings::default();
    let user_agent = match request.header("user-agent") {
        Some(upstream) if !upstream.is_empty() => format!("{} UpstreamClient({})", base.user_agent, escape(upstream)),
        _ => base.user_agent.clone(),
    };
    Settings {
        mirrors: options.list("registry-mirror").to_vec(),
        insecure: options.list("insecure-registry").to_vec(),
        downloads: count("max-concurrent-downloads"),
        uploads: count("max-concurrent-uploads"),
        attempts: u32::try_from(options.int("max-download-attempts")).unwrap_or(5).max(1),
        user_agent,
        ..base
    }
}

/// What would end the comment in a User-Agent header is escaped, as the reference does.
fn escape(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control() && c.is_ascii()).take(256);
    plain.flat_map(|c| if "();\\".contains(c) { vec!['\\', c] } else { vec![c] }).collect()
}

/// Credentials and X-Meta headers of a request.
pub fn login_of(request: &Request) -> Login {
    let meta = request.head.headers().iter().filter(|(name, _)| name.to_ascii_lowercase().starts_with("x-meta-"));
    Login { credentials: Credentials::from_header(request.header("x-registry-auth")), meta: meta.cloned().collect() }
}

/// POST /images/create?fromImage=…
pub fn pull(daemon: &mut Daemon, request: &Request, platform: Option<Platform>) -> Result<Job> {
    // A trailing colon once meant all tags.
    let image = request.query.get("fromImage").trim_end_matches(':');
    let mut reference = Reference::parse(image)?;
    let tag = request.query.get("tag");
    if !tag.is_empty() {
        reference = match tag.parse::<Digest>() {
            Ok(digest) => reference.with_digest(digest),
            Err(_) => reference.with_tag(tag)?,
        };
    }
    let (login, settings, place) = (login_of(request), settings(daemon, request), daemon.images.place().clone());
    Ok(pull::job(Pull { reference, platform, login, settings, place }))
}

/// POST /images/{name}/push.
pub fn push(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let mut reference = Reference::parse(request.param(0))?;
    let tag = request.query.get("tag");
    if reference.digest().is_some() {
        return Err(Error::invalid("cannot push a digest reference"));
    }
    if !tag.is_empty() {
        reference = reference.with_tag(tag)?;
    }
    let names: Vec<(Reference, Digest)> = daemon.images.names().of_repository(&reference).map(|(name, id)| (name.clone(), id)).collect();
    let mut origins = Vec::new();
    for (name, id) in names.iter().filter(|(name, _)| name.tag().is_some()) {
        let elsewhere = daemon.images.names_of(*id).filter(|other| other.digest().is_some() && other.domain() == name.domain());
        origins.extend(elsewhere.map(|other| (other.clone(), *id)));
    }
    let (login, settings, place) = (login_of(request), settings(daemon, request), daemon.images.place().clone());
    Ok(push::job(Push { reference, names, origins, login, settings, place }))
}

/// POST /auth.
pub fn auth(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let settings = settings(daemon, request);
    Ok(Job::new("login", move |context| {
        let mut body = Vec::new();
        context.body().take(BODY_MAX).read_to_end(&mut body).map_err(|e| Error::io("read the request", &e))?;
        let credentials: Credentials = crate::json::from_body(&body)?;
        let answer = login(&settings, credentials)?;
        context.respond(&Response::json(200, &answer))
    }))
}

fn login(settings: &Settings, credentials: Credentials) -> Result<LoginAnswer> {
    let server = credentials.server.split_once("://").map_or(credentials.server.as_str(), |(_, rest)| rest);
    let host = server.split('/').next().filter(|h| !h.is_empty()).unwrap_or(INDEX_HOST).to_owned();
    let login = Login { credentials, meta: Vec::new() };
    let mut last = Fault::permanent("no endpoints found");
    for endpoint in endpoints(&host, settings, false) {
        let token = Client::connect(settings, &endpoint, "", "", &login).and_then(|mut client| client.login());
        match token {
            Ok(identity_token) => return Ok(auth::LoginAnswer { identity_token, status: "Login Succeeded".into() }),
            // A refusal is final: the password does not go out again without TLS.
            Err(fault) if fault.code == "UNAUTHORIZED" || fault.status == 401 => return Err(fault.into()),
            Err(fault) => last = fault,
        }
    }
    Err(last.into())
}

/// GET /images/search.
pub fn search(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let limit = request.query.int("limit")?.unwrap_or(0);
    let mut wish = Wish { limit, ..Wish::default() };
    let filters = request.filters()?;
    filters.validate(&["is-automated", "is-official", "stars"])?;
    for name in ["is-automated", "is-official", "stars"] {
        for value in filters.get(name) {
            wish.filter(name, value)?;
        }
    }
    let term = request.query.get("term").to_owned();
    let (settings, login) = (settings(daemon, request), login_of(request));
    Ok(Job::new("search", move |context| {
        let found = search::search(&settings, &term, &wish, &login)?;
        context.respond(&Response::json(200, &found))
    }))
}

/// GET /distribution/{name}/json.
pub fn distribution(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let name = request.param(0);
    let reference = match Reference::parse(name) {
        Ok(reference) => reference.or_latest(),
        Err(e) if name.parse::<Digest>().is_ok() => return Err(Error::invalid(format!("unknown image reference format: {name}: {e}"))),
        Err(e) => return Err(e),
    };
    let (settings, login) = (settings(daemon, request), login_of(request));
    Ok(Job::new(format!("look at {}", reference.familiar()), move |context| {
        let answer = inspect::inspect(&settings, &reference, &login)?;
        context.respond(&Response::json(200, &answer))
    }))
}
