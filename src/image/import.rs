//! `POST /images/create?fromSrc=`: one tar becomes an image of one layer.

use super::archive::ingest::Expect;
use super::config::{History, NewImage, Platform};
use super::place::Place;
use super::reference::Reference;
use super::work::{self, Work};
use crate::container::config::Config;
use crate::error::{Error, Kind, Result};
use crate::registry::endpoint::Settings;
use crate::registry::progress;
use crate::registry::transport::{Answer, Exchange, Transport};
use crate::worker::Context;
use crate::{sys, timestamp};
use serde_json::json;
use std::io::Read;

/// Bytes between two progress lines.
const PROGRESS_STEP: u64 = 1 << 20;
/// Bytes of an error page that are shown.
const ERROR_MAX: u64 = 4096;

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

    /// Imports what a URL gives.
    pub fn run_url(self, context: &mut Context, url: &str, settings: Settings) -> Result<()> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let mut answer = Transport::new(settings).run(Exchange::new("GET", &url), false)?;
        if answer.status >= 400 {
            return Err(refused(&url, &mut answer));
        }
        let mut work = Work::begin(&self.place, context.number)?;
        context.start(200, "application/json")?;
        context.line(&json!({"status": format!("Downloading from {url}")}))?;
        let total = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let (mut told, mut trouble) = (0, None);
        let mut body = answer.body.as_reader();
        let staged = work.ingest(&mut body, &Expect::default(), &mut |current| {
            let due = current - told >= PROGRESS_STEP || (current == total && current != told);
            if due && trouble.is_none() {
                told = current;
                trouble = context.line(&progress::bar("", "Importing", current, total)).err();
            }
        })?;
        match trouble {
            Some(trouble) => Err(trouble),
            None => self.finish(context, &mut work, &staged),
        }
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

/// A server's refusal, in the reference's words.
fn refused(url: &str, answer: &mut Answer) -> Error {
    let mut text = Vec::new();
    // What can't be read of an error's text is left out of it.
    let _ = answer.body.as_reader().take(ERROR_MAX).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let kind = match answer.status {
        400 => Kind::InvalidParameter,
        401 => Kind::Unauthorized,
        403 => Kind::Forbidden,
        404 => Kind::NotFound,
        _ => Kind::System,
    };
    Error::new(kind, format!("failed to GET {url} with status {}: {}", answer.status, text.trim()))
}
