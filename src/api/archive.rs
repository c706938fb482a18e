//! Files of containers: /containers/{id}/archive, /export, /changes. All of it is workers' work.

use super::Request;
use crate::container::view::View;
use crate::daemon::Daemon;
use crate::error::{Error, Kind, Result};
use crate::http::Response;
use crate::image::archive::changes::changes;
use crate::image::archive::copy::{self, PathStat};
use crate::image::archive::decompress::Decompressor;
use crate::image::archive::{apply, from_io};
use crate::sys;
use crate::worker::message::Message;
use crate::worker::{Context, Job};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What every job here starts from.
struct Asked {
    view: View,
    /// As the client called the container.
    name: String,
    path: String,
    attributes: BTreeMap<String, String>,
}

fn asked(daemon: &Daemon, request: &Request, verb: &str) -> Result<Asked> {
    let id = daemon.containers.resolve(request.param(0))?;
    let attributes = daemon.containers.find(&id)?.attributes();
    let view = View::of(daemon, &id, verb)?;
    Ok(Asked { view, name: request.param(0).to_string(), path: request.query.get("path").to_string(), attributes })
}

fn asked_path(daemon: &Daemon, request: &Request) -> Result<Asked> {
    let asked = asked(daemon, request, "copy files of")?;
    if asked.path.is_empty() {
        return Err(Error::invalid("bad parameter: path cannot be empty"));
    }
    Ok(asked)
}

impl Asked {
    fn job(self, title: &str, run: impl FnOnce(&Asked, &mut Context) -> Result<()> + 'static) -> Job {
        let keep = self.view.pidfd.iter().map(|fd| fd.as_raw_fd()).collect();
        let mut job = Job::new(title, move |context| run(&self, context));
        job.keep = keep;
        job
    }

    fn stat(&self) -> Result<PathStat> {
        let open = self.view.open()?;
        copy::stat(open.policy()?, &self.path).map_err(|e| self.missing(e))
    }

    fn missing(&self, error: Error) -> Error {
        match error.kind {
            Kind::NotFound => Error::not_found(format!("Could not find the file {} in container {}", self.path, self.name)),
            _ => error,
        }
    }

    fn event(&self, context: &mut Context, action: &str) -> Result<()> {
        let (kind, action, id) = ("container".to_string(), action.to_string(), self.view.id.clone());
        context.tell(&Message::Event { kind, action, id, attributes: self.attributes.clone() })
    }
}

fn stat_header(stat: &PathStat) -> Result<(String, String)> {
    let json = serde_json::to_vec(stat).map_err(|e| Error::system(e.to_string()))?;
    Ok(("X-Docker-Container-Path-Stat".to_string(), STANDARD.encode(json)))
}

/// HEAD /containers/{id}/archive.
pub fn stat(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    Ok(asked_path(daemon, request)?.job("stat", |asked, context| {
        let (name, value) = stat_header(&asked.stat()?)?;
        context.respond(&Response::empty(200).with_header(&name, value))
    }))
}

/// GET /containers/{id}/archive.
pub fn get(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    Ok(asked_path(daemon, request)?.job("copy out", |asked, context| {
        let header = stat_header(&asked.stat()?)?;
        asked.event(context, "archive-path")?;
        let open = asked.view.open()?;
        let policy = open.policy()?;
        context.start_with(200, &[("Content-Type".to_string(), "application/x-tar".to_string()), header])?;
        copy::copy_out(policy, &asked.path, context.writer())
    }))
}

/// PUT /containers/{id}/archive.
pub fn put(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    let keep_kinds = request.query.flag("noOverwriteDirNonDir");
    let own = request.query.flag("copyUIDGID");
    Ok(asked_path(daemon, request)?.job("copy in", move |asked, context| {
        let open = asked.view.open()?;
        let policy = open.policy()?;
        let mut source = Decompressor::new(context.body()).map_err(|e| from_io("read the request", e))?;
        let options = apply::Options { keep_kinds, ..apply::Options::copy(&asked.path) };
        let decide = |path: &str| {
            asked.view.check_writable(path)?;
            if own { asked.view.owner() } else { Ok(None) }
        };
        copy::copy_in(policy, &asked.path, &mut source, &options, Box::new(decide)).map_err(|e| asked.missing(e))?;
        asked.event(context, "extract-to-dir")?;
        context.respond(&Response::empty(200))
    }))
}

/// GET /containers/{id}/export.
pub fn export(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    Ok(asked(daemon, request, "export")?.job("export", |asked, context| {
        let open = asked.view.open()?;
        let policy = open.policy()?;
        asked.event(context, "export")?;
        context.start(200, "application/octet-stream")?;
        copy::export(policy, context.writer())
    }))
}

/// GET /containers/{id}/changes.
pub fn list_changes(daemon: &mut Daemon, request: &Request) -> Result<Job> {
    Ok(asked(daemon, request, "diff")?.job("diff", |asked, context| {
        let open = |path: &Path| -> Result<OwnedFd> {
            let name = sys::cstring(path.as_os_str().as_bytes()).map_err(|e| Error::io("open layer", &e))?;
            sys::fd::open(&name, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(|e| Error::io("open layer", &e))
        };
        let upper = open(&asked.view.upper)?;
        let lowers = asked.view.lowers.iter().map(|lower| open(lower)).collect::<Result<Vec<_>>>()?;
        let borrowed: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
        let found = changes(upper.as_fd(), &borrowed)?;
        let list = found.iter().map(|c| json!({"Path": String::from_utf8_lossy(&c.path), "Kind": c.kind as u8}));
        // The reference's empty list is null.
        let answer = if found.is_empty() { Value::Null } else { Value::Array(list.collect()) };
        context.respond(&Response::json(200, &answer))
    }))
}
