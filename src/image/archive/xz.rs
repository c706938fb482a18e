//! The .xz container (version 1.2.1 of its specification) around LZMA2: streams, blocks, checks, index.
//!
//! Only the LZMA2 filter is known: branch filters are for executables and no layer carries them.

use super::decompress::Input;
use super::{invalid, unexpected_eof};
use lzma_rust2::Lzma2Reader;
use std::io::{self, Read};

/// The largest dictionary that is accepted, in bytes: what `xz -9` asks for.
const DICTIONARY: u32 = 64 * 1024 * 1024;

/// The reader of one or more concatenated streams.
pub struct Xz<R: Read> {
    state: State<R>,
    check: Check,
    /// What the footer must repeat.
    flags: [u8; 2],
    /// A running CRC over the sizes of the blocks seen, compared with the same over the index.
    sizes: crc32fast::Hasher,
    blocks: u64,
    header_size: u64,
    plain_size: u64,
    declared: (Option<u64>, Option<u64>),
}

enum State<R: Read> {
    Streams(Counted<R>, bool),
    Blocks(Counted<R>),
    Block(Box<Lzma2Reader<Counted<R>>>),
    End,
}

/// Counts what the LZMA2 decoder takes.
struct Counted<R: Read> {
    input: Input<R>,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(out)?;
        self.count += n as u64;
        Ok(n)
    }
}

/// The check of a block's plain bytes.
enum Check {
    None(usize),
    Crc32(crc32fast::Hasher),
    Crc64(u64),
    Sha256(Box<ring::digest::Context>),
}

impl Check {
    fn of(kind: u8) -> Check {
        match kind {
            1 => Check::Crc32(crc32fast::Hasher::new()),
            4 => Check::Crc64(!0),
            10 => Check::Sha256(Box::new(ring::digest::Context::new(&ring::digest::SHA256))),
            // Sizes of the checks that the format reserves; their bytes are passed over.
            other => Check::None([0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64][usize::from(other & 15)]),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Check::None(_) => {}
            Check::Crc32(crc) => crc.update(bytes),
            Check::Crc64(crc) => *crc = bytes.iter().fold(*crc, |crc, b| CRC64[usize::from(crc.to_le_bytes()[0] ^ b)] ^ (crc >> 8)),
            Check::Sha256(context) => context.update(bytes),
        }
    }

    fn finish(self) -> (Option<Vec<u8>>, usize) {
        match self {
            Check::None(size) => (None, size),
            Check::Crc32(crc) => (Some(crc.finalize().to_le_bytes().to_vec()), 4),
            Check::Crc64(crc) => (Some((!crc).to_le_bytes().to_vec()), 8),
            Check::Sha256(context) => (Some(context.finish().as_ref().to_vec()), 32),
        }
    }
}

/// CRC-64 of ECMA-182, reflected.
const CRC64: [u64; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xc96c_5795_d787_0f42 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn corrupt() -> io::Error {
    invalid("xz: compressed data is corrupt")
}

/// A variable-length integer of at most nine bytes; `taken` counts them.
fn number(bytes: &mut impl FnMut() -> io::Result<u8>) -> io::Result<u64> {
    let mut value = 0;
    for i in 0..9 {
        let byte = bytes()?;
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return if byte == 0 && i > 0 { Err(corrupt()) } else { Ok(value) };
        }
    }
    Err(corrupt())
}

impl<R: Read> Xz<R> {
    pub fn new(input: Input<R>) -> Xz<R> {
        Xz {
            state: State::Streams(Counted { input, count: 0 }, true),
            check: Check::None(0),
            flags: [0; 2],
            sizes: crc32fast::Hasher::new(),
            blocks: 0,
            header_size: 0,
            plain_size: 0,
            declared: (None, None),
        }
    }

    fn stream_header(&mut self, mut source: Counted<R>, first: bool) -> io::Result<State<R>> {
        if !first {
            // Padding between streams comes in fours.
            while source.input.peek(4)?.starts_with(&[0; 4]) {
                source.input.consume(4);
            }
            if source.input.fill()?.is_empty() {
                return Ok(State::End);
            }
        }
        let header: [u8; 12] = source.input.exact()?;
        if header[..6] != [0xfd, b'7', b'z', b'X', b'Z', 0] || header[6] != 0 || header[7] > 15 {
            return Err(invalid("xz: file format not recognized"));
        }
        if crc32fast::hash(&header[6..8]).to_le_bytes() != header[8..12] {
            return Err(corrupt());
        }
        self.flags = [header[6], header[7]];
        self.sizes = crc32fast::Hasher::new();
        self.blocks = 0;
        Ok(State::Blocks(source))
    }

