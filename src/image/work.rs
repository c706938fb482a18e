//! A worker's half of the store: its place under `staging/`, and the steps from a stream to a layer and an image.
//!
//! Blocking code for forked workers. Nothing here touches `layers/`, `images/` or the index: the daemon does, when it is told
//! that something is whole. The order is: build, write meta.json, [`Work::sync`], then tell.

use super::archive::ingest::{Expect, IngestedLayer, ingest_layer};
use super::archive::recipe;
use super::config::Document;
use super::digest::{Digest, HashingReader, chain_id};
use super::layer::{Blob, LayerMeta, META_FILE, META_VERSION};
use super::place::Place;
use super::reference::Reference;
use super::state_file;
use crate::error::{Error, Result};
use crate::sys;
use crate::worker::Context;
use crate::worker::message::{Answer, ImageMessage, Message};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A worker's directory in staging.
pub struct Work {
    place: Place,
    dir: OwnedFd,
    next: u32,
}

/// A layer that is unpacked and verified, waiting in staging.
#[derive(Debug)]
pub struct Staged {
    /// Name within the worker's place.
    pub name: String,
    pub layer: IngestedLayer,
}

/// A layer that is in the store.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    pub number: u64,
    pub chain: Digest,
    pub diff: Digest,
}

/// A file that was written aside.
#[derive(Debug)]
pub struct Spooled {
    pub name: String,
    /// Bytes.
    pub size: u64,
    pub digest: Digest,
}

fn failed(what: &str) -> impl Fn(io::Error) -> Error + '_ {
    move |e| super::archive::from_io(what, e)
}

