//! Plain bytes in, gzip out: level 1, no name, no time, so that equal bytes always give equal blobs.

use miniz_oxide::deflate::core::{CompressorOxide, TDEFLFlush, TDEFLStatus, compress, create_comp_flags_from_zip_params};
use std::io::{self, Write};

/// The fixed head: deflate, no flags, no time, "fastest", unknown system (RFC 1952).
const HEADER: [u8; 10] = [0x1f, 0x8b, 0x08, 0, 0, 0, 0, 0, 0x04, 0xff];

/// A gzip writer; nothing is complete before [`Gzip::finish`].
pub struct Gzip<W: Write> {
    sink: W,
    deflate: Box<CompressorOxide>,
    buffer: Box<[u8]>,
    crc: crc32fast::Hasher,
    length: u32,
    started: bool,
}

impl<W: Write> Gzip<W> {
    pub fn new(sink: W) -> Gzip<W> {
        let flags = create_comp_flags_from_zip_params(1, -15, 0);
        Gzip {
            sink,
            deflate: Box::new(CompressorOxide::new(flags)),
            buffer: vec![0; 64 * 1024].into_boxed_slice(),
            crc: crc32fast::Hasher::new(),
            length: 0,
            started: false,
        }
    }

    /// Writes the last block and the trailer, and gives the sink back.
    pub fn finish(mut self) -> io::Result<W> {
        self.start()?;
        self.feed(&[], TDEFLFlush::Finish)?;
        let crc = self.crc.clone().finalize();
        self.sink.write_all(&crc.to_le_bytes())?;
        self.sink.write_all(&self.length.to_le_bytes())?;
        Ok(self.sink)
    }

    fn start(&mut self) -> io::Result<()> {
        if !self.started {
            self.sink.write_all(&HEADER)?;
            self.started = true;
        }
        Ok(())
    }

    fn feed(&mut self, mut bytes: &[u8], flush: TDEFLFlush) -> io::Result<()> {
        loop {
            let (status, read, written) = compress(&mut self.deflate, bytes, &mut self.buffer, flush);
            self.sink.write_all(&self.buffer[..written])?;
            bytes = &bytes[read..];
            match status {
                TDEFLStatus::Done => return Ok(()),
                TDEFLStatus::Okay if bytes.is_empty() && flush == TDEFLFlush::None => return Ok(()),
                TDEFLStatus::Okay => {}
                TDEFLStatus::BadParam | TDEFLStatus::PutBufFailed => return Err(io::Error::other("deflate refused its input")),
            }
        }
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.start()?;
        let part = &bytes[..bytes.len().min(1 << 20)];
        self.crc.update(part);
        self.length = self.length.wrapping_add(u32::try_from(part.len()).unwrap_or(0));
        self.feed(part, TDEFLFlush::None)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_give_equal_blobs_however_they_are_cut() {
        let plain: Vec<u8> = (0..300_000u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0] & 0x3f).collect();
        let whole = {
            let mut gzip = Gzip::new(Vec::new());
            gzip.write_all(&plain).unwrap();
            gzip.finish().unwrap()
        };
        let mut again = Gzip::new(Vec::new());
        for piece in plain.chunks(777) {
            again.write_all(piece).unwrap();
        }
        assert_eq!(whole, again.finish().unwrap());
        assert!(whole.len() < plain.len());
    }
}