    fn block_header(&mut self, mut source: Counted<R>) -> io::Result<State<R>> {
        let size = source.input.byte()?;
        if size == 0 {
            return self.index(source);
        }
        let size = (usize::from(size) + 1) * 4;
        let mut header = vec![0; size];
        header[0] = u8::try_from(size / 4 - 1).map_err(|_| corrupt())?;
        source.input.read_exact(&mut header[1..]).map_err(|_| unexpected_eof())?;
        let (fields, crc) = header.split_at(size - 4);
        if crc32fast::hash(fields).to_le_bytes() != crc {
            return Err(corrupt());
        }
        let flags = fields[1];
        let mut rest = fields[2..].iter();
        let mut next = || rest.next().copied().ok_or_else(corrupt);
        let packed = if flags & 0x40 != 0 { Some(number(&mut next)?) } else { None };
        let plain = if flags & 0x80 != 0 { Some(number(&mut next)?) } else { None };
        let (filter, properties) = (number(&mut next)?, number(&mut next)?);
        if flags & 0x3f != 0 || filter != 0x21 || properties != 1 {
            return Err(invalid("xz: unsupported options"));
        }
        let bits = next()?;
        let dictionary = match bits {
            0..=39 => (2 | u32::from(bits & 1)) << (bits / 2 + 11),
            40 => u32::MAX,
            _ => return Err(invalid("xz: unsupported options")),
        };
        if dictionary > DICTIONARY {
            return Err(invalid("xz: memory usage limit reached"));
        }
        if rest.any(|b| *b != 0) {
            return Err(corrupt());
        }
        self.header_size = size as u64;
        self.declared = (packed, plain);
        self.plain_size = 0;
        self.check = Check::of(self.flags[1]);
        source.count = 0;
        Ok(State::Block(Box::new(Lzma2Reader::new(source, dictionary, None))))
    }

    fn block_end(&mut self, mut source: Counted<R>) -> io::Result<State<R>> {
        let packed = source.count;
        if self.declared.0.is_some_and(|n| n != packed) || self.declared.1.is_some_and(|n| n != self.plain_size) {
            return Err(corrupt());
        }
        for _ in 0..packed.wrapping_neg() & 3 {
            if source.input.byte()? != 0 {
                return Err(corrupt());
            }
        }
        let (wanted, size) = std::mem::replace(&mut self.check, Check::None(0)).finish();
        let mut found = vec![0; size];
        source.input.read_exact(&mut found).map_err(|_| unexpected_eof())?;
        if wanted.is_some_and(|wanted| wanted != found) {
            return Err(corrupt());
        }
        let unpadded = self.header_size + packed + size as u64;
        self.sizes.update(&unpadded.to_le_bytes());
        self.sizes.update(&self.plain_size.to_le_bytes());
        self.blocks += 1;
        Ok(State::Blocks(source))
    }

    fn index(&mut self, mut source: Counted<R>) -> io::Result<State<R>> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&[0]);
        let mut length = 1u64;
        let mut next = || {
            let byte = source.input.byte()?;
            crc.update(&[byte]);
            length += 1;
            Ok(byte)
        };
        if number(&mut next)? != self.blocks {
            return Err(corrupt());
        }
        let mut sizes = crc32fast::Hasher::new();
        for _ in 0..self.blocks * 2 {
            sizes.update(&number(&mut next)?.to_le_bytes());
        }
        while length & 3 != 0 {
            let byte = source.input.byte()?;
            crc.update(&[byte]);
            length += 1;
            if byte != 0 {
                return Err(corrupt());
            }
        }
        let found: [u8; 4] = source.input.exact()?;
        if crc.finalize().to_le_bytes() != found || sizes.finalize() != self.sizes.clone().finalize() {
            return Err(corrupt());
        }
        let footer: [u8; 12] = source.input.exact()?;
        let backward = u64::from(u32::from_le_bytes([footer[4], footer[5], footer[6], footer[7]]));
        let sound = crc32fast::hash(&footer[4..10]).to_le_bytes() == footer[..4];
        if !sound || (backward + 1) * 4 != length + 4 || footer[8..10] != self.flags || &footer[10..] != b"YZ" {
            return Err(corrupt());
        }
        Ok(State::Streams(source, false))
    }
}

impl<R: Read> Read for Xz<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            self.state = match std::mem::replace(&mut self.state, State::End) {
                State::Streams(source, first) => self.stream_header(source, first)?,
                State::Blocks(source) => self.block_header(source)?,
                State::Block(mut block) => {
                    let n = block.read(out).map_err(|e| match e.kind() {
                        io::ErrorKind::UnexpectedEof => unexpected_eof(),
                        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => corrupt(),
                        _ => e,
                    })?;
                    if n > 0 {
                        self.check.update(&out[..n]);
                        self.plain_size += n as u64;
                        self.state = State::Block(block);
                        return Ok(n);
                    }
                    self.block_end(block.into_inner())?
                }
                State::End => return Ok(0),
            };
        }
    }
}
