//! Tar entries over a byte stream, one buffer, no seeking, no trust.
//!
//! Each call takes a [`Tap`], which is shown every byte that is not the content of a file the caller keeps: headers,
//! padding, skipped content, the end. Together with those contents these bytes are the exact stream; see `recipe`.

use super::header::{self, BLOCK, Entry, Extensions, Kind, invalid_header};
use super::{from_io, sparse};
use crate::error::{Error, Result};
use std::io::Read;

/// Most bytes of one extended header or long name.
const EXTENSION_MAX: u64 = 1 << 20;
/// The buffer, and so the most that one [`Reader::chunk`] gives.
pub const CHUNK: usize = 256 * 1024;

/// What a stream may cost; beyond it comes an error that names the bound.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed stream.
    pub stream_bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for Limits {
    /// 16 GiB and four million entries.
    fn default() -> Limits {
        Limits { stream_bytes: 16 << 30, entries: 4_000_000 }
    }
}

/// Sees the framing of a stream.
pub trait Tap {
    fn framing(&mut self, bytes: &[u8]) -> Result<()>;
}

/// For those who do not care.
impl Tap for () {
    fn framing(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// The entries of one tar stream.
pub struct Reader<R: Read> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    eof: bool,
    limits: Limits,
    entries: u64,
    /// Bytes taken from the source.
    taken: u64,
    /// Stored bytes of the current entry's content that were not read yet, and the padding after them.
    content: u64,
    padding: u64,
    finished: bool,
}

impl<R: Read> Reader<R> {
    pub fn new(source: R, limits: Limits) -> Reader<R> {
        Reader {
            source,
            buffer: vec![0; CHUNK].into_boxed_slice(),
            start: 0,
            end: 0,
            eof: false,
            limits,
            entries: 0,
            taken: 0,
            content: 0,
            padding: 0,
            finished: false,
        }
    }

