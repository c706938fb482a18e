//! Bytes of any supported compression in, plain bytes out, with bounded memory.
//!
//! The format is told by its magic bytes, as the reference does; what has none is taken as plain. Nesting is not
//! followed: a gzip inside a gzip comes out as gzip. Nothing is executed and no file is touched here, so this may run
//! before or outside a jail.

use super::bzip2::Bzip2;
use super::xz::Xz;
use super::{invalid, unexpected_eof};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder, errors as zstd_errors};
use std::io::{self, Read};

/// How a stream is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

/// Tells the compression by the first bytes of a stream (10 are enough).
pub fn detect(start: &[u8]) -> Compression {
    // A skippable zstd frame may stand first: 0x184D2A50 to 0x184D2A5F, little endian (RFC 8878).
    let skippable = start.first().is_some_and(|b| b & 0xf0 == 0x50) && start.get(1..4) == Some(&[0x2a, 0x4d, 0x18]);
    if start.starts_with(&[0x1f, 0x8b, 0x08]) {
        Compression::Gzip
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable {
        Compression::Zstd
    } else if start.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0x00]) {
        Compression::Xz
    } else if start.starts_with(b"BZh") {
        Compression::Bzip2
    } else {
        Compression::Plain
    }
}

/// A reader with a buffer of its own that knows how many bytes were taken from its source.
pub struct Input<R: Read> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Bytes asked of a source at once.
const INPUT_SIZE: usize = 64 * 1024;

