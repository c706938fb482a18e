//! A layer's recipe: what its tar stream held besides the contents of its files, so that the exact stream can be
//! written again from `diff/`, and the diff id stays.
//!
//! File format: [`MAGIC`], then one gzip stream of records. A record starts with a varint whose low two bits are its tag:
//!
//! - 0, length: that many bytes of framing follow (headers, padding, what trails the end);
//! - 1, path length: path, varint size, CRC-32 — the whole content of a file;
//! - 2, path length: path, varint count, that many (offset, length) varints, CRC-32 — the data regions of a sparse file;
//! - 3, path length: path, varint n — what the path held until here was replaced later in the stream and is now `spare/n`;
//! - 3 with length 0: the end, varint size of the whole stream.
//!
//! Paths are relative to `diff/`, with links resolved. Integers beyond this are little endian.

use super::compress::Gzip;
use super::decompress::Decompressor;
use super::from_io;
use super::header::PATH_MAX;
use super::reader::Tap;
use super::stream::Stream;
use super::walk::{Walk, failed};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::sys::{self, fd};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// The first line of every recipe.
pub const MAGIC: &[u8] = b"coracle recipe 1\n";

/// Learns what becomes of a stream while it is unpacked or written.
pub trait Record: Tap {
    /// The content of the file `path` comes here in the stream: `size` bytes with this CRC-32.
    fn content(&mut self, path: &[u8], size: u64, crc: u32) -> Result<()>;
    /// As [`Record::content`], for the data regions (offset, length) of a sparse file.
    fn regions(&mut self, path: &[u8], regions: &[(u64, u64)], crc: u32) -> Result<()>;
    /// Whether replaced contents must be kept, and under which number.
    fn supersede(&mut self, path: &[u8]) -> Result<Option<u64>>;
}

/// For those who keep no recipe.
impl Record for () {
    fn content(&mut self, _: &[u8], _: u64, _: u32) -> Result<()> {
        Ok(())
    }
    fn regions(&mut self, _: &[u8], _: &[(u64, u64)], _: u32) -> Result<()> {
        Ok(())
    }
    fn supersede(&mut self, _: &[u8]) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// Writes a recipe.
pub struct Recipe<W: Write> {
    out: Gzip<W>,
    framing: Vec<u8>,
    size: u64,
    spares: u64,
}

/// Framing bytes that are gathered into one record.
const FRAMING: usize = 32 * 1024;

impl<W: Write> Recipe<W> {
    pub fn new(mut sink: W) -> Result<Recipe<W>> {
        sink.write_all(MAGIC).map_err(|e| from_io("write recipe", e))?;
        Ok(Recipe { out: Gzip::new(sink), framing: Vec::with_capacity(FRAMING), size: 0, spares: 0 })
    }

    /// Writes the end record; without it a recipe is torn.
    pub fn finish(mut self) -> Result<W> {
        self.flush()?;
        let mut end = varint(3);
        end.extend(varint(self.size));
        self.put(&end)?;
        self.out.finish().map_err(|e| from_io("write recipe", e))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| from_io("write recipe", e))
    }

    fn flush(&mut self) -> Result<()> {
        if !self.framing.is_empty() {
            let framing = std::mem::take(&mut self.framing);
            self.put(&varint((framing.len() as u64) << 2))?;
            self.put(&framing)?;
            self.framing = framing;
            self.framing.clear();
        }
        Ok(())
    }

    fn head(&mut self, tag: u64, path: &[u8]) -> Result<Vec<u8>> {
        self.flush()?;
        let mut record = varint((path.len() as u64) << 2 | tag);
        record.extend_from_slice(path);
        Ok(record)
    }
}

impl<W: Write> Tap for Recipe<W> {
    fn framing(&mut self, bytes: &[u8]) -> Result<()> {
        self.size += bytes.len() as u64;
        for piece in bytes.chunks(FRAMING) {
            if self.framing.len() + piece.len() > FRAMING {
                self.flush()?;
            }
            self.framing.extend_from_slice(piece);
        }
        Ok(())
    }
}