    /// The next entry, or `None` at the end of the archive, when the whole source has been read.
    /// What is left of the current entry's content goes to the tap.
    pub fn next(&mut self, tap: &mut dyn Tap) -> Result<Option<Entry>> {
        self.skip(tap)?;
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.header(tap)? else { return Ok(None) };
            // Extended headers count too: a flood of them must end.
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(Error::invalid(format!("archive has more than {} entries", self.limits.entries)));
            }
            match block[156] {
                b'x' => {
                    let body = self.extension(&block, tap)?;
                    extensions.pax(&body)?;
                }
                // Global records are ignored, as the reference does.
                b'g' => drop(self.extension(&block, tap)?),
                b'L' => extensions.path = Some(header::text(&self.extension(&block, tap)?).to_vec()),
                b'K' => extensions.link = Some(header::text(&self.extension(&block, tap)?).to_vec()),
                _ => return self.entry(&block, &mut extensions, tap).map(Some),
            }
        }
    }

    fn entry(&mut self, block: &[u8; BLOCK], extensions: &mut Extensions, tap: &mut dyn Tap) -> Result<Entry> {
        let (mut entry, flag) = header::entry(block, extensions)?;
        self.set_content(entry.size)?;
        if flag == b'S' {
            let mut map = sparse::old_start(block)?;
            while map.extended {
                let more = self.block(tap)?.ok_or_else(|| Error::invalid("unexpected EOF"))?;
                map.extend(&more)?;
            }
            entry.size = map.real_size;
            entry.sparse = Some(sparse::checked(map.regions, map.real_size, self.content)?);
        } else if entry.kind == Kind::File && extensions.sparse.seen {
            self.pax_sparse(&mut entry, extensions, tap)?;
        }
        Ok(entry)
    }

    fn pax_sparse(&mut self, entry: &mut Entry, extensions: &mut Extensions, tap: &mut dyn Tap) -> Result<()> {
        let records = &extensions.sparse;
        let version = (records.major.as_slice(), records.minor.as_slice());
        let regions = match version {
            (b"1", b"0") => {
                let mut text = sparse::MapText::default();
                while !text.complete() {
                    if self.content < BLOCK as u64 {
                        return Err(invalid_header());
                    }
                    let block = self.block(tap)?.ok_or_else(|| Error::invalid("unexpected EOF"))?;
                    self.content -= BLOCK as u64;
                    text.feed(&block)?;
                }
                text.regions
            }
            (b"0", b"0" | b"1") | (b"", b"") if !records.map.is_empty() || records.block_count == Some(0) => {
                sparse::pairs(&records.map, records.block_count)?
            }
            _ => return Ok(()),
        };
        let real_size = records.real_size.ok_or_else(invalid_header)?;
        entry.sparse = Some(sparse::checked(regions, real_size, self.content)?);
        entry.size = real_size;
        Ok(())
    }

    fn set_content(&mut self, size: u64) -> Result<()> {
        if size > self.limits.stream_bytes {
            return Err(self.too_large());
        }
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    /// The next piece of the current entry's stored content (sparse files: its data regions, one after another); empty at its end.
    pub fn chunk(&mut self) -> Result<&[u8]> {
        if self.content == 0 {
            return Ok(&[]);
        }
        if self.start == self.end && !self.fill()? {
            return Err(Error::invalid("unexpected EOF"));
        }
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(self.end - self.start);
        let piece = self.start..self.start + most;
        self.start += most;
        self.content -= most as u64;
        Ok(&self.buffer[piece])
    }

    /// The content as a `Read`, for callers that want a stream.
    pub fn content(&mut self) -> Content<'_, R> {
        Content { reader: self, offset: 0, length: 0 }
    }

    /// Bytes of the stream taken so far.
    pub fn taken(&self) -> u64 {
        self.taken - (self.end - self.start) as u64
    }

    /// Passes the rest of the content, and the padding, to the tap.
    fn skip(&mut self, tap: &mut dyn Tap) -> Result<()> {
        let mut left = self.content + self.padding;
        let padding = self.padding;
        (self.content, self.padding) = (0, 0);
        while left > 0 {
            if self.start == self.end && !self.fill()? {
                // A missing last padding is forgiven, as Go forgives it; missing content is not.
                return if left <= padding { Ok(()) } else { Err(Error::invalid("unexpected EOF")) };
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.end - self.start);
            tap.framing(&self.buffer[self.start..self.start + most])?;
            self.start += most;
            left -= most as u64;
        }
        Ok(())
    }

    /// The next header block; `None` at the end, after everything that follows the end mark has been read.
    fn header(&mut self, tap: &mut dyn Tap) -> Result<Option<[u8; BLOCK]>> {
        if self.finished {
            return Ok(None);
        }
        let Some(block) = self.block(tap)? else {
            self.finished = true;
            return Ok(None);
        };
        if block != [0; BLOCK] {
            header::verify_checksum(&block)?;
            return Ok(Some(block));
        }
        // Two zero blocks end an archive; one followed by something else is damage.
        if self.block(tap)?.is_some_and(|second| second != [0; BLOCK]) {
            return Err(invalid_header());
        }
        self.finished = true;
        while self.start < self.end || self.fill()? {
            tap.framing(&self.buffer[self.start..self.end])?;
            self.start = self.end;
        }
        Ok(None)
    }

    /// One whole block, or `None` at the source's end; part of a block is an error.
    fn block(&mut self, tap: &mut dyn Tap) -> Result<Option<[u8; BLOCK]>> {
        while self.end - self.start < BLOCK {
            if !self.fill()? {
                if self.start == self.end {
                    return Ok(None);
                }
                return Err(Error::invalid("unexpected EOF"));
            }
        }
        let mut block = [0; BLOCK];
        block.copy_from_slice(&self.buffer[self.start..self.start + BLOCK]);
        self.start += BLOCK;
        tap.framing(&block)?;
        Ok(Some(block))
    }

    /// The body of an extended header, refused before a byte of it is read when it is too long.
    fn extension(&mut self, block: &[u8; BLOCK], tap: &mut dyn Tap) -> Result<Vec<u8>> {
        let size = header::size(&block[124..136])?;
        if size > EXTENSION_MAX {
            return Err(invalid_header());
        }
        self.set_content(size)?;
        let mut body = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        loop {
            let piece = self.chunk()?;
            if piece.is_empty() {
                break;
            }
            tap.framing(piece)?;
            body.extend_from_slice(piece);
        }
        self.skip(tap)?;
        Ok(body)
    }

    fn too_large(&self) -> Error {
        Error::invalid(format!("archive expands to more than {} bytes", self.limits.stream_bytes))
    }

    /// Gets more bytes behind what is left; false at the source's end.
    fn fill(&mut self) -> Result<bool> {
        if self.eof {
            return Ok(false);
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(count) => break count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(from_io("read archive", e)),
            }
        };
        self.end += count;
        self.taken += count as u64;
        if self.taken > self.limits.stream_bytes {
            return Err(self.too_large());
        }
        self.eof = count == 0;
        Ok(count > 0)
    }
}

/// See [`Reader::content`].
pub struct Content<'a, R: Read> {
    reader: &'a mut Reader<R>,
    /// The piece of the buffer that the last chunk named and that was not handed out yet.
    offset: usize,
    length: usize,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.length == 0 {
            self.length = self.reader.chunk().map_err(std::io::Error::other)?.len();
            self.offset = self.reader.start - self.length;
        }
        let n = self.length.min(out.len());
        out[..n].copy_from_slice(&self.reader.buffer[self.offset..self.offset + n]);
        self.offset += n;
        self.length -= n;
        Ok(n)
    }
}

impl<R: Read> Drop for Content<'_, R> {
    fn drop(&mut self) {
        // What was taken as a chunk but not handed out goes back, so that skipping finds it.
        self.reader.start -= self.length;
        self.reader.content += self.length as u64;
    }
}
