//! An image while a build stands on it, and the images that steps make.

use super::cache;
use super::job::Build;
use super::steps::State;
use crate::container::config::Config;
use crate::container::plan::Overlay;
use crate::container::{overlay, rootfs};
use crate::error::{Error, Result};
use crate::image::archive::ingest::layer_from_upper;
use crate::image::config::{Document, History, NewImage, Platform, RootFs};
use crate::image::digest::{Digest, chain_ids};
use crate::image::place::Place;
use crate::image::state_file;
use crate::image::work::{self, Staged};
use crate::sys;
use crate::timestamp;
use crate::worker::Context;
use crate::worker::message::{Answer, ImageMessage};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// An image; without an id it is `scratch`.
#[derive(Clone)]
pub struct Image {
    pub id: Option<Digest>,
    pub document: Document,
    /// Directory numbers, bottom first.
    pub layers: Vec<u64>,
    pub platform: Platform,
}

/// A new layer's directories while a step fills it.
pub struct Filling {
    /// Name in staging, and the directory that gets `diff/` and `recipe`.
    name: String,
    dir: OwnedFd,
    pub upper: PathBuf,
    lower: Vec<CString>,
    work: CString,
}

impl Image {
    pub fn scratch(platform: Option<Platform>) -> Image {
        Image { id: None, document: Document::default(), layers: Vec::new(), platform: platform.unwrap_or_else(Platform::host) }
    }

    /// The local image of this name, its layers held while this worker lives.
    pub fn local(context: &mut Context, place: &Place, name: &str) -> Result<Image> {
        let Answer::Image { id, top, layers } = work::ask(context, ImageMessage::Resolve { name: name.into() })? else {
            return Err(Error::not_found(format!("No such image: {name}")));
        };
        if let Some(top) = top {
            work::claim(context, top)?;
        }
        let dir = work::open_dir(&place.root.join("images"))?;
        let file = sys::cstring(format!("{}.json", id.hex())).map_err(|e| Error::io("name image", &e))?;
        let bytes = state_file::read_regular(dir.as_fd(), &file, crate::image::config::CONFIG_MAX)
            .map_err(|e| Error::io("read image configuration", &e))?;
        let document = Document::parse(&bytes)?;
        Ok(Image { id: Some(id), platform: document.platform(), document, layers })
    }

    /// The layers' trees, top first, as overlay wants them.
    fn lower(&self, place: &Place, empty: &OwnedFd) -> Result<Vec<CString>> {
        let name = |e: std::io::Error| Error::io("name a layer", &e);
        if self.layers.is_empty() {
            return Ok(vec![rootfs::path_of(empty.as_fd())]);
        }
        let paths = self.layers.iter().rev().map(|n| place.layer(*n).join("diff"));
        paths.map(|path| sys::cstring(path.as_os_str().as_bytes()).map_err(name)).collect()
    }
}

impl Filling {
    /// The image with the new layer on top, writable; used up by a jail.
    pub fn merged(&self) -> Result<OwnedFd> {
        let upper = sys::cstring(self.upper.as_os_str().as_bytes()).map_err(|e| Error::io("name a layer", &e))?;
        let overlay = Overlay { lower: self.lower.clone(), upper: Some(upper), work: Some(self.work.clone()) };
        overlay::mount(&overlay).map_err(|e| Error::io("mount the image to build on", &e))
    }
}