impl<R: Read> Input<R> {
    pub fn new(source: R) -> Input<R> {
        Input { source, buffer: vec![0; INPUT_SIZE].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The bytes at hand; empty only at the end of the source.
    pub fn fill(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.start = 0;
            self.end = read_some(&mut self.source, &mut self.buffer)?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Reads until `count` bytes are at hand or the source ends. `count` must not exceed [`INPUT_SIZE`].
    pub fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.end - self.start < count {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            while self.end < count {
                match read_some(&mut self.source, &mut self.buffer[self.end..])? {
                    0 => break,
                    n => self.end += n,
                }
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    pub fn byte(&mut self) -> io::Result<u8> {
        let byte = *self.fill()?.first().ok_or_else(unexpected_eof)?;
        self.consume(1);
        Ok(byte)
    }

    pub fn exact<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes).map_err(|e| if e.kind() == io::ErrorKind::UnexpectedEof { unexpected_eof() } else { e })?;
        Ok(bytes)
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && out.len() >= INPUT_SIZE {
            return read_some(&mut self.source, out);
        }
        let n = self.fill()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

/// `read` that a signal does not end.
fn read_some(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A plain stream over a possibly compressed one.
pub struct Decompressor<R: Read> {
    compression: Compression,
    inner: Inner<R>,
}

enum Inner<R: Read> {
    Plain(Input<R>),
    Gzip(Box<Gunzip<R>>),
    Zstd(Box<Zstd<R>>),
    Xz(Box<Xz<R>>),
    Bzip2(Box<Bzip2<R>>),
}

impl<R: Read> Decompressor<R> {
    /// Reads the first bytes of `source` and chooses the decoder.
    pub fn new(source: R) -> io::Result<Decompressor<R>> {
        let mut input = Input::new(source);
        let compression = detect(input.peek(10)?);
        let inner = match compression {
            Compression::Plain => Inner::Plain(input),
            Compression::Gzip => Inner::Gzip(Box::new(Gunzip::new(input))),
            Compression::Zstd => Inner::Zstd(Box::new(Zstd::new(input))),
            Compression::Xz => Inner::Xz(Box::new(Xz::new(input))),
            Compression::Bzip2 => Inner::Bzip2(Box::new(Bzip2::new(input))),
        };
        Ok(Decompressor { compression, inner })
    }

    pub fn compression(&self) -> Compression {
        self.compression
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(input) => input.read(out),
            Inner::Gzip(gunzip) => gunzip.read(out),
            Inner::Zstd(zstd) => zstd.read(out),
            Inner::Xz(xz) => xz.read(out),
            Inner::Bzip2(bzip2) => bzip2.read(out),
        }
    }
}

/// Deflate's window, and the ring that inflate writes into: a power of two, as `inflate::core` asks.
const RING: usize = 64 * 1024;

/// gzip (RFC 1952), all concatenated members; zero padding after the last one is accepted as gzip(1) does.
struct Gunzip<R: Read> {
    input: Input<R>,
    inflate: DecompressorOxide,
    ring: Box<[u8]>,
    /// Where inflate writes next.
    write: usize,
    /// Bytes before `write` that have not been handed out.
    pending: usize,
    state: Member,
    crc: crc32fast::Hasher,
    length: u32,
}

#[derive(PartialEq, Eq)]
enum Member {
    /// Before a member's header; true before the first.
    Header {
        first: bool,
    },
    Body,
    Trailer,
    End,
}

impl<R: Read> Gunzip<R> {
    fn new(input: Input<R>) -> Gunzip<R> {
        Gunzip {
            input,
            inflate: DecompressorOxide::new(),
            ring: vec![0; RING].into_boxed_slice(),
            write: 0,
            pending: 0,
            state: Member::Header { first: true },
            crc: crc32fast::Hasher::new(),
            length: 0,
        }
    }

    fn header(&mut self, first: bool) -> io::Result<()> {
        if !first {
            // Another member, zero padding, or the end.
            loop {
                match self.input.fill()?.iter().position(|b| *b != 0) {
                    Some(at) => {
                        self.input.consume(at);
                        break;
                    }
                    None => {
                        let zeros = self.input.fill()?.len();
                        if zeros == 0 {
                            self.state = Member::End;
                            return Ok(());
                        }
                        self.input.consume(zeros);
                    }
                }
            }
        }
        let header: [u8; 10] = self.input.exact()?;
        if header[..3] != [0x1f, 0x8b, 0x08] || header[3] & 0xe0 != 0 {
            return Err(invalid("gzip: invalid header"));
        }
        let flags = header[3];
        if flags & 0x04 != 0 {
            let length = u16::from_le_bytes(self.input.exact()?);
            for _ in 0..length {
                self.input.byte()?;
            }
        }
        // FNAME and FCOMMENT: unbounded by the format, so bounded here.
        for flag in [0x08, 0x10] {
            if flags & flag != 0 {
                let mut length = 0;
                while self.input.byte()? != 0 {
                    length += 1;
                    if length > 64 * 1024 {
                        return Err(invalid("gzip: invalid header"));
                    }
                }
            }
        }
        if flags & 0x02 != 0 {
            self.input.exact::<2>()?;
        }
        self.inflate.init();
        self.crc = crc32fast::Hasher::new();
        self.length = 0;
        self.state = Member::Body;
        Ok(())
    }

    /// Inflates once into the ring. The ring is empty on entry.
    fn body(&mut self) -> io::Result<()> {
        let bytes = self.input.fill()?;
        let flags = if bytes.is_empty() { 0 } else { inflate_flags::TINFL_FLAG_HAS_MORE_INPUT };
        let (status, read, written) = decompress(&mut self.inflate, bytes, &mut self.ring, self.write, flags);
        let starved = bytes.is_empty();
        self.input.consume(read);
        let produced = &self.ring[self.write..self.write + written];
        self.crc.update(produced);
        self.length = self.length.wrapping_add(u32::try_from(written).unwrap_or(0));
        self.write = (self.write + written) & (RING - 1);
        self.pending = written;
        match status {
            TINFLStatus::Done => self.state = Member::Trailer,
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput if !(starved && written == 0) => {}
            TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress | TINFLStatus::HasMoreOutput => {
                return Err(unexpected_eof());
            }
            _ => return Err(invalid("flate: corrupt input")),
        }
        Ok(())
    }

    fn trailer(&mut self) -> io::Result<()> {
        let crc = u32::from_le_bytes(self.input.exact()?);
        let length = u32::from_le_bytes(self.input.exact()?);
        if crc != self.crc.clone().finalize() || length != self.length {
            return Err(invalid("gzip: invalid checksum"));
        }
        self.state = Member::Header { first: false };
        Ok(())
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while self.pending == 0 {
            match self.state {
                Member::Header { first } => self.header(first)?,
                Member::Body => self.body()?,
                Member::Trailer => self.trailer()?,
                Member::End => return Ok(0),
            }
        }
        // What one call wrote never wraps: inflate stops at the ring's end.
        let start = self.write.wrapping_sub(self.pending) & (RING - 1);
        let n = self.pending.min(out.len());
        out[..n].copy_from_slice(&self.ring[start..start + n]);
        self.pending -= n;
        Ok(n)
    }
}

/// The largest window that is accepted of a zstd frame, in bytes: what `zstd --ultra -22` asks for.
const ZSTD_WINDOW: u64 = 128 * 1024 * 1024;

/// zstd (RFC 8878): all concatenated frames, skippable ones left out.
struct Zstd<R: Read> {
    input: Input<R>,
    decoder: FrameDecoder,
    within: bool,
}

impl<R: Read> Zstd<R> {
    fn new(input: Input<R>) -> Zstd<R> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW);
        Zstd { input, decoder, within: false }
    }

    /// Starts the next frame; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.input.fill()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.input) {
                Ok(()) => return Ok(true),
                Err(zstd_errors::FrameDecoderError::ReadFrameHeaderError(zstd_errors::ReadFrameHeaderError::SkipFrame {
                    length, ..
                })) => {
                    let skipped = io::copy(&mut (&mut self.input).take(length.into()), &mut io::sink())?;
                    if skipped != u64::from(length) {
                        return Err(unexpected_eof());
                    }
                }
                Err(e) => return Err(invalid(format!("zstd: {e}"))),
            }
        }
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if self.within {
                if self.decoder.can_collect() > 0 {
                    return self.decoder.read(out);
                }
                if !self.decoder.is_finished() {
                    self.decoder
                        .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBytes(128 * 1024))
                        .map_err(|e| invalid(format!("zstd: {e}")))?;
                    continue;
                }
                self.within = false;
            }
            if !self.next_frame()? {
                return Ok(0);
            }
            self.within = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compress::Gzip;
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn sample(length: usize) -> Vec<u8> {
        let mut seed = 12345u32;
        let noise = |seed: &mut u32| {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_be_bytes()[0]
        };
        (0..length).map(|i| if i / 5000 % 2 == 0 { b"the quick brown fox "[i % 20] } else { noise(&mut seed) }).collect()
    }

