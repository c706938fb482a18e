//! SHA-256 digests: the names of everything content-addressed, and the hashing of streams on their way.

use crate::error::{Error, Result};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

/// A SHA-256 digest; prints and parses as `sha256:` and 64 lower-case hexadecimal digits, the only algorithm accepted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The 64 hexadecimal digits without the algorithm: file names on disk.
    pub fn hex(&self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
            text
        })
    }

    /// The first twelve digits, as messages abbreviate identifiers.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// From exactly 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Digest> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
        }
        Some(Digest(bytes))
    }

    /// Whether the digits start with `prefix` (lower-case hexadecimal, at most 64 digits).
    pub fn has_hex_prefix(&self, prefix: &str) -> bool {
        prefix.len() <= 64
            && prefix.bytes().enumerate().all(|(i, digit)| {
                let byte = self.0[i / 2];
                nibble(digit) == Some(if i % 2 == 0 { byte >> 4 } else { byte & 15 })
            })
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// Refuses with the words of the reference's digest parser.
    fn from_str(text: &str) -> Result<Digest> {
        let Some((algorithm, digits)) = text.split_once(':') else {
            return Err(Error::invalid("invalid checksum digest format"));
        };
        if algorithm != "sha256" {
            return Err(Error::invalid("unsupported digest algorithm"));
        }
        if digits.len() != 64 {
            return Err(Error::invalid("invalid checksum digest length"));
        }
        Digest::from_hex(digits).ok_or_else(|| Error::invalid("invalid checksum digest format"))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The chain id of a stack of layers: the first layer's diff id, then `sha256(chain " " diff)` (OCI image spec, "Layer ChainID").
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chains.push(chain_id(chains.last().copied(), *diff_id));
    }
    chains
}

/// The chain id of `diff_id` on top of `parent`.
pub fn chain_id(parent: Option<Digest>, diff_id: Digest) -> Digest {
    match parent {
        None => diff_id,
        Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
    }
}

/// An incremental SHA-256.
#[derive(Clone)]
pub struct Sha256 {
    context: Context,
}

impl Default for Sha256 {
    fn default() -> Sha256 {
        Sha256::new()
    }
}

impl Sha256 {
    pub fn new() -> Sha256 {
        Sha256 { context: Context::new(&SHA256) }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub fn finish(self) -> Digest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.context.finish().as_ref());
        Digest(bytes)
    }
}

/// Hashes and counts what is read through it.
pub struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    pub fn new(inner: R) -> HashingReader<R> {
        HashingReader { inner, hash: Sha256::new(), count: 0 }
    }

    /// Reads what is left to the end and gives digest and length of everything.
    pub fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.hash.finish(), self.count))
    }

    /// Bytes read so far.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

/// Hashes and counts what is written through it.
pub struct HashingWriter<W> {
    inner: W,
    hash: Sha256,
    count: u64,
}

impl<W: Write> HashingWriter<W> {
    pub fn new(inner: W) -> HashingWriter<W> {
        HashingWriter { inner, hash: Sha256::new(), count: 0 }
    }

    /// The inner writer, with digest and length of what went through.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hash.finish(), self.count)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn prints_and_parses() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.short(), "e3b0c44298fc");
        assert!(digest.has_hex_prefix("e3b0c"));
        assert!(!digest.has_hex_prefix("e3b0d"));
        assert!(!digest.has_hex_prefix("E3"));
    }

    #[test]
    fn refuses_what_is_no_digest() {
        for text in
            ["", "sha256", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e", &EMPTY[..70], &EMPTY.to_uppercase(), &format!("{EMPTY}0")]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn chains_as_the_image_specification_says() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let chains = chain_ids(&[a, b]);
        assert_eq!(chains[0], a);
        assert_eq!(chains[1], Digest::of(format!("{a} {b}").as_bytes()));
    }

    #[test]
    fn streams_hash_as_memory_does() {
        let mut reader = HashingReader::new(&b"hello"[..]);
        let mut two = [0; 2];
        reader.read_exact(&mut two).unwrap();
        assert_eq!(reader.finish().unwrap(), (Digest::of(b"hello"), 5));
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"hello").unwrap();
        assert_eq!(writer.finish(), (b"hello".to_vec(), Digest::of(b"hello"), 5));
    }
}
