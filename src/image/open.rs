//! Opening the data root: reads what is there, puts what is damaged aside in `lost/`, and never fails for it.
//!
//! Runs once, before the loop. A torn file loses its own object only, loudly; while something is lost, nothing is pruned.

use super::config::CONFIG_MAX;
use super::digest::Digest;
use super::layer::{LayerMeta, META_FILE, META_VERSION};
use super::names::{REFS_VERSION, Stored};
use super::place::Place;
use super::reference::Reference;
use super::state_file::{self, Damage, STATE_MAX, keep_previous, read_regular, write_durably};
use super::store::{Dirs, Loaded, REFS_FILE, Store, read_image};
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::fs::Directory;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Largest meta.json: 1 MiB.
const META_MAX: u64 = 1 << 20;

impl Store {
    /// Opens, and where it is new makes, the image store in the data root `root`. `now_ns` names this run.
    pub fn open(root: &Path, now_ns: i64) -> Result<Store> {
        let path = sys::cstring(root.as_os_str().as_bytes()).map_err(|e| Error::io("data root", &e))?;
        let data = directory(sys::fd::AT_FDCWD, &path)?;
        let open = |name: &CStr| directory(data.as_fd(), name);
        let (images, layers, staging, lost) = (open(c"images")?, open(c"layers")?, open(c"staging")?, open(c"lost")?);
        open(c"partial")?;
        let dirs = Dirs { data, images, layers, staging };
        let mut opening = Opening { dirs: &dirs, lost, now_ns, loaded: Loaded::default() };
        opening.read_layers()?;
        opening.read_images()?;
        opening.read_refs()?;
        opening.loaded.trash.extend(names_in(dirs.staging.as_fd())?);
        let loaded = opening.loaded;
        Ok(Store::assemble(Place::new(root, now_ns), dirs, loaded))
    }
}

/// Opens a directory, making it first where it is missing; only root looks into it.
fn directory(parent: BorrowedFd, name: &CStr) -> Result<OwnedFd> {
    let failed = |what: &str, e: &io::Error| Error::io(format!("{what} {}", name.to_string_lossy()), e);
    match sys::fs::mkdirat(parent, name, 0o700) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("mkdir", &e)),
        _ => {}
    }
    sys::fd::openat(parent, name, libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(|e| failed("open", &e))
}

