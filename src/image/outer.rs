//! The archive around images, as `save` writes it: read once from front to back, in any order of its entries.
//!
//! No name of the archive ever reaches the disk: documents are spooled into numbered files, and what looks like a layer is
//! unpacked at once, so that a load reads and writes everything a single time. A layer that is in the store already is
//! skipped. Names are keys of a map; links are followed in the map.

use super::archive::decompress::{Compression, Decompressor, detect};
use super::archive::from_io;
use super::archive::header::Kind;
use super::archive::ingest::Expect;
use super::archive::reader::{Limits, Reader};
use super::digest::Digest;
use super::work::{Spooled, Staged, Stored, Work};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

/// Bytes of all layers of one archive, uncompressed.
const TOTAL_MAX: u64 = 256 << 30;
/// Entries that are kept; an archive of a thousand images has fewer.
const ITEMS_MAX: usize = 100_000;
/// Documents and the like: as large as the largest layer, since one may come in a shape that is not recognised.
const LINKS_MAX: usize = 40;

/// What an entry became.
#[derive(Debug)]
pub enum Item {
    /// Content in a numbered file.
    File(Spooled),
    /// An unpacked layer.
    Layer(Staged),
    /// A layer with this digest is in the store.
    Stored {
        layer: Stored,
        digest: Digest,
    },
    Link(String),
    /// Neither file nor link: it can't be read.
    Special,
}

/// An archive that was read.
#[derive(Debug, Default)]
pub struct Outer {
    items: HashMap<String, Item>,
}

/// What reading needs of the world: the store's knowledge, and somebody who watches.
pub trait Watch {
    /// A layer with this digest, compressed or not, that is in the store.
    fn find(&mut self, digest: Digest) -> Result<Option<Stored>>;
    /// `current` of `total` bytes of a layer have been read; `id` names it for people.
    fn progress(&mut self, id: &str, current: u64, total: u64) -> Result<()>;
}

impl Outer {
    /// Reads the whole stream, of any compression.
    pub fn read(source: &mut dyn Read, work: &mut Work, watch: &mut dyn Watch) -> Result<Outer> {
        let plain = Decompressor::new(source).map_err(|e| from_io("read archive", e))?;
        let mut reader = Reader::new(plain, Limits { stream_bytes: TOTAL_MAX, ..Limits::default() });
        let mut outer = Outer::default();
        let mut left = TOTAL_MAX;
        while let Some(entry) = reader.next(&mut ())? {
            let Some(name) = clean(&entry.path)? else { continue };
            let item = match entry.kind {
                Kind::File if entry.sparse.is_some() => return Err(Error::invalid(format!("{name} is a sparse file"))),
                Kind::File => read_file(&name, entry.size, &mut reader.content(), work, watch, &mut left)?,
                Kind::Symlink => Item::Link(relative(&name, &entry.link)?),
                Kind::HardLink => Item::Link(clean(&entry.link)?.unwrap_or_default()),
                Kind::Directory => continue,
                _ => Item::Special,
            };
            if outer.items.len() == ITEMS_MAX {
                return Err(Error::invalid(format!("archive has more than {ITEMS_MAX} files")));
            }
            outer.items.insert(name, item);
        }
        Ok(outer)
    }

    pub fn has(&self, name: &str) -> bool {
        self.items.contains_key(name)
    }

    /// The entry that a name leads to, links followed.
    pub fn find(&self, name: &str) -> Result<(&str, &Item)> {
        let missing = || Error::invalid(format!("open {name}: no such file or directory"));
        let mut key = clean(name.as_bytes())?.ok_or_else(missing)?;
        for _ in 0..LINKS_MAX {
            match self.items.get_key_value(&key).ok_or_else(missing)? {
                (_, Item::Link(target)) => key = target.clone(),
                (key, item) => return Ok((key, item)),
            }
        }
        Err(Error::invalid(format!("open {name}: too many levels of symbolic links")))
    }

    /// A document's bytes, at most `max`.
    pub fn document(&self, work: &Work, name: &str, max: u64) -> Result<Vec<u8>> {
        match self.find(name)?.1 {
            Item::File(file) if file.size <= max => {
                let mut bytes = Vec::new();
                work.open(&file.name)?.take(max).read_to_end(&mut bytes).map_err(|e| from_io("read", e))?;
                Ok(bytes)
            }
            Item::File(_) => Err(Error::invalid(format!("{name} is larger than {max} bytes"))),
            _ => Err(Error::invalid(format!("{name} is not a regular file"))),
        }
    }

    /// Takes an unpacked layer out: it can become only one layer of the store.
    pub fn take(&mut self, key: &str) -> Option<Item> {
        self.items.remove(key)
    }
}

