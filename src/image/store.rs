//! The image store: the index in memory, and the changes of the data root that keep it true after any crash.
//!
//! Only the daemon owns a `Store`. Workers build under `staging/` and say so by messages; the store then renames what is whole
//! into place. Every change here is a rename or an unlink and waits for no disk; `refs.json` is written by the caller.
//! Deleting is a rename into `staging/` too; [`Store::take_trash`] says what a worker is to delete there.

use super::config::{CONFIG_MAX, Document, Platform, unix_seconds};
use super::digest::Digest;
use super::layer::{Claim, Holder, Layer, LayerMeta, Layers, Waiter};
use super::names::{Extra, Names, REFS_VERSION, Stored};
use super::place::Place;
use super::reference::{Any, Reference, parse_any};
use super::state_file::{self, read_regular};
use crate::container::config::Labels;
use crate::error::{Error, Result};
use crate::{sys, timestamp};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// File name of the references within the data root.
pub const REFS_FILE: &CStr = c"refs.json";
/// Documents up to this many bytes stay in memory; bigger ones are read when they are asked for.
const IN_MEMORY_MAX: usize = 64 << 10;

/// An image in the index.
#[derive(Debug)]
pub struct Image {
    pub id: Digest,
    /// Chain id of the top layer; `None` for an image without layers.
    pub top: Option<Digest>,
    /// RFC 3339, as the document has it.
    pub created: Option<String>,
    pub labels: Option<Labels>,
    pub platform: Platform,
    pub extra: Extra,
    children: u32,
    document: Option<Box<[u8]>>,
}

impl Image {
    /// Seconds since 1970; `None` when the document does not say.
    pub fn created_seconds(&self) -> Option<i64> {
        unix_seconds(self.created.as_deref())
    }

    /// Seconds and nanoseconds since 1970, for comparisons.
    pub fn created_parts(&self) -> Option<(i64, i64)> {
        self.created.as_deref().and_then(timestamp::parse_parts)
    }

    /// Whether other images were made from it here.
    pub fn has_children(&self) -> bool {
        self.children > 0
    }
}

/// The store; see the module's text.
#[derive(Debug)]
pub struct Store {
    place: Place,
    data: OwnedFd,
    images_dir: OwnedFd,
    layers_dir: OwnedFd,
    staging: OwnedFd,
    images: BTreeMap<Digest, Image>,
    pub layers: Layers,
    names: Names,
    trash: Vec<CString>,
    trash_count: u64,
    /// Something could not be read at this start: nothing is pruned by itself.
    damaged: bool,
}