/// The names in a directory, sorted, so that every start does the same.
fn names_in(dir: BorrowedFd) -> Result<Vec<CString>> {
    let read = || -> io::Result<Vec<CString>> {
        let again = sys::fd::openat(dir, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let mut names = Directory::from_fd(again)?.map(|entry| entry.map(|entry| entry.name)).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    read().map_err(|e| Error::io("read the data root", &e))
}

struct Opening<'a> {
    dirs: &'a Dirs,
    lost: OwnedFd,
    now_ns: i64,
    loaded: Loaded,
}

impl Opening<'_> {
    fn read_layers(&mut self) -> Result<()> {
        let layers = self.dirs.layers.as_fd();
        // Layers by what stands below them, so that parents come before children.
        let mut found: BTreeMap<Digest, (u64, LayerMeta)> = BTreeMap::new();
        for name in names_in(layers)? {
            let number = name.to_str().ok().filter(|text| !text.starts_with('0')).and_then(|text| text.parse::<u64>().ok());
            let Some(number) = number else {
                self.lose(layers, &name, "layer", "its name is no number");
                continue;
            };
            self.loaded.layers.reserve_numbers(number);
            match read_meta(layers, &name) {
                Ok(meta) if !meta.is_consistent() => self.lose(layers, &name, "layer", "its ids contradict each other"),
                Ok(meta) => match found.entry(meta.chain) {
                    std::collections::btree_map::Entry::Vacant(place) => drop(place.insert((number, meta))),
                    std::collections::btree_map::Entry::Occupied(_) => self.lose(layers, &name, "layer", "it is there twice"),
                },
                Err(damage) => self.lose(layers, &name, "layer", &format!("its meta.json is {damage}")),
            }
        }
        // Parents first: take what stands on what is in already, until nothing moves.
        loop {
            let here = |parent: Option<Digest>| parent.is_none_or(|parent| self.loaded.layers.get(parent).is_some());
            let ready: Vec<Digest> = found.values().filter(|(_, meta)| here(meta.parent)).map(|(_, meta)| meta.chain).collect();
            if ready.is_empty() {
                break;
            }
            for chain in ready {
                if let Some((number, meta)) = found.remove(&chain) {
                    self.loaded.layers.insert(number, meta);
                }
            }
        }
        for (number, _) in found.into_values() {
            if let Ok(name) = sys::cstring(number.to_string()) {
                self.lose(layers, &name, "layer", "the layer below it is missing");
            }
        }
        Ok(())
    }

    fn read_images(&mut self) -> Result<()> {
        let images = self.dirs.images.as_fd();
        for name in names_in(images)? {
            let id = name.to_str().ok().and_then(|name| name.strip_suffix(".json")).and_then(Digest::from_hex);
            let Some(id) = id else {
                self.lose(images, &name, "image", "its name is no digest");
                continue;
            };
            match read_regular(images, &name, CONFIG_MAX) {
                Ok(bytes) if Digest::of(&bytes) != id => self.lose(images, &name, "image", "its bytes do not have its digest"),
                Ok(bytes) => match read_image(id, bytes) {
                    Ok(image) if image.top.is_some_and(|top| self.loaded.layers.get(top).is_none()) => {
                        self.lose(images, &name, "image", "a layer of it is missing");
                    }
                    Ok(image) => self.loaded.insert(image),
                    Err(e) => self.lose(images, &name, "image", &e.message),
                },
                Err(e) => self.lose(images, &name, "image", &crate::error::strerror(&e)),
            }
        }
        Ok(())
    }

    /// The names; where the file is damaged those of the generation before, and where that is too, none.
    fn read_refs(&mut self) -> Result<()> {
        let data = self.dirs.data.as_fd();
        let previous = CString::new([REFS_FILE.to_bytes(), b".prev"].concat()).expect("a constant name");
        let stored = match read_stored(data, REFS_FILE) {
            Ok(Some(stored)) => stored,
            newest => {
                if let Err(damage) = newest {
                    self.lose(data, REFS_FILE, "index of references", &damage.to_string());
                }
                match read_stored(data, &previous) {
                    Ok(Some(stored)) => {
                        log::warn!("image store: refs.json of the generation before is used; the latest tags may be missing");
                        stored
                    }
                    Ok(None) => self.no_refs()?,
                    Err(damage) => {
                        self.lose(data, &previous, "previous index of references", &damage.to_string());
                        self.no_refs()?
                    }
                }
            }
        };
        self.loaded.layers.reserve_numbers(stored.last_layer);
        for (id, extra) in stored.images {
            self.loaded.describe(id, extra);
        }
        for (name, id) in stored.references {
            match Reference::parse(&name) {
                Ok(reference) if self.loaded.images.contains_key(&id) => drop(self.loaded.names.set(&reference, id)),
                Ok(_) => log::warn!("image store: {name} named image {id}, which is not here; the name is dropped"),
                Err(e) => log::warn!("image store: refs.json holds the name {name:?}: {e}; it is dropped"),
            }
        }
        Ok(())
    }

    /// No index at all: a new store gets its first one now, so that a missing one is always a lost one.
    fn no_refs(&mut self) -> Result<Stored> {
        if self.loaded.images.is_empty() && self.loaded.layers.iter().next().is_none() && !self.loaded.damaged {
            let first = state_file::encode(REFS_VERSION, &Stored::default());
            write_durably(self.dirs.data.as_fd(), REFS_FILE, &first).map_err(|e| Error::io("write refs.json", &e))?;
        } else {
            log::error!("image store: the index of references is lost; images are kept without names, and nothing is pruned");
            self.loaded.damaged = true;
        }
        Ok(Stored::default())
    }

    /// Puts a damaged object aside, where people can look at it.
    fn lose(&mut self, dir: BorrowedFd, name: &CStr, kind: &str, why: &str) {
        self.loaded.damaged = true;
        let shown = name.to_string_lossy();
        log::error!("image store: {kind} {shown:?} is lost: {why}; it is kept in lost/, and nothing is pruned");
        let moved = sys::cstring(format!("{kind}-{:x}-{shown}", self.now_ns).replace([' ', '/'], "-"))
            .and_then(|target| sys::fs::renameat2(dir, name, self.lost.as_fd(), &target, libc::RENAME_NOREPLACE));
        if let Err(e) = moved {
            log::error!("image store: {shown:?} cannot be moved to lost/: {e}");
        }
    }
}

fn read_meta(layers: BorrowedFd, name: &CStr) -> std::result::Result<LayerMeta, Damage> {
    let dir = sys::fd::openat(layers, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(Damage::Io)?;
    let file = CString::new(META_FILE).expect("a constant name");
    let bytes = read_regular(dir.as_fd(), &file, META_MAX).map_err(Damage::Io)?;
    state_file::decode(META_VERSION, &bytes)
}

fn read_stored(data: BorrowedFd, name: &CStr) -> std::result::Result<Option<Stored>, Damage> {
    match read_regular(data, name, STATE_MAX) {
        Ok(bytes) => state_file::decode(REFS_VERSION, &bytes).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Damage::Io(e)),
    }
}

/// Keeps the generation before of refs.json, before the new one is renamed over it.
pub fn keep_refs(store: &Store) -> io::Result<()> {
    keep_previous(store.data_dir(), REFS_FILE)
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