/// A spooled file that turns out to be a layer.
pub fn open_spooled(work: &Work, file: &Spooled) -> Result<File> {
    work.open(&file.name)
}

fn read_file(name: &str, size: u64, content: &mut dyn Read, work: &mut Work, watch: &mut dyn Watch, left: &mut u64) -> Result<Item> {
    let mut head = [0; 512];
    let filled = read_up_to(content, &mut head)?;
    let head = &head[..filled];
    let mut content = head.chain(content);
    if !looks_like_layer(name, head) {
        return work.spool(&mut content, *left).map(Item::File);
    }
    let named = named_digest(name);
    if let Some(digest) = named
        && let Some(layer) = watch.find(digest)?
    {
        return Ok(Item::Stored { layer, digest });
    }
    let id = named.map_or_else(|| name.chars().take(12).collect(), |digest| digest.short());
    let mut trouble = None;
    let expect = Expect {
        compressed_digest: named,
        limits: Limits { stream_bytes: (*left).min(Limits::default().stream_bytes), ..Limits::default() },
        ..Expect::default()
    };
    let staged = work.ingest(&mut content, &expect, &mut |current| {
        if trouble.is_none() {
            trouble = watch.progress(&id, current, size).err();
        }
    })?;
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    *left = left.saturating_sub(staged.layer.tar_size);
    Ok(Item::Layer(staged))
}

/// Whether a file is worth unpacking at once. What is missed here is spooled, and unpacked when a manifest says so.
fn looks_like_layer(name: &str, head: &[u8]) -> bool {
    let place = name.starts_with("blobs/sha256/")
        || [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"].iter().any(|end| name.ends_with(end));
    let tar = head.len() == 512 && (head[257..].starts_with(b"ustar") || head.iter().all(|b| *b == 0));
    place && (tar || detect(head) != Compression::Plain)
}

/// The digest that a blob's name states; it is verified against the bytes.
fn named_digest(name: &str) -> Option<Digest> {
    Digest::from_hex(name.strip_prefix("blobs/sha256/")?)
}

fn read_up_to(source: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(from_io("read archive", e)),
        }
    }
    Ok(filled)
}

/// A path as a key: without leading slash, `.` and empty parts. `..` that leaves the archive is refused; `None` is the root.
fn clean(path: &[u8]) -> Result<Option<String>> {
    let path = str::from_utf8(path).map_err(|_| Error::invalid("archive names a file that is not UTF-8"))?;
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return Err(Error::invalid(format!("invalid archive: {path:?} is outside of it")));
                }
            }
            part => parts.push(part),
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

/// A symbolic link's target as a key.
fn relative(name: &str, target: &[u8]) -> Result<String> {
    if target.starts_with(b"/") {
        return Ok(clean(target)?.unwrap_or_default());
    }
    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
    Ok(clean(&[parent.as_bytes(), b"/", target].concat())?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(clean(b"./a//b/../c").unwrap().as_deref(), Some("a/c"));
        assert_eq!(clean(b"/a").unwrap().as_deref(), Some("a"));
        assert_eq!(clean(b"./").unwrap(), None);
        assert!(clean(b"../a").is_err() && clean(b"a/../../b").is_err() && clean(b"\xff").is_err());
        assert_eq!(relative("x/layer.tar", b"../y/layer.tar").unwrap(), "y/layer.tar");
        assert_eq!(relative("x/layer.tar", b"/y").unwrap(), "y");
        assert!(relative("x", b"../../y").is_err());
    }

    #[test]
    fn links_are_followed_in_the_map_and_end() {
        let mut outer = Outer::default();
        outer.items.insert("a".into(), Item::Link("b".into()));
        outer.items.insert("b".into(), Item::Special);
        outer.items.insert("loop".into(), Item::Link("loop".into()));
        assert_eq!(outer.find("./a").unwrap().0, "b");
        assert!(outer.find("loop").unwrap_err().message.contains("too many levels"));
        assert!(outer.find("nosuch").unwrap_err().message.contains("no such file"));
    }

    #[test]
    fn layers_are_recognised_by_place_and_bytes() {
        let mut tar = [0u8; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(looks_like_layer("abc/layer.tar", &tar));
        assert!(looks_like_layer("blobs/sha256/ab", &tar));
        assert!(looks_like_layer("blobs/sha256/ab", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0]));
        assert!(looks_like_layer("x/layer.tar", &[0; 512]));
        assert!(!looks_like_layer("blobs/sha256/ab", b"{\"config\":1}"));
        assert!(!looks_like_layer("manifest.json", &tar));
    }
}
