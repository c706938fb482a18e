//! The bzip2 decoder: Huffman tables, move-to-front, the inverse Burrows–Wheeler transform; at most 4 MB of memory.

use super::decompress::Input;
use super::{invalid, unexpected_eof};
use std::io::{self, Read};

/// The first 48 bits of a block, and of a stream's end.
const BLOCK: u64 = 0x3141_5926_5359;
const END: u64 = 0x1772_4538_5090;

/// The reader of one or more concatenated streams.
pub struct Bzip2<R: Read> {
    input: Input<R>,
    /// Bits read from the input and not used yet, at the low end.
    bits: u64,
    bit_count: u32,
    /// 100 kB times the level.
    block_size: usize,
    stream_crc: u32,
    within: bool,
    first: bool,
    /// The block: a byte in the low eight bits, the index of its successor above.
    links: Vec<u32>,
    at: u32,
    left: usize,
    /// Run-length state: the last byte, how often it came, and how many more of it to hand out.
    last: u8,
    run: u8,
    repeat: u8,
    block_crc: u32,
    wanted_crc: u32,
}

fn corrupt(what: &str) -> io::Error {
    invalid(format!("bzip2 data invalid: {what}"))
}

/// CRC-32 of bzip2: the usual polynomial, not reflected.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    let mut top = 0u32; // i in the highest byte
    while i < 256 {
        let mut crc = top;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 != 0 { (crc << 1) ^ 0x04c1_1db7 } else { crc << 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
        top = top.wrapping_add(1 << 24);
    }
    table
};

/// One canonical Huffman table, decoded length by length.
struct Huffman {
    /// The first code of each length, and the index of its symbol.
    first: [u32; 22],
    offset: [usize; 22],
    count: [u32; 22],
    symbols: Vec<u16>,
}

impl Huffman {
    fn new(lengths: &[u8]) -> Huffman {
        let mut table = Huffman { first: [0; 22], offset: [0; 22], count: [0; 22], symbols: Vec::with_capacity(lengths.len()) };
        let mut code = 0;
        for length in 1..=20u8 {
            let at = usize::from(length);
            table.first[at] = code;
            table.offset[at] = table.symbols.len();
            for (symbol, _) in (0u16..).zip(lengths).filter(|(_, l)| **l == length) {
                table.symbols.push(symbol);
                table.count[at] += 1;
                code += 1;
            }
            code <<= 1;
        }
        table
    }
}

impl<R: Read> Bzip2<R> {
    pub fn new(input: Input<R>) -> Bzip2<R> {
        Bzip2 {
            input,
            bits: 0,
            bit_count: 0,
            block_size: 0,
            stream_crc: 0,
            within: false,
            first: true,
            links: Vec::new(),
            at: 0,
            left: 0,
            last: 0,
            run: 0,
            repeat: 0,
            block_crc: !0,
            wanted_crc: 0,
        }
    }

    /// The next `count` bits (at most 32).
    fn bits(&mut self, count: u32) -> io::Result<u32> {
        while self.bit_count < count {
            let bytes = self.input.fill()?;
            if bytes.is_empty() {
                return Err(unexpected_eof());
            }
            let taken = bytes.len().min(3);
            for byte in &bytes[..taken] {
                self.bits = self.bits << 8 | u64::from(*byte);
                self.bit_count += 8;
            }
            self.input.consume(taken);
        }
        self.bit_count -= count;
        Ok(u32::try_from(self.bits >> self.bit_count & ((1 << count) - 1)).unwrap_or(0))
    }

    fn flag(&mut self) -> io::Result<bool> {
        Ok(self.bits(1)? == 1)
    }

    fn symbol(&mut self, table: &Huffman) -> io::Result<u16> {
        let mut code = 0;
        for length in 1..=20 {
            code = code << 1 | self.bits(1)?;
            let index = code.wrapping_sub(table.first[length]);
            if index < table.count[length] {
                return Ok(table.symbols[table.offset[length] + index as usize]);
            }
        }
        Err(corrupt("Huffman code out of range"))
    }

    /// Goes to the next block; false at the end of the input.
    fn next_block(&mut self) -> io::Result<bool> {
        loop {
            if !self.within {
                // A stream starts at a byte; what is left of the last byte is padding.
                self.bit_count &= !7;
                if self.bit_count == 0 && self.input.fill()?.is_empty() && !self.first {
                    return Ok(false);
                }
                let magic = self.bits(32)?;
                let level = magic & 0xff;
                if magic >> 8 != 0x42_5a68 || !(0x31..=0x39).contains(&level) {
                    return Err(corrupt("bad magic value"));
                }
                self.block_size = 100_000 * (level as usize - 0x30);
                self.stream_crc = 0;
                self.within = true;
                self.first = false;
            }
            match u64::from(self.bits(24)?) << 24 | u64::from(self.bits(24)?) {
                BLOCK => {
                    self.block()?;
                    return Ok(true);
                }
                END => {
                    if self.bits(32)? != self.stream_crc {
                        return Err(corrupt("checksum mismatch"));
                    }
                    self.within = false;
                }
                _ => return Err(corrupt("bad magic value found")),
            }
        }
    }

