//! One pass from a stranger's stream to a layer directory: count, digest, inflate, digest again, unpack, write the recipe.
//!
//! Two processes share the work: the worker itself reads, inflates and hashes; a jailed child parses the tar and makes the
//! files. A pipe of a megabyte between them is the only buffer.

use super::apply::{self, Options, Summary};
use super::decompress::{Compression, Decompressor, detect};
use super::jail::{self, Policy, Root};
use super::reader::Limits;
use super::recipe::Recipe;
use super::write::{self, Writer};
use super::{from_io, invalid};
use crate::error::{Error, Result};
use crate::image::digest::{Digest, Sha256};
use crate::sys::fd;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What the stream must turn out to be; `None` is not checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expect {
    /// Digest of the bytes as they come.
    pub compressed_digest: Option<Digest>,
    /// Their count; one byte more is refused as soon as it comes.
    pub compressed_size: Option<u64>,
    /// Digest of the tar.
    pub diff_id: Option<Digest>,
    pub limits: Limits,
}

/// A layer that is whole and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestedLayer {
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub tar_size: u64,
    /// Sizes of the files, hard links once: what the API calls size.
    pub content_size: u64,
    /// Equal to the diff id for plain tars.
    pub compressed_digest: Digest,
    pub compressed_size: u64,
    pub compression: Compression,
    pub entries: u64,
}

/// Unpacks the layer `source` (any compression) into the empty directory `layer`, which then holds `diff/`, `recipe`, and
/// rarely `spare/`. `progress` hears how many bytes of `source` have been used. On error the directory is the caller's to
/// delete.
pub fn ingest_layer(source: &mut dyn Read, expect: &Expect, layer: BorrowedFd, progress: &mut dyn FnMut(u64)) -> Result<IngestedLayer> {
    let mut head = [0; 16];
    let read = read_up_to(source, &mut head).map_err(|e| from_io("read archive", e))?;
    let compression = detect(&head[..read]);
    let mut tally = Tally {
        source: (&head[..read]).chain(source),
        // A plain tar's digest is its diff id: one hash is enough.
        hasher: (compression != Compression::Plain).then(Sha256::new),
        count: 0,
        limit: expect.compressed_size,
        progress,
    };
    let mut plain =
        Hashed { inner: Decompressor::new(&mut tally).map_err(|e| from_io("read archive", e))?, hasher: Sha256::new(), count: 0 };
    let summary = unpack_jailed(&mut plain, layer, expect.limits)?;
    // The child has seen the end of the tar; the stream's own end (checksums) may still be to come.
    io::copy(&mut plain, &mut io::sink()).map_err(|e| from_io("read archive", e))?;
    let (diff_id, tar_size) = (plain.hasher.finish(), plain.count);
    let (compressed_size, compressed_digest) = (tally.count, tally.hasher.map_or(diff_id, Sha256::finish));
    if expect.compressed_size.is_some_and(|size| size != compressed_size) {
        return Err(Error::invalid("unexpected EOF"));
    }
    if let Some(wanted) = expect.compressed_digest.filter(|wanted| *wanted != compressed_digest) {
        return Err(Error::invalid(format!("filesystem layer verification failed for digest {wanted}")));
    }
    if let Some(wanted) = expect.diff_id.filter(|wanted| *wanted != diff_id) {
        return Err(Error::invalid(format!("invalid diffID: expected {wanted}, got {diff_id}")));
    }
    if summary.stream_bytes != tar_size {
        return Err(Error::system("the tar stream was not unpacked to its end"));
    }
    let Summary { entries, content_bytes: content_size, .. } = summary;
    Ok(IngestedLayer { diff_id, tar_size, content_size, compressed_digest, compressed_size, compression, entries })
}

fn unpack_jailed(plain: &mut dyn Read, layer: BorrowedFd, limits: Limits) -> Result<Summary> {
    let tree = apply::make_tree(layer)?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
    let recipe = fd::openat(layer, c"recipe", flags, 0o600).map_err(|e| Error::io("create recipe", &e))?;
    let mut policy = Policy::new(Root::Directory(layer));
    policy.devices = true;
    policy.tree = Some(tree.as_fd());
    policy.keep.push(recipe.as_raw_fd());
    let report = jail::stream_in(policy, plain, |input, prisoner| {
        // Inside, "/" is the layer's directory.
        let root = fd::open(c"/", libc::O_DIRECTORY, 0).map_err(|e| Error::io("open /", &e))?;
        let tree = fd::open(c"/diff", libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(|e| Error::io("open /diff", &e))?;
        let file = recipe.try_clone().map_err(|e| Error::io("dup", &e))?;
        let mut recipe = Recipe::new(File::from(file))?;
        let options = Options { limits, ..Options::layer() };
        let summary = apply::apply(input, tree.as_fd(), Some(root.as_fd()), &options, &mut recipe, prisoner)?;
        recipe.finish()?;
        serde_json::to_vec(&summary).map_err(|e| Error::system(format!("report: {e}")))
    })?;
    serde_json::from_slice(&report).map_err(|e| Error::system(format!("report: {e}")))
}

/// Makes a layer of a directory that is in place already: `layer` holds `diff/`, an overlay's upper (a finished build step,
/// a commit that renames), and gets the `recipe` of its deterministic tar. Nothing is copied.
///
/// Reads `trusted.` attributes, so it runs outside any jail, with CAP_SYS_ADMIN. Nothing may write to `diff/` meanwhile.
pub fn layer_from_upper(layer: BorrowedFd) -> Result<IngestedLayer> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW;
    let file = fd::openat(layer, c"recipe", flags, 0o600).map_err(|e| Error::io("create recipe", &e))?;
    let tree = fd::openat(layer, c"diff", libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(|e| Error::io("open diff", &e))?;
    let mut recipe = Recipe::new(File::from(file))?;
    let mut sink = io::sink();
    let mut writer = Writer::recording(&mut sink, &mut recipe);
    writer.tree(tree.as_fd(), c".", b"", &write::Options { whiteouts: true, ..write::Options::default() })?;
    let (totals, hasher, tar_size) = writer.finish()?;
    recipe.finish()?;
    let diff_id = hasher.map(Sha256::finish).ok_or_else(|| Error::system("no digest of the layer"))?;
    let write::Totals { entries, content_bytes: content_size } = totals;
    let (compressed_digest, compressed_size, compression) = (diff_id, tar_size, Compression::Plain);
    Ok(IngestedLayer { diff_id, tar_size, content_size, compressed_digest, compressed_size, compression, entries })
}

fn read_up_to(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Counts, bounds and hashes what is read.
struct Tally<'a, R: Read> {
    source: R,
    hasher: Option<Sha256>,
    count: u64,
    limit: Option<u64>,
    progress: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Tally<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(out)?;
        self.count += count as u64;
        if self.limit.is_some_and(|limit| self.count > limit) {
            return Err(invalid("layer is larger than its descriptor says"));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&out[..count]);
        }
        (self.progress)(self.count);
        Ok(count)
    }
}

/// Hashes the plain stream.
struct Hashed<R: Read> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.hasher.update(&out[..count]);
        self.count += count as u64;
        Ok(count)
    }
}