    fn packed(program: &str, args: &[&str], plain: &[u8]) -> Option<Vec<u8>> {
        let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let mut stdin = child.stdin.take()?;
        let plain = plain.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&plain));
        let out = child.wait_with_output().ok()?.stdout;
        writer.join().ok()?.ok()?;
        Some(out)
    }

    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompressor::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    const PROGRAMS: [(&str, &[&str]); 9] = [
        ("gzip", &["-c"]),
        ("gzip", &["-1c"]),
        ("zstd", &["-c", "-q"]),
        ("zstd", &["-19", "-c", "-q"]),
        ("xz", &["-c"]),
        ("xz", &["-c", "-C", "sha256"]),
        ("xz", &["-c", "--block-size=100000", "-C", "crc32"]),
        ("bzip2", &["-c"]),
        ("bzip2", &["-1c"]),
    ];

    #[test]
    fn reads_what_the_usual_programs_write() {
        for length in [0, 1, 70_000, 650_000] {
            let plain = sample(length);
            for (program, args) in PROGRAMS {
                let Some(bytes) = packed(program, args, &plain) else { continue };
                assert_eq!(unpack(&bytes).unwrap(), plain, "{program} {args:?} {length}");
                let twice: Vec<u8> = [bytes.as_slice(), bytes.as_slice()].concat();
                assert_eq!(unpack(&twice).unwrap(), [plain.as_slice(), plain.as_slice()].concat(), "{program} {args:?} {length} twice");
            }
        }
    }

    #[test]
    fn refuses_truncated_and_damaged_streams() {
        let plain = sample(60_000);
        for (program, args) in PROGRAMS {
            let Some(bytes) = packed(program, args, &plain) else { continue };
            for cut in [1, bytes.len() / 2, bytes.len() - 9] {
                assert!(unpack(&bytes[..bytes.len() - cut]).is_err(), "{program} {args:?} short by {cut}");
            }
            for at in (20..bytes.len()).step_by(bytes.len() / 61 + 1) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x24;
                // zstd -c writes a checksum of the content that the decoder does not verify; the digest of the layer does.
                if program != "zstd" {
                    assert!(unpack(&damaged).is_ok_and(|out| out == plain) || unpack(&damaged).is_err(), "{program} {args:?} at {at}");
                } else {
                    let _ = unpack(&damaged);
                }
            }
        }
    }

    #[test]
    fn fuzz_decoders_end_whatever_they_get() {
        let plain = sample(30_000);
        let seeds: Vec<Vec<u8>> = PROGRAMS.iter().filter_map(|(program, args)| packed(program, args, &plain)).collect();
        let seconds: u64 = std::env::var("CORACLE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        let started = std::time::Instant::now();
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed >> 1).unwrap_or(0) % below
        };
        while started.elapsed().as_secs() < seconds {
            let mut bytes = seeds[random(seeds.len())].clone();
            for _ in 0..=random(8) {
                let at = 4 + random(bytes.len() - 4);
                bytes[at] = random(256).to_le_bytes()[0];
            }
            let mut out = Vec::new();
            // A few bytes may stand for gigabytes; that is the next reader's bound to keep.
            let _ = Decompressor::new(bytes.as_slice()).map(|decoder| decoder.take(4 << 20).read_to_end(&mut out));
        }
    }

    #[test]
    fn concatenated_members_and_padding_are_one_stream() {
        let mut one = Gzip::new(Vec::new());
        one.write_all(b"hello ").unwrap();
        let mut two = Gzip::new(Vec::new());
        two.write_all(b"world").unwrap();
        let mut bytes = one.finish().unwrap();
        bytes.extend(two.finish().unwrap());
        assert_eq!(unpack(&bytes).unwrap(), b"hello world");
        bytes.extend([0; 700]);
        assert_eq!(unpack(&bytes).unwrap(), b"hello world");
        bytes.extend(b"junk after the end");
        assert!(unpack(&bytes).is_err());
    }

    #[test]
    fn what_has_no_magic_is_plain() {
        assert_eq!(unpack(b"").unwrap(), b"");
        assert_eq!(unpack(b"BZ").unwrap(), b"BZ");
        assert_eq!(detect(&[0x5a, 0x2a, 0x4d, 0x18]), Compression::Zstd);
    }
}