impl Store {
    pub(super) fn assemble(place: Place, dirs: Dirs, loaded: Loaded) -> Store {
        let Loaded { images, layers, names, trash, damaged } = loaded;
        let Dirs { data, images: images_dir, layers: layers_dir, staging } = dirs;
        Store { place, data, images_dir, layers_dir, staging, images, layers, names, trash, trash_count: 0, damaged }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn root(&self) -> &Path {
        &self.place.root
    }

    /// The data root's descriptor, for the state files in it.
    pub fn data_dir(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    /// Whether something was lost at this start, so that nothing may be pruned without being asked.
    pub fn is_damaged(&self) -> bool {
        self.damaged
    }

    // Reading.

    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.images.values()
    }

    pub fn get(&self, id: Digest) -> Option<&Image> {
        self.images.get(&id)
    }

    /// By name, full id or short id; the reference's `GetImage`. Not found: 404 with the name as the client knows it.
    pub fn resolve(&self, name: &str) -> Result<&Image> {
        let found = match parse_any(name)? {
            Any::Id(id) => self.get(id),
            Any::Named(reference) => self.names.get(&reference).and_then(|id| self.get(id)).or_else(|| self.search(name)),
        };
        found.ok_or_else(|| no_such_image(name))
    }

    /// By a prefix of the id, with or without `sha256:`; `None` also when it is ambiguous.
    pub fn search(&self, prefix: &str) -> Option<&Image> {
        let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if prefix.is_empty() {
            return None;
        }
        let mut found = self.images.values().filter(|image| image.id.has_hex_prefix(prefix));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// The image that exactly this reference names.
    pub fn named(&self, reference: &Reference) -> Option<Digest> {
        self.names.get(reference)
    }

    /// The names of an image, in the reference's order.
    pub fn names_of(&self, id: Digest) -> impl Iterator<Item = &Reference> {
        self.names.of(id)
    }

    /// All names and their images.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The exact bytes of an image's document.
    pub fn document_bytes(&self, id: Digest) -> Result<Cow<'_, [u8]>> {
        let image = self.get(id).ok_or_else(|| no_such_image(&id.to_string()))?;
        match &image.document {
            Some(bytes) => Ok(Cow::Borrowed(bytes)),
            None => {
                let name = document_name(id);
                let bytes =
                    read_regular(self.images_dir.as_fd(), &name, CONFIG_MAX).map_err(|e| Error::io("read image configuration", &e))?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// An image's document, parsed.
    pub fn document(&self, id: Digest) -> Result<Document> {
        Document::parse(&self.document_bytes(id)?)
    }

    /// Bytes of an image's layers.
    pub fn size_of(&self, image: &Image) -> u64 {
        image.top.and_then(|top| self.layers.get(top)).map_or(0, |layer| layer.total_size)
    }

    /// Directory numbers of the layers under `top`, topmost first, as overlay's `lowerdir` wants them.
    pub fn lower_numbers(&self, top: Option<Digest>) -> Vec<u64> {
        self.layers.stack(top).map(|layer| layer.number).collect()
    }

    /// What refs.json is to hold now.
    pub fn encoded_refs(&self) -> Vec<u8> {
        let images = self.images.values().filter(|image| image.extra != Extra::default()).map(|image| (image.id, image.extra.clone()));
        let stored = Stored { references: self.names.stored(), images: images.collect(), last_layer: self.layers.last_number() };
        state_file::encode(REFS_VERSION, &stored)
    }

    // What workers report.

    /// As [`Layers::claim`].
    pub fn claim_layer(&mut self, chain: Digest, waiter: Waiter) -> Claim {
        self.layers.claim(chain, waiter)
    }

    /// A worker has a layer whole, verified and synced in `staging/<its place>/<name>`: renames it into place and holds it for
    /// the worker. Gives the answers for those who waited for it.
    pub fn layer_ready(&mut self, worker: u64, name: &str, meta: LayerMeta) -> Result<Vec<(Waiter, Claim)>> {
        let staged = self.staged(worker, name)?;
        if !meta.is_consistent() || meta.parent.is_some_and(|parent| self.layers.get(parent).is_none()) {
            return Err(Error::invalid(format!("failed to get layer {}", meta.parent.unwrap_or(meta.chain))));
        }
        let chain = meta.chain;
        if self.layers.get(chain).is_none() {
            let number = self.layers.take_number();
            let target = sys::cstring(number.to_string()).map_err(|e| Error::io("name layer", &e))?;
            sys::fs::renameat2(self.staging.as_fd(), &staged, self.layers_dir.as_fd(), &target, libc::RENAME_NOREPLACE)
                .map_err(|e| Error::io(format!("rename layer {chain} into place"), &e))?;
            self.layers.insert(number, meta);
        }
        // Otherwise two made it at once; the other copy stays in staging and goes with the worker.
        self.layers.hold(Holder::Worker(worker), chain);
        Ok(self.layers.claim_fulfilled(chain))
    }

    /// A worker has an image's document in `staging/<its place>/<name>`, and all its layers are here: makes it an image.
    /// Returns whether it is new.
    pub fn image_ready(&mut self, worker: u64, name: &str, id: Digest, extra: Extra) -> Result<bool> {
        if self.images.contains_key(&id) {
            self.learn_extra(id, extra);
            return Ok(false);
        }
        let staged = self.staged(worker, name)?;
        let bytes = read_regular(self.staging.as_fd(), &staged, CONFIG_MAX).map_err(|e| Error::io("read image configuration", &e))?;
        if Digest::of(&bytes) != id {
            return Err(Error::invalid(format!("image configuration does not have the digest {id}")));
        }
        let image = read_image(id, bytes)?;
        if let Some(top) = image.top.filter(|top| self.layers.get(*top).is_none()) {
            return Err(Error::invalid(format!("failed to get layer {top}")));
        }
        sys::fs::renameat2(self.staging.as_fd(), &staged, self.images_dir.as_fd(), &document_name(id), 0)
            .map_err(|e| Error::io(format!("rename image {id} into place"), &e))?;
        self.insert_image(image);
        self.learn_extra(id, extra);
        Ok(true)
    }

    fn insert_image(&mut self, image: Image) {
        if let Some(top) = image.top {
            self.layers.need(top);
        }
        self.images.insert(image.id, image);
    }

    fn learn_extra(&mut self, id: Digest, extra: Extra) {
        if let Some(parent) = extra.parent {
            // A refused parent is no reason to refuse the image.
            let _ = self.set_parent(id, parent);
        }
        if let Some(image) = self.images.get_mut(&id) {
            image.extra.built |= extra.built;
        }
    }

    /// Notes that `id` was made from `parent`; refused where that would make a circle.
    pub fn set_parent(&mut self, id: Digest, parent: Digest) -> Result<()> {
        let mut ancestor = Some(parent);
        while let Some(above) = ancestor {
            if above == id {
                return Err(Error::invalid(format!("image {parent} is not a valid parent for {id}")));
            }
            ancestor = self.get(above).ok_or_else(|| no_such_image(&above.to_string()))?.extra.parent;
        }
        let before = self.get(id).ok_or_else(|| no_such_image(&id.to_string()))?.extra.parent;
        if before == Some(parent) {
            return Ok(());
        }
        if let Some(image) = before.and_then(|before| self.images.get_mut(&before)) {
            image.children = image.children.saturating_sub(1);
        }
        if let Some(image) = self.images.get_mut(&parent) {
            image.children += 1;
        }
        if let Some(image) = self.images.get_mut(&id) {
            image.extra.parent = Some(parent);
        }
        Ok(())
    }

    /// `<place>/<name>` of a worker, with the name checked: letters, digits, `-` and `_` only.
    fn staged(&self, worker: u64, name: &str) -> Result<CString> {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(Error::invalid(format!("staged name {name:?} is malformed")));
        }
        sys::cstring(format!("{}/{name}", self.place.name(worker))).map_err(|e| Error::io("name staged file", &e))
    }

    /// A worker has ended, well or not: its claims pass on, its holds end, and what it left in staging is trash.
    pub fn worker_gone(&mut self, worker: u64) -> Vec<(Waiter, Claim)> {
        let answers = self.layers.drop_claims(worker);
        let gone = self.layers.release(&Holder::Worker(worker));
        self.discard_layers(gone);
        if let Ok(name) = sys::cstring(self.place.name(worker))
            && sys::fs::fstatat(self.staging.as_fd(), &name, libc::AT_SYMLINK_NOFOLLOW).is_ok()
        {
            self.trash.push(name);
        }
        answers
    }

    // Names.

    /// Names an image; returns the image that had the name before. A digest in the name is kept only when there is no tag.
    pub fn tag(&mut self, reference: &Reference, id: Digest, now_ns: i64) -> Result<Option<Digest>> {
        if reference.familiar_name() == "sha256" {
            return Err(Error::invalid("refusing to create an ambiguous tag using digest algorithm as name"));
        }
        let image = self.images.get_mut(&id).ok_or_else(|| no_such_image(&id.to_string()))?;
        if reference.digest().is_none() {
            image.extra.tagged = now_ns;
        }
        Ok(self.names.set(reference, id))
    }

    /// Takes a name away; returns the image that had it.
    pub fn untag(&mut self, reference: &Reference) -> Option<Digest> {
        self.names.remove(reference)
    }

    /// Undoes a tag whose write failed: puts `before` back, if the name still means `now`.
    pub fn restore_name(&mut self, reference: &Reference, now: Option<Digest>, before: Option<Digest>) {
        if self.names.get(reference) != now {
            return;
        }
        match before.filter(|id| self.images.contains_key(id)) {
            Some(id) => drop(self.names.set(reference, id)),
            None => drop(self.names.remove(reference)),
        }
    }

    // Removing.

    /// Takes an image out, with the layers that nobody needs any more: their chain ids, top first.
    /// The caller has removed its names and checked for conflicts.
    pub fn remove_image(&mut self, id: Digest) -> Vec<Digest> {
        let Some(image) = self.images.remove(&id) else { return Vec::new() };
        if let Some(parent) = image.extra.parent.and_then(|parent| self.images.get_mut(&parent)) {
            parent.children = parent.children.saturating_sub(1);
        }
        // The document goes first: an image must never stand there without its layers.
        self.discard(From::Images, &document_name(id));
        let gone = image.top.map(|top| self.layers.unneed(top)).unwrap_or_default();
        self.discard_layers(gone)
    }

    /// Keeps the layers under `top` for a container; false when they are not here.
    pub fn hold(&mut self, container: &str, top: Digest) -> bool {
        self.layers.hold(Holder::Container(container.to_owned()), top)
    }

    /// The container is gone; layers that only it needed go too.
    pub fn release(&mut self, container: &str) {
        let gone = self.layers.release(&Holder::Container(container.to_owned()));
        self.discard_layers(gone);
    }

    /// At the start, when all containers hold their layers: takes out the layers that nobody needs.
    /// Does nothing while something is lost, since it might be what needs them.
    pub fn prune_layers(&mut self) -> usize {
        if self.damaged {
            return 0;
        }
        let gone = self.layers.take_all_unneeded();
        self.discard_layers(gone).len()
    }

    fn discard_layers(&mut self, gone: Vec<Layer>) -> Vec<Digest> {
        gone.into_iter()
            .map(|layer| {
                if let Ok(name) = sys::cstring(layer.number.to_string()) {
                    self.discard(From::Layers, &name);
                }
                layer.meta.chain
            })
            .collect()
    }

    /// Renames into staging, from where a worker deletes it.
    fn discard(&mut self, from: From, name: &CStr) {
        self.trash_count += 1;
        let target = format!("{}-trash{}", self.place.run, self.trash_count);
        let Ok(target) = sys::cstring(target) else { return };
        let dir = match from {
            From::Images => self.images_dir.as_fd(),
            From::Layers => self.layers_dir.as_fd(),
        };
        match sys::fs::renameat2(dir, name, self.staging.as_fd(), &target, 0) {
            Ok(()) => self.trash.push(target),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => log::warn!("image store: cannot discard {name:?}: {e}; the next start takes care of it"),
        }
    }

    /// Whether there is something to delete in staging.
    pub fn has_trash(&self) -> bool {
        !self.trash.is_empty()
    }

    /// What a worker is to delete in `staging/`: names in that directory.
    pub fn take_trash(&mut self) -> Vec<CString> {
        std::mem::take(&mut self.trash)
    }

    /// Adds a name that the caller renamed into `staging/` itself.
    pub fn add_trash(&mut self, name: CString) {
        self.trash.push(name);
    }
}

enum From {
    Images,
    Layers,
}

/// What [`super::open`] read.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub images: BTreeMap<Digest, Image>,
    pub layers: Layers,
    pub names: Names,
    pub trash: Vec<CString>,
    pub damaged: bool,
}

/// The data root's directories.
#[derive(Debug)]
pub(super) struct Dirs {
    pub data: OwnedFd,
    pub images: OwnedFd,
    pub layers: OwnedFd,
    pub staging: OwnedFd,
}

/// The index entry for a document.
pub(super) fn read_image(id: Digest, bytes: Vec<u8>) -> Result<Image> {
    let document = Document::parse(&bytes)?;
    Ok(Image {
        id,
        top: document.chain_id(),
        labels: document.config.as_ref().and_then(|config| config.labels.clone()),
        platform: document.platform(),
        created: document.created,
        extra: Extra::default(),
        children: 0,
        document: (bytes.len() <= IN_MEMORY_MAX).then(|| bytes.into_boxed_slice()),
    })
}

/// `<64 digits>.json`
pub(super) fn document_name(id: Digest) -> CString {
    CString::new(format!("{}.json", id.hex())).expect("hexadecimal digits hold no NUL")
}

impl Loaded {
    /// Adds an image whose layers are there.
    pub fn insert(&mut self, image: Image) {
        if let Some(top) = image.top {
            self.layers.need(top);
        }
        self.images.insert(image.id, image);
    }

    /// Sets what refs.json says of an image; links to images that are not there are dropped.
    pub fn describe(&mut self, id: Digest, mut extra: Extra) {
        extra.parent = extra.parent.filter(|parent| *parent != id && self.images.contains_key(parent));
        if let Some(parent) = extra.parent.and_then(|parent| self.images.get_mut(&parent)) {
            parent.children += 1;
        }
        match self.images.get_mut(&id) {
            Some(image) => image.extra = extra,
            // An image that is gone is nobody's child.
            None => {
                if let Some(parent) = extra.parent.and_then(|parent| self.images.get_mut(&parent)) {
                    parent.children = parent.children.saturating_sub(1);
                }
            }
        }
    }
}

/// The reference's refusal: `No such image: ` and the name with its tag.
pub fn no_such_image(name: &str) -> Error {
    let shown = match parse_any(name) {
        Ok(Any::Named(reference)) => reference.or_latest().familiar(),
        Ok(Any::Id(id)) => id.to_string(),
        Err(_) => name.to_owned(),
    };
    Error::not_found(format!("No such image: {shown}"))
}
