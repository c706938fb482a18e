//! One tar header block and the extended records that may precede it: bytes in, checked fields out.
//!
//! Formats: v7, ustar (POSIX.1-1988), PAX (POSIX.1-2001), GNU. Layout by the `tar` crate's header types; numbers by our
//! own strict parser, because sizes decide how much is written. Go's archive/tar, the reference's parser, is the model
//! for what is accepted.

use crate::error::{Error, Result};

/// Bytes of a tar block.
pub const BLOCK: usize = 512;
/// Longest path and link target, in bytes (PATH_MAX).
pub const PATH_MAX: usize = 4096;
/// Longest component of a path, in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;

/// Most extended attributes of one entry.
const XATTRS_MAX: usize = 1024;

/// What a tar entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    /// A second name of an earlier file; its target is a path from the archive's root.
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Seconds and nanoseconds since 1970; seconds may be negative, nanoseconds are 0..1e9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// One entry, all its header records taken together.
#[derive(Clone, Debug)]
pub struct Entry {
    pub kind: Kind,
    /// As written in the archive: may be absolute or hold ".."; ends with "/" for many directories.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Only when the archive says it.
    pub atime: Option<Time>,
    /// Size of the file as a reader sees it, holes included, in bytes.
    pub size: u64,
    /// Major and minor of a device.
    pub device: (u32, u32),
    /// Extended attributes (PAX `SCHILY.xattr.`), in the archive's order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The data regions of a sparse file: offset and length, ascending, not overlapping.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Go's words for whatever is wrong with a header.
pub(crate) fn invalid_header() -> Error {
    Error::invalid("archive/tar: invalid tar header")
}

/// The text of a field: up to its first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number field: octal text, or base-256 when the first bit is set (GNU). Overflow is refused.
pub(crate) fn number(field: &[u8]) -> Result<i64> {
    let Some(first) = field.first() else { return Err(invalid_header()) };
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let digit = match (i, negative) {
                (0, false) => byte & 0x3f,
                (0, true) => byte | 0xc0,
                _ => *byte,
            };
            if i == 0 {
                // The first byte carries six bits and the sign.
                value = if negative { i64::from(digit.cast_signed()) } else { i64::from(digit) };
                continue;
            }
            value = value.checked_mul(256).and_then(|v| v.checked_add(i64::from(digit))).ok_or_else(invalid_header)?;
        }
        return Ok(value);
    }
    let digits = field.iter().skip_while(|b| matches!(b, b' ' | 0));
    let mut value: i64 = 0;
    let mut ended = false;
    for byte in digits {
        match byte {
            b'0'..=b'7' if !ended => {
                value = value.checked_mul(8).and_then(|v| v.checked_add(i64::from(byte - b'0'))).ok_or_else(invalid_header)?;
            }
            b' ' | 0 => ended = true,
            _ => return Err(invalid_header()),
        }
    }
    Ok(value)
}

/// As [`number`], refusing what is negative.
pub(crate) fn size(field: &[u8]) -> Result<u64> {
    u64::try_from(number(field)?).map_err(|_| invalid_header())
}

/// An owner: 0 to 2^32 - 2.
fn id(value: i64) -> Result<u32> {
    u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or_else(invalid_header)
}

/// Refuses a block whose checksum is wrong; both the signed and the unsigned sum are accepted, as by everyone.
pub(crate) fn verify_checksum(block: &[u8; BLOCK]) -> Result<()> {
    let wanted = number(&block[148..156])?;
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (i, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&i) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    if wanted == unsigned || wanted == signed { Ok(()) } else { Err(invalid_header()) }
}

/// Records that precede a header: PAX `x`, GNU `L` and `K`.
#[derive(Default)]
pub(crate) struct Extensions {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    atime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: SparseRecords,
}

/// The `GNU.sparse.*` records.
#[derive(Default)]
pub(crate) struct SparseRecords {
    pub major: Vec<u8>,
    pub minor: Vec<u8>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub block_count: Option<u64>,
    /// Comma-separated numbers of 0.0 (collected) and 0.1: offset, length, offset, length …
    pub map: Vec<u64>,
    pub seen: bool,
}

fn decimal(value: &[u8]) -> Result<i64> {
    std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).ok_or_else(invalid_header)
}

fn positive(value: &[u8]) -> Result<u64> {
    u64::try_from(decimal(value)?).map_err(|_| invalid_header())
}