impl Work {
    /// Makes the place of worker `number`.
    pub fn begin(place: &Place, number: u64) -> Result<Work> {
        let path = place.staging(number);
        let c_path = sys::cstring(path.as_os_str().as_bytes()).map_err(failed("staging"))?;
        sys::fs::mkdirat(sys::fd::AT_FDCWD, &c_path, 0o700).map_err(failed("make a place in staging"))?;
        let dir = sys::fd::open(&c_path, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(failed("open staging"))?;
        Ok(Work { place: place.clone(), dir, next: 0 })
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    fn name(&mut self, kind: char) -> (String, CString) {
        self.next += 1;
        let name = format!("{kind}{}", self.next);
        let c_name = CString::new(name.clone()).expect("a letter and digits");
        (name, c_name)
    }

    /// An empty directory in the place.
    pub fn directory(&mut self) -> Result<(String, OwnedFd)> {
        let (name, c_name) = self.name('d');
        sys::fs::mkdirat(self.dir.as_fd(), &c_name, 0o700).map_err(failed("mkdir in staging"))?;
        let dir = sys::fd::openat(self.dir.as_fd(), &c_name, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(failed("open staging"))?;
        Ok((name, dir))
    }

    /// Writes a stream of at most `max` bytes aside.
    pub fn spool(&mut self, source: &mut dyn Read, max: u64) -> Result<Spooled> {
        let (name, c_name) = self.name('f');
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = sys::fd::openat(self.dir.as_fd(), &c_name, flags, 0o600).map_err(failed("create in staging"))?;
        let mut source = HashingReader::new(source.take(max.saturating_add(1)));
        io::copy(&mut source, &mut File::from(file)).map_err(failed("write in staging"))?;
        let (digest, size) = source.finish().map_err(failed("read"))?;
        if size > max {
            return Err(Error::invalid(format!("file is larger than {max} bytes")));
        }
        Ok(Spooled { name, size, digest })
    }

    /// Opens what [`Work::spool`] wrote.
    pub fn open(&self, spooled: &str) -> Result<File> {
        let name = sys::cstring(spooled).map_err(failed("name"))?;
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW;
        sys::fd::openat(self.dir.as_fd(), &name, flags, 0).map(File::from).map_err(failed("open in staging"))
    }

    /// Unpacks a layer stream of any compression.
    pub fn ingest(&mut self, source: &mut dyn Read, expect: &Expect, progress: &mut dyn FnMut(u64)) -> Result<Staged> {
        let (name, dir) = self.directory()?;
        let layer = ingest_layer(source, expect, dir.as_fd(), progress)?;
        Ok(Staged { name, layer })
    }

    /// As [`Work::ingest`], from a layer that is in the store: the same bytes for another place in another stack.
    pub fn ingest_copy(&mut self, number: u64, expect: &Expect) -> Result<Staged> {
        let layer = open_layer(&self.place, number)?;
        let (reader, writer) = sys::fd::pipe2(0).map_err(failed("pipe"))?;
        // Another process writes, so that neither waits for the other through a full pipe.
        let Some(child) = sys::process::fork().map_err(failed("fork"))? else {
            drop(reader);
            let outcome = recipe::reproduce(layer.as_fd(), &mut File::from(writer));
            sys::process::exit(i32::from(outcome.is_err()));
        };
        drop(writer);
        let staged = self.ingest(&mut File::from(reader), expect, &mut |_| {});
        let status = sys::process::waitpid(child, 0).map_err(failed("wait"))?;
        let staged = staged?;
        match status {
            Some((_, status)) if status.code() == 0 => Ok(staged),
            _ => Err(Error::system(format!("layer {number} cannot be read again"))),
        }
    }

    /// Completes a staged layer: what it stands on is known now. Returns its chain id.
    pub fn describe(&self, staged: &Staged, parent: Option<Digest>, known: Option<Blob>) -> Result<LayerMeta> {
        let layer = &staged.layer;
        let meta = LayerMeta {
            chain: chain_id(parent, layer.diff_id),
            diff: layer.diff_id,
            parent,
            size: layer.content_size,
            tar_size: layer.tar_size,
            known: known.into_iter().collect(),
        };
        let name = sys::cstring(format!("{}/{META_FILE}", staged.name)).map_err(failed("name"))?;
        self.write_file(&name, &state_file::encode(META_VERSION, &meta))?;
        Ok(meta)
    }

    fn write_file(&self, name: &CString, bytes: &[u8]) -> Result<()> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = sys::fd::openat(self.dir.as_fd(), name, flags, 0o600).map_err(failed("create in staging"))?;
        sys::fd::write_all(file.as_fd(), bytes).map_err(failed("write in staging"))
    }

    /// Writes an image's document aside; its name and id.
    pub fn stage_document(&mut self, bytes: &[u8]) -> Result<(String, Digest)> {
        let (name, c_name) = self.name('c');
        self.write_file(&c_name, bytes)?;
        Ok((name, Digest::of(bytes)))
    }

    /// Waits until everything written so far is on the disk.
    pub fn sync(&self) -> Result<()> {
        sys::fd::syncfs(self.dir.as_fd()).map_err(failed("syncfs"))
    }

    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// A layer's directory in the store.
pub fn open_layer(place: &Place, number: u64) -> Result<OwnedFd> {
    open_dir(&place.layer(number))
}

/// A directory by its path.
pub fn open_dir(path: &Path) -> Result<OwnedFd> {
    let path = sys::cstring(path.as_os_str().as_bytes()).map_err(failed("path"))?;
    sys::fd::open(&path, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(failed("open layer"))
}

/// Asks the daemon for a layer: it is in the store (and held for us), or it is ours to make. Waits while another makes it.
pub fn claim(context: &mut Context, chain: Digest) -> Result<Option<Stored>> {
    match ask(context, ImageMessage::ClaimLayer { chain })? {
        Answer::Layer { number, chain, diff } => Ok(Some(Stored { number, chain, diff })),
        Answer::Make => Ok(None),
        other => Err(unexpected(&other)),
    }
}

/// A layer with these bytes, compressed or not, anywhere in the store, held for us.
pub fn find(context: &mut Context, digest: Digest) -> Result<Option<Stored>> {
    match ask(context, ImageMessage::FindLayer { digest })? {
        Answer::Layer { number, chain, diff } => Ok(Some(Stored { number, chain, diff })),
        Answer::None => Ok(None),
        other => Err(unexpected(&other)),
    }
}

/// Tells the daemon of a claimed layer that is described and synced.
pub fn layer_ready(context: &mut Context, staged: &Staged, meta: LayerMeta) -> Result<Stored> {
    match ask(context, ImageMessage::LayerReady { name: staged.name.clone(), meta })? {
        Answer::Layer { number, chain, diff } => Ok(Stored { number, chain, diff }),
        other => Err(unexpected(&other)),
    }
}

/// Makes an image of a staged document whose layers are all in the store; durable when this returns.
pub fn image_ready(context: &mut Context, work: &Work, staged: (String, Digest), parent: Option<Digest>, built: bool) -> Result<Digest> {
    let (name, id) = staged;
    ask(context, ImageMessage::ImageReady { name, id, parent, built })?;
    // The daemon has renamed; the directories' own entries are synced here, where waiting is allowed.
    work.sync()?;
    Ok(id)
}

/// Names an image; durable when this returns. The image that had the name before.
pub fn tag(context: &mut Context, reference: &Reference, id: Digest, event: bool) -> Result<Option<Digest>> {
    match ask(context, ImageMessage::Tag { reference: reference.to_string(), id, event })? {
        Answer::Tagged { before } => Ok(before),
        other => Err(unexpected(&other)),
    }
}

/// Publishes an image event whose name is the image's id, as the reference has it for load, import and save.
pub fn event(context: &mut Context, action: &str, id: Digest) -> Result<()> {
    ask(context, ImageMessage::Event { action: action.into(), id, name: id.to_string() }).map(drop)
}

/// Sends a message about images and waits for the answer.
pub fn ask(context: &mut Context, message: ImageMessage) -> Result<Answer> {
    context.ask(&Message::Image(message))
}

fn unexpected(answer: &Answer) -> Error {
    Error::system(format!("unexpected answer of the daemon: {answer:?}"))
}

/// Reads a document that was spooled, within the bound of image configurations.
pub fn read_document(bytes: &[u8]) -> Result<Document> {
    let document = Document::parse(bytes)?;
    if document.operating_system() != "linux" {
        return Err(Error::invalid(format!("cannot load {} image on linux", document.operating_system())));
    }
    Ok(document)
}