impl Build<'_> {
    /// A read-only view of an image's files.
    pub(super) fn view(&mut self, image: &Image) -> Result<OwnedFd> {
        let (_, empty) = self.work()?.directory()?;
        let lower = image.lower(&self.params.place, &empty)?;
        overlay::mount(&Overlay { lower, upper: None, work: None }).map_err(|e| Error::io("mount an image", &e))
    }

    /// Directories for a new layer on an image.
    pub(super) fn fill(&mut self, image: &Image) -> Result<Filling> {
        let failed = |e: std::io::Error| Error::io("make a layer", &e);
        let number = self.context.number;
        let staging = self.params.place.staging(number);
        let work = self.work()?;
        let (name, dir) = work.directory()?;
        let (work_name, _) = work.directory()?;
        let (_, empty) = work.directory()?;
        sys::fs::mkdirat(dir.as_fd(), c"diff", 0o755).map_err(failed)?;
        let lower = image.lower(&self.params.place, &empty)?;
        let lower = if image.layers.is_empty() {
            // The descriptor's path would end with it: the directory's own.
            let (name, _) = self.work()?.directory()?;
            vec![sys::cstring(staging.join(name).as_os_str().as_bytes()).map_err(failed)?]
        } else {
            lower
        };
        let upper = staging.join(&name).join("diff");
        let work = sys::cstring(staging.join(work_name).as_os_str().as_bytes()).map_err(failed)?;
        Ok(Filling { name, dir, upper, lower, work })
    }

    /// Makes a layer of what a step has left in `diff/`, and an image of it; nothing written makes no layer.
    pub(super) fn commit_layer(&mut self, parent: &Image, filling: Filling, state: &State, command: &[String]) -> Result<Image> {
        let layer = layer_from_upper(filling.dir.as_fd())?;
        if layer.entries == 0 {
            return self.commit(parent, None, state, command);
        }
        let staged = Staged { name: filling.name, layer };
        let below = chain_ids(parent.document.diff_ids()).pop();
        let work = self.work()?;
        let meta = work.describe(&staged, below, None)?;
        work.sync()?;
        let stored = match work::claim(self.context, meta.chain)? {
            Some(stored) => stored,
            None => work::layer_ready(self.context, &staged, meta)?,
        };
        self.commit(parent, Some((stored.number, stored.diff)), state, command)
    }

    /// A new image on `parent`, with one more layer or without.
    pub(super) fn commit(&mut self, parent: &Image, layer: Option<(u64, Digest)>, state: &State, command: &[String]) -> Result<Image> {
        let mut diff_ids = parent.document.diff_ids().to_vec();
        let mut layers = parent.layers.clone();
        if let Some((number, diff)) = layer {
            diff_ids.push(diff);
            layers.push(number);
        }
        let created = timestamp::rfc3339(sys::time::realtime_ns());
        let mut history = parent.document.history.clone();
        history.push(History {
            created: Some(created.clone()),
            created_by: command.join(" "),
            author: state.author.clone(),
            empty_layer: layer.is_none(),
            ..History::default()
        });
        let container = Config { cmd: Some(command.to_vec()), ..state.config.clone() };
        let author = if state.author.is_empty() { &parent.document.author } else { &state.author };
        let bytes = NewImage {
            platform: parent.platform.clone(),
            config: &state.config,
            created,
            author,
            comment: "",
            diff_ids: diff_ids.clone(),
            history: history.clone(),
            container: Some(("", &container)),
        }
        .to_bytes();
        let work = self.work()?;
        let staged = work.stage_document(&bytes)?;
        work.sync()?;
        let Some(work) = &self.work else { return Err(Error::system("no place in staging")) };
        let id = work::image_ready(self.context, work, staged, parent.id, true)?;
        let mut document = Document::parse(&bytes)?;
        document.rootfs = Some(RootFs { kind: "layers".into(), diff_ids });
        Ok(Image { id: Some(id), document, layers, platform: parent.platform.clone() })
    }

    /// The image that the cache has for a step, if it may be used and is still there.
    pub(super) fn cached(&mut self, parent: &Image, state: &State, command: &[String], depends: &[String]) -> Result<Option<Image>> {
        if self.params.no_cache {
            return Ok(None);
        }
        let path = self.record(parent, state, command, depends)?;
        let Some(id) = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<Digest>().ok()) else { return Ok(None) };
        match Image::local(self.context, &self.params.place, &id.to_string()) {
            Ok(image) => {
                self.say(" ---> Using cache\n")?;
                Ok(Some(image))
            }
            Err(_) => Ok(None),
        }
    }

    /// Notes that a step made this image.
    pub(super) fn remember(&mut self, parent: &Image, state: &State, command: &[String], depends: &[String], made: &Image) -> Result<()> {
        let path = self.record(parent, state, command, depends)?;
        let Some(id) = made.id else { return Ok(()) };
        let dir = path.parent().map(PathBuf::from).unwrap_or_default();
        let written = std::fs::create_dir_all(&dir).and_then(|()| {
            let temporary = dir.join(format!(".{}-{}", self.context.number, id.short()));
            std::fs::write(&temporary, id.to_string())?;
            std::fs::rename(&temporary, &path)
        });
        // A cache that cannot be written costs time, not the build.
        if let Err(e) = written {
            log::warn!("build cache: {e}");
        }
        Ok(())
    }

    fn record(&self, parent: &Image, state: &State, command: &[String], depends: &[String]) -> Result<PathBuf> {
        let mut depends = depends.to_vec();
        depends.push(parent.platform.to_string());
        let key = cache::key(parent.id, &state.config, command, &depends)?;
        Ok(self.params.place.root.join("build-cache").join(key.hex()))
    }
}