    fn block(&mut self) -> io::Result<()> {
        self.wanted_crc = self.bits(32)?;
        if self.flag()? {
            return Err(corrupt("deprecated randomized files"));
        }
        let origin = self.bits(24)? as usize;
        let (mut front, tables, selectors) = self.tables()?;
        let end_of_block = front.len() + 1;
        let mut counts = [0u32; 256];
        self.links.clear();
        let (mut run, mut weight) = (0usize, 1usize);
        let mut groups = selectors.into_iter();
        let mut table = None;
        let mut left = 0;
        loop {
            if left == 0 {
                table = groups.next().and_then(|i| tables.get(usize::from(i)));
                left = 50;
            }
            left -= 1;
            let table = table.ok_or_else(|| corrupt("insufficient selectors"))?;
            let symbol = usize::from(self.symbol(table)?);
            if symbol < 2 {
                // RUNA and RUNB: a bijective base-2 number of repeats of the front byte.
                run += weight << symbol;
                weight <<= 1;
                if run > self.block_size {
                    return Err(corrupt("repeat count too large"));
                }
                continue;
            }
            if run > 0 {
                let byte = *front.first().ok_or_else(|| corrupt("no symbols"))?;
                if self.links.len() + run > self.block_size {
                    return Err(corrupt("data exceeds block size"));
                }
                counts[usize::from(byte)] += u32::try_from(run).unwrap_or(0);
                self.links.resize(self.links.len() + run, u32::from(byte));
                (run, weight) = (0, 1);
            }
            if symbol == end_of_block {
                break;
            }
            if self.links.len() >= self.block_size {
                return Err(corrupt("data exceeds block size"));
            }
            let index = symbol - 1;
            let byte = *front.get(index).ok_or_else(|| corrupt("symbol out of range"))?;
            front.copy_within(..index, 1);
            front[0] = byte;
            counts[usize::from(byte)] += 1;
            self.links.push(u32::from(byte));
        }
        self.invert(origin, &counts)
    }

    /// The symbol map, the selectors and the Huffman tables of a block.
    fn tables(&mut self) -> io::Result<(Vec<u8>, Vec<Huffman>, Vec<u8>)> {
        let used = self.bits(16)?;
        let mut front = Vec::new();
        for range in 0..16u32 {
            if used & 0x8000 >> range != 0 {
                let within = self.bits(16)?;
                front.extend((0..16).filter(|i| within & 0x8000 >> i != 0).filter_map(|i| u8::try_from(range * 16 + i).ok()));
            }
        }
        let count = self.bits(3)?;
        if front.is_empty() || !(2..=6).contains(&count) {
            return Err(corrupt("invalid number of trees"));
        }
        let mut order: Vec<u8> = (0..6).take(count as usize).collect();
        let selector_count = self.bits(15)?;
        let mut selectors = Vec::with_capacity(selector_count as usize);
        for _ in 0..selector_count {
            let mut index = 0;
            while self.flag()? {
                index += 1;
                if index >= order.len() {
                    return Err(corrupt("tree index too large"));
                }
            }
            order[..=index].rotate_right(1);
            selectors.push(order[0]);
        }
        let mut tables = Vec::new();
        for _ in 0..count {
            let mut length = self.bits(5)?;
            let mut lengths = Vec::with_capacity(front.len() + 2);
            for _ in 0..front.len() + 2 {
                loop {
                    if !(1..=20).contains(&length) {
                        return Err(corrupt("Huffman length out of range"));
                    }
                    if !self.flag()? {
                        break;
                    }
                    length = if self.flag()? { length - 1 } else { length + 1 };
                }
                lengths.push(u8::try_from(length).unwrap_or(20));
            }
            tables.push(Huffman::new(&lengths));
        }
        Ok((front, tables, selectors))
    }

    fn invert(&mut self, origin: usize, counts: &[u32; 256]) -> io::Result<()> {
        let mut starts = [0usize; 256];
        let mut sum = 0;
        for (start, count) in starts.iter_mut().zip(counts) {
            *start = sum;
            sum += *count as usize;
        }
        for i in 0..self.links.len() {
            let byte = usize::from(self.links[i].to_le_bytes()[0]);
            self.links[starts[byte]] |= u32::try_from(i).unwrap_or(0) << 8;
            starts[byte] += 1;
        }
        let first = self.links.get(origin).ok_or_else(|| corrupt("pointer out of range"))?;
        self.at = first >> 8;
        self.left = self.links.len();
        (self.run, self.repeat) = (0, 0);
        self.block_crc = !0;
        Ok(())
    }

    fn block_end(&mut self) -> io::Result<()> {
        if !self.block_crc != self.wanted_crc {
            return Err(corrupt("block checksum mismatch"));
        }
        self.stream_crc = self.stream_crc.rotate_left(1) ^ self.wanted_crc;
        Ok(())
    }
}

impl<R: Read> Read for Bzip2<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < out.len() {
            if self.repeat > 0 {
                self.repeat -= 1;
            } else if self.left > 0 {
                let link = self.links[self.at as usize];
                self.at = link >> 8;
                self.left -= 1;
                let byte = link.to_le_bytes()[0];
                if self.run == 4 {
                    // After four equal bytes comes a count of more.
                    self.repeat = byte;
                    self.run = 0;
                    if self.left == 0 && self.repeat == 0 {
                        self.block_end()?;
                    }
                    continue;
                }
                self.run = if byte == self.last && self.run > 0 { self.run + 1 } else { 1 };
                self.last = byte;
            } else if written > 0 {
                break;
            } else if self.next_block()? {
                continue;
            } else {
                break;
            }
            out[written] = self.last;
            self.block_crc = self.block_crc << 8 ^ CRC[usize::from(self.block_crc.to_be_bytes()[0] ^ self.last)];
            written += 1;
            if self.left == 0 && self.repeat == 0 {
                self.block_end()?;
            }
        }
        Ok(written)
    }
}
