//! A worker's own place under `staging/`: layers and documents are made whole here, and the daemon renames them into place.
//!
//! What is left here when the worker ends, well or not, the daemon deletes.

use super::archive::ingest::IngestedLayer;
use super::digest::Digest;
use super::layer::{LayerMeta, META_FILE, META_VERSION};
use super::state_file::{encode, write_durably};
use super::store::Place;
use crate::error::{Error, Result};
use crate::sys;
use crate::worker::Context;
use crate::worker::message::{Answer, ImageMessage, Message};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// The directory, open.
pub struct Staging {
    dir: OwnedFd,
}

impl Staging {
    /// Makes the worker's place.
    pub fn make(place: &Place, worker: u64) -> Result<Staging> {
        let path = place.staging(worker);
        let failed = |e: std::io::Error| Error::io("make a place in staging", &e);
        let name = sys::cstring(path.as_os_str().as_bytes()).map_err(failed)?;
        match sys::fs::mkdirat(sys::fd::AT_FDCWD, &name, 0o700) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        let dir = sys::fd::open(&name, libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(failed)?;
        Ok(Staging { dir })
    }

    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Makes an empty directory for a layer. Names are letters, digits, `-` and `_`.
    pub fn layer(&self, name: &str) -> Result<OwnedFd> {
        let failed = |e: std::io::Error| Error::io(format!("make layer directory {name}"), &e);
        let name = plain(name)?;
        sys::fs::mkdirat(self.dir(), &name, 0o700).map_err(failed)?;
        sys::fd::openat(self.dir(), &name, libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(failed)
    }

    /// Makes a layer's directory durable with its meta.json. Blocks until the disk has it.
    pub fn finish_layer(layer: BorrowedFd, meta: &LayerMeta) -> Result<()> {
        let name = sys::cstring(META_FILE).map_err(|e| Error::io("name meta.json", &e))?;
        write_durably(layer, &name, &encode(META_VERSION, meta)).map_err(|e| Error::io("write meta.json", &e))?;
        sys::fd::syncfs(layer).map_err(|e| Error::io("sync layer", &e))
    }

    /// Stores an image's document and has it made an image. Its layers must be there already.
    pub fn image(&self, context: &mut Context, document: &[u8], parent: Option<Digest>, built: bool) -> Result<Digest> {
        let id = Digest::of(document);
        let name = format!("image-{}", id.short());
        write_durably(self.dir(), &plain(&name)?, document).map_err(|e| Error::io("write image configuration", &e))?;
        context.ask(&Message::Image(ImageMessage::ImageReady { name, id, parent, built }))?;
        Ok(id)
    }
}

/// Asks the daemon whether a layer is there: its number, or `None` when this worker is to make it.
pub fn claim(context: &mut Context, chain: Digest) -> Result<Option<u64>> {
    match context.ask(&Message::Image(ImageMessage::ClaimLayer { chain }))? {
        Answer::Layer { number, .. } => Ok(Some(number)),
        _ => Ok(None),
    }
}

/// Hands a finished layer over; the parent's layer must be there already. Gives its number.
pub fn ready(context: &mut Context, name: &str, meta: LayerMeta) -> Result<u64> {
    match context.ask(&Message::Image(ImageMessage::LayerReady { name: name.into(), meta }))? {
        Answer::Layer { number, .. } => Ok(number),
        other => Err(Error::system(format!("unexpected answer {other:?}"))),
    }
}

/// A layer's description from what its ingestion found.
pub fn meta(layer: &IngestedLayer, parent: Option<Digest>) -> LayerMeta {
    let chain = super::digest::chain_id(parent, layer.diff_id);
    LayerMeta { chain, diff: layer.diff_id, parent, size: layer.content_size, tar_size: layer.tar_size, known: Vec::new() }
}

fn plain(name: &str) -> Result<CString> {
    sys::cstring(name).map_err(|e| Error::io("name in staging", &e))
}
