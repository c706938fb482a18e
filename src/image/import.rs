//! `POST /images/create?fromSrc=`: one tar becomes an image of one layer.

use super::archive::ingest::Expect;
use super::config::{History, NewImage, Platform};
use super::reference::Reference;
use super::store::Place;
use super::work::{self, Work};
use crate::container::config::Config;
use crate::error::{Error, Result};
use crate::worker::Context;
use crate::{sys, timestamp};
use serde_json::json;

/// What is asked for, checked already.
pub struct Import {
    pub place: Place,
    /// The name to give; `None` leaves the image without.
    pub reference: Option<Reference>,
    pub platform: Platform,
    pub message: String,
    /// The configuration with the changes applied.
    pub config: Config,
}

impl Import {
    /// Checks the request's parameters.
    pub fn new(place: Place, repo: &str, tag: &str, platform: Option<Platform>, message: String, changes: &[String]) -> Result<Import> {
        let platform = platform.unwrap_or_else(Platform::host);
        if platform.os != "linux" {
            return Err(Error::invalid(format!("operating system {:?} is not supported", platform.os)));
        }
        let config = crate::build::steps::apply_changes(&Config::default(), changes)?;
        Ok(Import { place, reference: Reference::from_repo_and_tag(repo, tag)?, platform, message, config })
    }

    /// Imports the request's body.
    pub fn run_body(self, context: &mut Context) -> Result<()> {
        let mut work = Work::begin(&self.place, context.number)?;
        let staged = work.ingest(context.body(), &Expect::default(), &mut |_| {})?;
        self.finish(context, &mut work, &staged)
    }

    fn finish(self, context: &mut Context, work: &mut Work, staged: &work::Staged) -> Result<()> {
        let created = timestamp::rfc3339(sys::time::realtime_ns());
        let step = History { created: Some(created.clone()), comment: self.message.clone(), ..History::default() };
        let document = NewImage {
            platform: self.platform,
            config: &self.config,
            created,
            author: "",
            comment: &self.message,
            diff_ids: vec![staged.layer.diff_id],
            history: vec![step],
            container: None,
        };
        let document = work.stage_document(&document.to_bytes())?;
        let meta = work.describe(staged, None, None)?;
        work.sync()?;
        if work::claim(context, meta.chain)?.is_none() {
            work::layer_ready(context, staged, meta)?;
        }
        let id = work::image_ready(context, work, document, None, false)?;
        if let Some(reference) = &self.reference {
            work::tag(context, reference, id, true)?;
        }
        work::event(context, "import", id)?;
        if !context.started() {
            context.start(200, "application/json")?;
        }
        context.line(&json!({"status": id}))
    }
}
