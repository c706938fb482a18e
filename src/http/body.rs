//! Request bodies: one push decoder for Content-Length and chunked, used by the loop and by workers.

use super::{Framing, Refusal};

/// A chunk-size line with its extensions, and the trailer section: bytes.
const MAX_LINE: usize = 4096;
const MAX_TRAILERS: usize = 16 * 1024;

#[derive(Clone, Debug)]
enum State {
    /// Bytes left of a Content-Length body.
    Length(u64),
    ChunkSize,
    /// Bytes left of the current chunk.
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Done,
}

/// Decodes a body that arrives in pieces.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    line: Vec<u8>,
    trailers: usize,
}

/// One step's result: bytes taken from the input, of which `data` (a range of the input) are body.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub consumed: usize,
    pub data: std::ops::Range<usize>,
}

impl Decoder {
    pub fn new(framing: Framing) -> Decoder {
        let state = match framing {
            Framing::None => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::ChunkSize,
        };
        Decoder { state, line: Vec::new(), trailers: 0 }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Decodes the next piece of `input`. A step that consumes nothing wants more input (or the body is done).
    pub fn step(&mut self, input: &[u8]) -> Result<Step, Refusal> {
        match self.state {
            State::Done => Ok(Step { consumed: 0, data: 0..0 }),
            State::Length(left) => {
                let n = take(left, input);
                self.state = if left == n as u64 { State::Done } else { State::Length(left - n as u64) };
                Ok(Step { consumed: n, data: 0..n })
            }
            State::ChunkData(left) => {
                let n = take(left, input);
                self.state = if left == n as u64 { State::ChunkEnd } else { State::ChunkData(left - n as u64) };
                Ok(Step { consumed: n, data: 0..n })
            }
            State::ChunkSize | State::ChunkEnd | State::Trailers => self.line_step(input),
        }
    }

    fn line_step(&mut self, input: &[u8]) -> Result<Step, Refusal> {
        let end = input.iter().position(|b| *b == b'\n');
        let consumed = end.map_or(input.len(), |i| i + 1);
        self.line.extend_from_slice(&input[..consumed]);
        if self.line.len() > MAX_LINE {
            return Err(Refusal::bad("chunk header too long"));
        }
        let step = Step { consumed, data: consumed..consumed };
        if end.is_none() {
            return Ok(step);
        }
        let mut line = std::mem::take(&mut self.line);
        if !line.ends_with(b"\r\n") {
            return Err(Refusal::bad("bare line feed in a chunked body"));
        }
        line.truncate(line.len() - 2);
        self.state = match self.state {
            State::ChunkSize => match chunk_size(&line)? {
                0 => State::Trailers,
                n => State::ChunkData(n),
            },
            State::ChunkEnd if line.is_empty() => State::ChunkSize,
            State::ChunkEnd => return Err(Refusal::bad("chunk longer than its size")),
            State::Trailers if line.is_empty() => State::Done,
            _ => {
                self.trailers += line.len();
                if self.trailers > MAX_TRAILERS {
                    return Err(Refusal::new(431, "trailers too large"));
                }
                State::Trailers
            }
        };
        Ok(step)
    }
}

fn take(left: u64, input: &[u8]) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(input.len())
}

/// The size of a chunk line: hexadecimal digits, then maybe extensions after `;`.
fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Refusal::bad("malformed chunk size"));
    }
    if line.iter().any(|b| *b < 0x20 && *b != b'\t') {
        return Err(Refusal::bad("control byte in a chunk header"));
    }
    let text = str::from_utf8(digits).map_err(|_| Refusal::bad("malformed chunk size"))?;
    u64::from_str_radix(text, 16).map_err(|_| Refusal::bad("malformed chunk size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes all of `input` in pieces of `size`; the body, whether it ended, and what is left over.
    fn decode(input: &[u8], size: usize) -> Result<(Vec<u8>, bool, usize), Refusal> {
        let (mut decoder, mut body, mut at) = (Decoder::new(Framing::Chunked), Vec::new(), 0);
        while at < input.len() && !decoder.is_done() {
            let piece = &input[at..input.len().min(at + size)];
            let step = decoder.step(piece)?;
            body.extend_from_slice(&piece[step.data]);
            at += step.consumed;
        }
        Ok((body, decoder.is_done(), input.len() - at))
    }

    #[test]
    fn chunked_decodes_whatever_the_pieces() {
        let input = b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\nNEXT";
        for size in 1..input.len() {
            assert_eq!(decode(input, size).unwrap(), (b"hello world".to_vec(), true, 4), "{size}");
        }
    }

    #[test]
    fn truncation_is_not_the_end() {
        assert!(!decode(b"5\r\nhel", 99).unwrap().1);
        assert!(!decode(b"0\r\n", 99).unwrap().1);
    }

    #[test]
    fn refuses_malformed_chunks() {
        for bad in ["+5\r\n", "-1\r\n", "5\nhello", "\r\n", "g\r\n", "0x5\r\n", "fffffffffffffffff\r\n", "1\r\nab\r\n", " 5\r\nhello\r\n"] {
            assert!(decode(bad.as_bytes(), 99).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn any_bytes_end_in_a_body_or_a_refusal() {
        let mut seed = 7u64;
        for _ in 0..2000 {
            let mut bytes = b"4\r\nabcd\r\n0\r\n\r\n".to_vec();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = usize::try_from(seed >> 33).unwrap() % bytes.len();
                bytes[at] = (seed >> 24).to_le_bytes()[0];
            }
            let _ = decode(&bytes, 3);
        }
    }
}
