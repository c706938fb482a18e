//! `POST /images/{name}/insert`: a new image, the old one and a layer with exactly one file that a URL gave.

use super::archive::encode::{Item, encode};
use super::archive::header::{BLOCK, Time};
use super::archive::ingest::Expect;
use super::config::{Document, History, LAYERS_MAX, NewImage};
use super::digest::Digest;
use super::place::Place;
use super::store::no_such_image;
use super::work::{self, Work};
use crate::container::overlay;
use crate::container::plan::Overlay;
use crate::error::{Error, Result};
use crate::registry::endpoint::Settings;
use crate::registry::transport::{Exchange, Transport};
use crate::worker::Context;
use crate::{sys, timestamp};
use serde_json::json;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Largest file: 4 GiB.
const FILE_MAX: u64 = 4 << 30;

/// What is asked for.
pub struct Insert {
    pub place: Place,
    pub image: Digest,
    pub document: Document,
    /// Directory numbers of the image's layers, top first.
    pub layers: Vec<u64>,
    pub path: String,
    pub url: String,
    pub settings: Settings,
}

impl Insert {
    pub fn run(self, context: &mut Context) -> Result<()> {
        if let Some(top) = self.document.chain_id() {
            work::claim(context, top)?.ok_or_else(|| no_such_image(&self.image.to_string()))?;
        }
        let mut work = Work::begin(&self.place, context.number)?;
        let name = self.place_in_image()?;
        let mut answer = Transport::new(self.settings.clone()).run(Exchange::new("GET", &self.url), false)?;
        if answer.status >= 400 {
            return Err(Error::invalid(format!("failed to GET {} with status {}", self.url, answer.status)));
        }
        let file = work.spool(&mut answer.body.as_reader(), FILE_MAX)?;
        let now = sys::time::realtime_ns();
        let mtime = Time { seconds: now.div_euclid(1_000_000_000), nanoseconds: 0 };
        let (head, _) = encode(&Item { mode: 0o755, ..Item::file(name.as_bytes(), file.size, mtime) })?;
        let padding = file.size.wrapping_neg() % BLOCK as u64;
        let mut tar = head.chain(work.open(&file.name)?).chain(io::repeat(0).take(padding + 2 * BLOCK as u64));
        let staged = work.ingest(&mut tar, &Expect::default(), &mut |_| {})?;
        let meta = work.describe(&staged, self.document.chain_id(), None)?;
        let document = work.stage_document(&self.new_document(staged.layer.diff_id, &timestamp::rfc3339(now))?)?;
        work.sync()?;
        if work::claim(context, meta.chain)?.is_none() {
            work::layer_ready(context, &staged, meta)?;
        }
        let id = work::image_ready(context, &work, document, Some(self.image), true)?;
        work::event(context, "create", id)?;
        context.start(200, "application/json")?;
        context.line(&json!({"status": "Inserting", "progress": "1/1 (100%)"}))?;
        context.line(&json!({"status": id}))
    }

    fn new_document(&self, diff: Digest, created: &str) -> Result<Vec<u8>> {
        let mut diff_ids = self.document.diff_ids().to_vec();
        diff_ids.push(diff);
        if diff_ids.len() > LAYERS_MAX {
            return Err(Error::invalid("max depth exceeded"));
        }
        let mut history = self.document.history.clone();
        let created_by = format!("echo insert {} {}", self.url, self.path);
        history.push(History { created: Some(created.to_owned()), created_by, ..History::default() });
        let image = NewImage {
            platform: self.document.platform(),
            config: &self.document.config.clone().unwrap_or_default(),
            created: created.to_owned(),
            author: &self.document.author,
            comment: "",
            diff_ids,
            history,
            container: None,
        };
        Ok(image.to_bytes())
    }

    /// The file's name in the layer: its directory as it really lies in the image, links resolved within it.
    /// A path that exists is refused, and one whose directory does not.
    fn place_in_image(&self) -> Result<String> {
        let root = self.mount()?;
        let (parent, name) = self.path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", &self.path));
        if name.is_empty() || name == "." || name == ".." {
            return Err(Error::invalid(format!("path {:?} names no file", self.path)));
        }
        let failed = |e: &io::Error| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::invalid(format!("{parent}: {}", crate::error::strerror(e))),
            _ => Error::io("open in the image", e),
        };
        let open = |path: &str, flags: i32| -> io::Result<OwnedFd> {
            let path = sys::cstring(if path.is_empty() { "/" } else { path })?;
            let resolve = sys::fd::RESOLVE_IN_ROOT | sys::fd::RESOLVE_NO_MAGICLINKS;
            sys::fd::openat2(root.as_fd(), &path, libc::O_PATH | flags, 0, resolve)
        };
        let directory = open(parent, libc::O_DIRECTORY).map_err(|e| failed(&e))?;
        let c_name = sys::cstring(name).map_err(|_| Error::invalid("path holds a NUL"))?;
        if sys::fs::fstatat(directory.as_fd(), &c_name, libc::AT_SYMLINK_NOFOLLOW).is_ok() {
            return Err(Error::conflict(format!("{} exists already in the image", self.path)));
        }
        // A detached mount's paths begin at its own root.
        let link = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).map_err(|e| Error::io("readlink", &e))?;
        let real = String::from_utf8(link.as_os_str().as_bytes().to_vec()).map_err(|_| Error::invalid("path is not UTF-8"))?;
        let real = real.trim_matches('/');
        Ok(if real.is_empty() { name.to_owned() } else { format!("{real}/{name}") })
    }

    /// The image's tree, read-only and seen by nobody else.
    fn mount(&self) -> Result<OwnedFd> {
        let lower = self.layers.iter().map(|number| sys::cstring(self.place.layer(*number).join("diff").as_os_str().as_bytes()));
        let lower = lower.collect::<io::Result<Vec<_>>>().map_err(|e| Error::io("name layers", &e))?;
        if lower.is_empty() {
            return Err(Error::invalid("the image has no layers"));
        }
        overlay::mount(&Overlay { lower, upper: None, work: None }).map_err(|e| Error::io("mount the image", &e))
    }
}
