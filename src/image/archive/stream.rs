//! An output that gathers small pieces into large ones and hashes them on the way.

use super::from_io;
use super::reader::CHUNK;
use crate::error::Result;
use crate::image::digest::Sha256;
use std::io::Write;

pub(crate) struct Stream<'a> {
    out: &'a mut dyn Write,
    buffer: Box<[u8]>,
    used: usize,
    hasher: Option<Sha256>,
    flushed: u64,
}

impl<'a> Stream<'a> {
    pub fn new(out: &'a mut dyn Write, hash: bool) -> Stream<'a> {
        Stream { out, buffer: vec![0; CHUNK].into_boxed_slice(), used: 0, hasher: hash.then(Sha256::new), flushed: 0 }
    }

    /// Bytes put in so far.
    pub fn size(&self) -> u64 {
        self.flushed + self.used as u64
    }

    /// Room for at least one byte, at most `most`; to be confirmed by [`Stream::advance`].
    pub fn room(&mut self, most: u64) -> Result<&mut [u8]> {
        if self.used == self.buffer.len() {
            self.flush()?;
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len() - self.used);
        Ok(&mut self.buffer[self.used..self.used + most])
    }

    pub fn advance(&mut self, count: usize) {
        self.used += count;
    }

    pub fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.used == 0 && bytes.len() >= self.buffer.len() {
                return self.write(bytes);
            }
            let room = self.room(bytes.len() as u64)?;
            let count = room.len();
            room.copy_from_slice(&bytes[..count]);
            self.advance(count);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.out.write_all(bytes).map_err(|e| from_io("write archive", e))?;
        self.flushed += bytes.len() as u64;
        Ok(())
    }

    pub fn flush(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let done = self.write(&buffer[..self.used]);
        self.buffer = buffer;
        self.used = 0;
        done
    }

    /// Flushes; the hasher, if one was asked for, and the size.
    pub fn finish(mut self) -> Result<(Option<Sha256>, u64)> {
        self.flush()?;
        Ok((self.hasher, self.flushed))
    }
}
