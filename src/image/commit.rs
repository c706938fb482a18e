//! `POST /commit`: a container's own changes become a layer, and with its image's layers a new image.
//!
//! The worker copies the upper directory: the container keeps its own, running or not. While it copies, a running container
//! is paused if that was asked for; the daemon does that, and ends it also when the worker dies.

use super::archive::ingest::Expect;
use super::archive::write::{Options, Writer};
use super::config::{Document, EMPTY_TAR, History, LAYERS_MAX, NewImage};
use super::digest::Digest;
use super::place::Place;
use super::reference::Reference;
use super::store::no_such_image;
use super::work::{self, Staged, Work};
use crate::container::config::Config;
use crate::container::create::merge_image;
use crate::error::{Error, Result};
use crate::http::Response;
use crate::worker::Context;
use crate::worker::message::ImageMessage;
use crate::{json, sys, timestamp};
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Bytes of the request's body: a container configuration.
const BODY_MAX: u64 = 16 << 20;

/// What is to be committed, as the daemon knows it.
pub struct Commit {
    pub place: Place,
    pub container: String,
    /// The container's upper directory.
    pub upper: PathBuf,
    /// The container's own configuration.
    pub config: Config,
    pub image: Digest,
    /// The image's document.
    pub parent: Document,
    pub pause: bool,
    pub reference: Option<Reference>,
    pub author: String,
    pub comment: String,
    pub changes: Vec<String>,
}

impl Commit {
    /// Does it, and answers with the new image's id.
    pub fn run(self, context: &mut Context) -> Result<()> {
        let config = self.new_config(context)?;
        let mut work = Work::begin(&self.place, context.number)?;
        if let Some(top) = self.parent.chain_id() {
            work::claim(context, top)?.ok_or_else(|| no_such_image(&self.image.to_string()))?;
        }
        work::ask(context, ImageMessage::BeginCommit { container: self.container.clone(), pause: self.pause })?;
        let staged = self.copy(&mut work);
        // Before the error is looked at: the container must run on, and what was copied from one that is gone is not whole.
        work::ask(context, ImageMessage::EndCommit { container: self.container.clone() })?;
        let staged = staged?;
        let id = self.store(context, &mut work, &config, &staged)?;
        if let Some(reference) = &self.reference {
            work::tag(context, reference, id, true)?;
        }
        let image_ref = self.reference.as_ref().map(Reference::familiar).unwrap_or_default();
        let done = ImageMessage::Committed { container: self.container.clone(), id, reference: image_ref, comment: self.comment.clone() };
        work::ask(context, done)?;
        context.respond(&Response::json(201, &json!({"Id": id})))
    }

    /// The new image's configuration: the body's or the container's, the changes, and what the container has besides.
    fn new_config(&self, context: &mut Context) -> Result<Config> {
        let mut body = Vec::new();
        context.body().take(BODY_MAX + 1).read_to_end(&mut body).map_err(|e| super::archive::from_io("read the request", e))?;
        if body.len() as u64 > BODY_MAX {
            return Err(Error::invalid("request body is too large"));
        }
        let given: Option<Config> = match body.trim_ascii() {
            b"" | b"null" => None,
            text => Some(json::from_body(text)?),
        };
        let mut config = crate::build::steps::apply_changes(given.as_ref().unwrap_or(&self.config), &self.changes)?;
        merge_image(&mut config, &Document { config: Some(self.config.clone()), ..Document::default() });
        Ok(config)
    }

    /// The upper directory as a layer in staging: one process reads it, another unpacks the stream.
    fn copy(&self, work: &mut Work) -> Result<Staged> {
        let upper = work::open_dir(&self.upper)?;
        let (reader, writer) = sys::fd::pipe2(0).map_err(|e| Error::io("pipe", &e))?;
        let Some(child) = sys::process::fork().map_err(|e| Error::io("fork", &e))? else {
            drop(reader);
            let mut out = File::from(writer);
            let mut tree = Writer::new(&mut out);
            let options = Options { whiteouts: true, live: true, ..Options::default() };
            let written = tree.tree(upper.as_fd(), c".", b"", &options).and_then(|()| tree.finish());
            if let Err(e) = &written {
                log::error!("commit: {e}");
            }
            sys::process::exit(i32::from(written.is_err()));
        };
        drop(writer);
        let staged = work.ingest(&mut File::from(reader), &Expect::default(), &mut |_| {});
        let status = sys::process::waitpid(child, 0).map_err(|e| Error::io("wait", &e))?;
        match (staged, status) {
            (Ok(staged), Some((_, status))) if status.code() == 0 => Ok(staged),
            (Ok(_), _) => Err(Error::system("the container's files could not be read")),
            (Err(e), _) => Err(e),
        }
    }

    fn store(&self, context: &mut Context, work: &mut Work, config: &Config, staged: &Staged) -> Result<Digest> {
        let created = timestamp::rfc3339(sys::time::realtime_ns());
        let mut diff_ids = self.parent.diff_ids().to_vec();
        let empty = staged.layer.diff_id.to_string() == EMPTY_TAR;
        if !empty {
            diff_ids.push(staged.layer.diff_id);
        }
        if diff_ids.len() > LAYERS_MAX {
            return Err(Error::invalid("max depth exceeded"));
        }
        let mut history = self.parent.history.clone();
        history.push(History {
            created: Some(created.clone()),
            created_by: self.config.cmd.clone().unwrap_or_default().join(" "),
            author: self.author.clone(),
            comment: self.comment.clone(),
            empty_layer: empty,
        });
        let image = NewImage {
            platform: self.parent.platform(),
            config,
            created,
            author: &self.author,
            comment: "",
            diff_ids,
            history,
            container: Some((&self.container, &self.config)),
        };
        let document = work.stage_document(&image.to_bytes())?;
        let meta = work.describe(staged, self.parent.chain_id(), None)?;
        work.sync()?;
        if !empty && work::claim(context, meta.chain)?.is_none() {
            work::layer_ready(context, staged, meta)?;
        }
        let id = work::image_ready(context, work, document, Some(self.image), true)?;
        work::event(context, "create", id)?;
        Ok(id)
    }
}