impl<W: Write> Record for Recipe<W> {
    fn content(&mut self, path: &[u8], size: u64, crc: u32) -> Result<()> {
        self.size += size;
        let mut record = self.head(1, path)?;
        record.extend(varint(size));
        record.extend(crc.to_le_bytes());
        self.put(&record)
    }

    fn regions(&mut self, path: &[u8], regions: &[(u64, u64)], crc: u32) -> Result<()> {
        let mut record = self.head(2, path)?;
        record.extend(varint(regions.len() as u64));
        for (offset, length) in regions {
            self.size += length;
            record.extend(varint(*offset));
            record.extend(varint(*length));
        }
        record.extend(crc.to_le_bytes());
        self.put(&record)
    }

    fn supersede(&mut self, path: &[u8]) -> Result<Option<u64>> {
        let spare = self.spares;
        self.spares += 1;
        let mut record = self.head(3, path)?;
        record.extend(varint(spare));
        self.put(&record)?;
        Ok(Some(spare))
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10);
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// One record, as read back.
enum Step {
    Framing(usize),
    Content { path: Vec<u8>, size: u64, crc: u32 },
    Regions { path: Vec<u8>, regions: Vec<(u64, u64)>, crc: u32 },
    Superseded { path: Vec<u8>, spare: u64 },
    End { size: u64 },
}

/// Reads the records of a recipe; every length is checked, as the file may be torn.
struct Steps<R: Read> {
    input: BufReader<R>,
}

fn torn() -> Error {
    Error::system("layer recipe is damaged")
}

fn steps(layer: BorrowedFd) -> Result<Steps<Decompressor<File>>> {
    let file = fd::openat(layer, c"recipe", libc::O_RDONLY | libc::O_NOFOLLOW, 0).map_err(|e| Error::io("open recipe", &e))?;
    let mut file = File::from(file);
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic).map_err(|_| torn())?;
    if magic != *MAGIC {
        return Err(torn());
    }
    let input = Decompressor::new(file).map_err(|_| torn())?;
    Ok(Steps { input: BufReader::with_capacity(64 * 1024, input) })
}

impl<R: Read> Steps<R> {
    fn exact<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|_| torn())?;
        Ok(bytes)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.exact()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(torn())
    }

    fn next(&mut self) -> Result<Step> {
        let head = self.varint()?;
        let length = usize::try_from(head >> 2).map_err(|_| torn())?;
        if head & 3 == 0 {
            return if length <= FRAMING { Ok(Step::Framing(length)) } else { Err(torn()) };
        }
        if length > PATH_MAX {
            return Err(torn());
        }
        let mut path = vec![0; length];
        self.input.read_exact(&mut path).map_err(|_| torn())?;
        match head & 3 {
            1 => Ok(Step::Content { path, size: self.varint()?, crc: u32::from_le_bytes(self.exact()?) }),
            2 => {
                let count = self.varint()?;
                let mut regions = Vec::new();
                for _ in 0..count {
                    regions.push((self.varint()?, self.varint()?));
                }
                Ok(Step::Regions { path, regions, crc: u32::from_le_bytes(self.exact()?) })
            }
            _ if length == 0 => Ok(Step::End { size: self.varint()? }),
            _ => Ok(Step::Superseded { path, spare: self.varint()? }),
        }
    }

    fn skip(&mut self, length: usize) -> Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(length as u64), &mut io::sink()).map_err(|_| torn())?;
        if skipped == length as u64 { Ok(()) } else { Err(torn()) }
    }
}

/// What [`reproduce`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reproduced {
    /// The digest of the stream. Equal to the layer's diff id unless the disk lied.
    pub diff_id: Digest,
    /// Bytes written.
    pub size: u64,
}