/// A PAX time: decimal seconds with an optional fraction, which counts away from zero.
fn time(value: &[u8]) -> Result<Time> {
    let mut parts = value.splitn(2, |b| *b == b'.');
    let whole = parts.next().unwrap_or_default();
    let negative = whole.first() == Some(&b'-');
    let seconds = decimal(whole)?;
    let mut nanoseconds: u32 = 0;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(invalid_header());
    }
    for i in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(i).map_or(0, |d| d - b'0'));
    }
    if negative && nanoseconds > 0 {
        let seconds = seconds.checked_sub(1).ok_or_else(invalid_header)?;
        return Ok(Time { seconds, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Ok(Time { seconds, nanoseconds })
}

impl Extensions {
    /// The body of a PAX extended header: "length key=value\n" records.
    pub fn pax(&mut self, mut body: &[u8]) -> Result<()> {
        while !body.is_empty() {
            let space = body.iter().take(20).position(|b| *b == b' ').ok_or_else(invalid_header)?;
            let length = usize::try_from(positive(&body[..space])?).map_err(|_| invalid_header())?;
            if length < space + 4 || length > body.len() || body[length - 1] != b'\n' {
                return Err(invalid_header());
            }
            let record = &body[space + 1..length - 1];
            body = &body[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(invalid_header)?;
            self.record(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if key.is_empty() || key.contains(&0) {
            return Err(invalid_header());
        }
        if matches!(key, b"path" | b"linkpath" | b"uname" | b"gname") && value.contains(&0) {
            return Err(invalid_header());
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if !name.is_empty() {
                self.xattrs.retain(|(n, _)| n != name);
                if self.xattrs.len() >= XATTRS_MAX {
                    return Err(invalid_header());
                }
                self.xattrs.push((name.to_vec(), value.to_vec()));
            }
            return Ok(());
        }
        if value.is_empty() {
            // POSIX: an empty value undoes the record; what remains is the header's own field.
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(positive(value)?),
            b"uid" => self.uid = Some(id(decimal(value)?)?),
            b"gid" => self.gid = Some(id(decimal(value)?)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"atime" => self.atime = Some(time(value)?),
            _ => return self.sparse.record(key, value),
        }
        Ok(())
    }
}

impl SparseRecords {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else { return Ok(()) };
        self.seen = true;
        match key {
            b"major" => self.major = value.to_vec(),
            b"minor" => self.minor = value.to_vec(),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(positive(value)?),
            b"numblocks" => self.block_count = Some(positive(value)?),
            // 0.0 repeats these two for each region, offset first.
            b"offset" if self.map.len().is_multiple_of(2) => self.map.push(positive(value)?),
            b"numbytes" if !self.map.len().is_multiple_of(2) => self.map.push(positive(value)?),
            b"offset" | b"numbytes" => return Err(invalid_header()),
            b"map" => self.map = value.split(|b| *b == b',').map(positive).collect::<Result<_>>()?,
            _ => {}
        }
        Ok(())
    }
}

/// Joins a header block with what preceded it. Sparse maps are the caller's to read (they may stand in the data).
pub(crate) fn entry(block: &[u8; BLOCK], extensions: &mut Extensions) -> Result<(Entry, u8)> {
    let header = tar::Header::from_byte_slice(block);
    let old = header.as_old();
    let mut flag = old.linkflag[0];
    let ustar = header.as_ustar();
    let gnu = header.as_gnu();
    let mut path = text(&old.name).to_vec();
    if let Some(ustar) = ustar {
        let prefix = text(&ustar.prefix);
        if !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
    }
    let path = extensions.sparse.name.take().or(extensions.path.take()).unwrap_or(path);
    let link = extensions.link.take().unwrap_or_else(|| text(&old.linkname).to_vec());
    if flag == 0 && path.last() == Some(&b'/') {
        flag = b'5';
    }
    let kind = match flag {
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(Error::invalid(format!("unhandled tar header type {other}"))),
    };
    let device = match (kind, ustar, gnu) {
        (Kind::CharDevice | Kind::BlockDevice, Some(u), _) => (device(&u.dev_major)?, device(&u.dev_minor)?),
        (Kind::CharDevice | Kind::BlockDevice, _, Some(g)) => (device(&g.dev_major)?, device(&g.dev_minor)?),
        _ => (0, 0),
    };
    if path.len() > PATH_MAX || link.len() > PATH_MAX || path.contains(&0) || link.contains(&0) {
        return Err(invalid_header());
    }
    let stored = extensions.size.map_or_else(|| size(&old.size), Ok)?;
    let own_mtime = || number(&old.mtime).map(|seconds| Time { seconds, nanoseconds: 0 });
    let entry = Entry {
        kind,
        path,
        link,
        mode: u32::try_from(number(&old.mode)? & 0o7777).map_err(|_| invalid_header())?,
        uid: extensions.uid.map_or_else(|| number(&old.uid).and_then(id), Ok)?,
        gid: extensions.gid.map_or_else(|| number(&old.gid).and_then(id), Ok)?,
        mtime: extensions.mtime.map_or_else(own_mtime, Ok)?,
        atime: extensions.atime,
        size: if kind == Kind::File { stored } else { 0 },
        device,
        xattrs: std::mem::take(&mut extensions.xattrs),
        sparse: None,
    };
    Ok((entry, flag))
}

fn device(field: &[u8]) -> Result<u32> {
    u32::try_from(number(field)?).map_err(|_| invalid_header())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"  644 \0 ").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]).unwrap(), -2);
        assert!(number(&[0x80, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(number(b"12x\0").is_err());
        assert!(number(b"-1\0").is_err());
        assert!(size(&[0xff; 12]).is_err());
        assert!(number(b"7777777777777777777777777").is_err());
    }

    #[test]
    fn pax_records_are_bounded_by_their_own_length() {
        let mut extensions = Extensions::default();
        extensions.pax(b"12 path=abc\n19 mtime=-1.250000\n").unwrap();
        assert_eq!(extensions.path.as_deref(), Some(&b"abc"[..]));
        assert_eq!(extensions.mtime, Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        for bad in [&b"13 path=abc\n"[..], b"11 path=abc\n", b"x path=abc\n", b"99999999999999999999 a=b\n", b"-5 a=b\n", b"6 a=b"] {
            assert!(Extensions::default().pax(bad).is_err(), "{bad:?}");
        }
        assert!(Extensions::default().pax(b"11 size=-1\n").is_err());
        assert!(Extensions::default().pax(b"12 path=a\0c\n").is_err());
    }

    #[test]
    fn pax_attributes_may_hold_any_byte() {
        let mut extensions = Extensions::default();
        extensions.pax(b"27 SCHILY.xattr.user.a=\0\n=\n").unwrap();
        assert_eq!(extensions.xattrs, vec![(b"user.a".to_vec(), b"\0\n=".to_vec())]);
    }
}