/// Writes the exact tar stream of a layer directory (`recipe`, `diff/`, perhaps `spare/`) to `out`, in large pieces.
///
/// The whole recipe is checked before the first byte goes out; a file whose size or CRC-32 differs is an error that names it.
pub fn reproduce(layer: BorrowedFd, out: &mut dyn Write) -> Result<Reproduced> {
    let superseded = check(layer)?;
    let diff = fd::openat(layer, c"diff", libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).map_err(|e| Error::io("open diff", &e))?;
    let mut files = Walk::new(diff.as_fd());
    let mut steps = steps(layer)?;
    let mut stream = Stream::new(out, true);
    let mut number = 0u64;
    loop {
        let step = steps.next()?;
        number += 1;
        // The content that stood here may have been replaced later in the same stream.
        let mut open = |path: &[u8]| -> Result<File> {
            let later = superseded.get(path).and_then(|spares| spares.iter().find(|(step, _)| *step > number));
            let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
            match later {
                Some((_, spare)) => {
                    let name = sys::cstring(format!("spare/{spare}")).map_err(|_| torn())?;
                    fd::openat(layer, &name, flags, 0).map(File::from).map_err(|e| failed("open spare of", path, &e))
                }
                None => files.open(path, flags).map(File::from),
            }
        };
        match step {
            Step::Framing(length) => copy_framing(&mut stream, &mut steps.input, length)?,
            Step::Content { path, size, crc } => {
                let file = open(&path)?;
                let stat = fd::fstat(file.as_fd()).map_err(|e| failed("stat", &path, &e))?;
                if stat.st_mode & libc::S_IFMT != libc::S_IFREG || u64::try_from(stat.st_size) != Ok(size) {
                    return Err(changed(&path));
                }
                copy_content(&mut stream, &file, &path, &[(0, size)], crc)?;
            }
            Step::Regions { path, regions, crc } => copy_content(&mut stream, &open(&path)?, &path, &regions, crc)?,
            Step::Superseded { .. } => {}
            Step::End { size } => {
                let (hasher, written) = stream.finish()?;
                return match hasher {
                    Some(hasher) if size == written => Ok(Reproduced { diff_id: hasher.finish(), size }),
                    _ => Err(torn()),
                };
            }
        }
    }
}

fn changed(path: &[u8]) -> Error {
    Error::system(format!("layer content has changed: /{}", String::from_utf8_lossy(path)))
}

/// Contents that are elsewhere now: by path, up to which step, and under which number.
type Superseded = HashMap<Vec<u8>, Vec<(u64, u64)>>;

/// Reads a recipe to its end, and so verifies its checksum.
fn check(layer: BorrowedFd) -> Result<Superseded> {
    let mut steps = steps(layer)?;
    let mut superseded = Superseded::new();
    let mut number = 0;
    loop {
        number += 1;
        match steps.next()? {
            Step::Framing(length) => steps.skip(length)?,
            Step::Content { .. } | Step::Regions { .. } => {}
            Step::Superseded { path, spare } => superseded.entry(path).or_default().push((number, spare)),
            Step::End { .. } => {
                let mut rest = [0; 1];
                return match steps.input.read(&mut rest) {
                    Ok(0) => Ok(superseded),
                    _ => Err(torn()),
                };
            }
        }
    }
}

/// Copies framing from the recipe.
fn copy_framing(stream: &mut Stream, input: &mut impl Read, mut length: usize) -> Result<()> {
    while length > 0 {
        let room = stream.room(length as u64)?;
        input.read_exact(room).map_err(|_| torn())?;
        let count = room.len();
        stream.advance(count);
        length -= count;
    }
    Ok(())
}

/// Copies regions of a file, which must have the CRC-32 that was recorded.
fn copy_content(stream: &mut Stream, file: &File, path: &[u8], regions: &[(u64, u64)], wanted: u32) -> Result<()> {
    let mut crc = crc32fast::Hasher::new();
    for (offset, length) in regions {
        let (mut at, mut left) = (*offset, *length);
        while left > 0 {
            let room = stream.room(left)?;
            let position = i64::try_from(at).map_err(|_| torn())?;
            let count = fd::pread(file.as_fd(), room, position).map_err(|e| failed("read", path, &e))?;
            if count == 0 {
                return Err(changed(path));
            }
            crc.update(&room[..count]);
            stream.advance(count);
            at += count as u64;
            left -= count as u64;
        }
    }
    if crc.finalize() == wanted { Ok(()) } else { Err(changed(path)) }
}
