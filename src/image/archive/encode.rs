//! Header blocks as the reference's writer lays them out: POSIX ustar where everything fits, PAX records before it where
//! something does not, sparse files as GNU's PAX 1.0.

use super::header::{BLOCK, Kind, Time};
use crate::error::{Error, Result};

/// What one entry says.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    pub kind: Kind,
    /// Relative; directories end with "/".
    pub path: &'a [u8],
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Size of the file as a reader sees it, in bytes.
    pub size: u64,
    pub mtime: Time,
    pub device: (u32, u32),
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// Data regions, when the file is written as sparse.
    pub sparse: Option<&'a [(u64, u64)]>,
}

impl Item<'_> {
    /// A regular file of `size` bytes, mode 0644, owned by root.
    pub fn file(path: &[u8], size: u64, mtime: Time) -> Item<'_> {
        Item { kind: Kind::File, path, link: b"", mode: 0o644, uid: 0, gid: 0, size, mtime, device: (0, 0), xattrs: &[], sparse: None }
    }

    /// A directory, mode 0755, owned by root; `path` ends with "/".
    pub fn directory(path: &[u8], mtime: Time) -> Item<'_> {
        Item { kind: Kind::Directory, mode: 0o755, ..Item::file(path, 0, mtime) }
    }
}

/// The largest number of an octal field of `width` bytes, the last of which is NUL.
const fn octal_max(width: usize) -> u64 {
    (1 << (3 * (width - 1))) - 1
}

/// A checksummed block in the making.
struct Block([u8; BLOCK]);

impl Block {
    fn new(flag: u8) -> Block {
        let mut block = [0; BLOCK];
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        Block(block)
    }

    fn text(&mut self, at: usize, width: usize, text: &[u8]) {
        let length = text.len().min(width);
        self.0[at..at + length].copy_from_slice(&text[..length]);
    }

    fn octal(&mut self, at: usize, width: usize, mut value: u64) {
        for digit in self.0[at..at + width - 1].iter_mut().rev() {
            *digit = b'0' + (value & 7).to_le_bytes()[0];
            value >>= 3;
        }
    }

    fn sealed(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.octal(148, 7, sum.into());
        self.0[154] = 0;
        self.0
    }
}

/// The header blocks of an entry, and how many bytes of content follow them.
pub fn encode(item: &Item) -> Result<(Vec<u8>, u64)> {
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut put = |key: &[u8], value: &[u8]| records.push((key.to_vec(), value.to_vec()));
    let map = item.sparse.map(|regions| sparse_map(regions, item.size));
    let stored = item.sparse.map_or(item.size, |regions| regions.iter().map(|r| r.1).sum());
    let size = stored + map.as_ref().map_or(0, Vec::len) as u64;
    let sparse_path = item.sparse.map(|_| beside(item.path, b"GNUSparseFile.0"));
    let path = sparse_path.as_deref().unwrap_or(item.path);
    let (prefix, name) = match split(path) {
        Some(parts) => parts,
        None => {
            put(b"path", path);
            (&[][..], path)
        }
    };
    if item.link.len() > 100 || !item.link.is_ascii() {
        put(b"linkpath", item.link);
    }
    for (key, value, width) in [(&b"uid"[..], u64::from(item.uid), 8), (b"gid", u64::from(item.gid), 8), (b"size", size, 12)] {
        if value > octal_max(width) {
            put(key, value.to_string().as_bytes());
        }
    }
    let seconds = u64::try_from(item.mtime.seconds).ok().filter(|s| *s <= octal_max(12));
    if seconds.is_none() || item.mtime.nanoseconds > 0 {
        put(b"mtime", decimal(item.mtime).as_bytes());
    }
    if item.sparse.is_some() {
        put(b"GNU.sparse.major", b"1");
        put(b"GNU.sparse.minor", b"0");
        put(b"GNU.sparse.name", item.path);
        put(b"GNU.sparse.realsize", item.size.to_string().as_bytes());
    }
    for (key, value) in item.xattrs {
        put(&[b"SCHILY.xattr.", key.as_slice()].concat(), value);
    }
    let (major, minor) = (u64::from(item.device.0), u64::from(item.device.1));
    if major > octal_max(8) || minor > octal_max(8) {
        return Err(Error::system(format!("archive/tar: cannot encode header: device {major}:{minor}")));
    }
    let flag = match item.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    let mut blocks = if records.is_empty() { Vec::new() } else { extended(path, &mut records) };
    let mut block = Block::new(flag);
    block.text(0, 100, &ascii(name));
    block.text(345, 155, prefix);
    block.octal(100, 8, (item.mode & 0o7777).into());
    block.octal(108, 8, u64::from(item.uid).min(octal_max(8)));
    block.octal(116, 8, u64::from(item.gid).min(octal_max(8)));
    block.octal(124, 12, if size > octal_max(12) { 0 } else { size });
    block.octal(136, 12, seconds.unwrap_or(0));
    block.text(157, 100, &ascii(item.link));
    block.octal(329, 8, major);
    block.octal(337, 8, minor);
    blocks.extend(block.sealed());
    blocks.extend(map.unwrap_or_default());
    Ok((blocks, stored))
}

/// A path as prefix and name of a ustar header; `None` when it does not fit or is not ASCII.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= 100 {
        return Some((&[], path));
    }
    // The last slash that leaves a prefix of at most 155 bytes; a directory's own last slash does not divide.
    let slash = path[..path.len() - 1].iter().take(156).rposition(|b| *b == b'/')?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (!prefix.is_empty() && !name.is_empty() && name.len() <= 100).then_some((prefix, name))
}

/// What old readers see of a name that PAX carries: its ASCII bytes.
fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii).collect()
}

/// "a/b" with a directory between: "a/NAME/b".
fn beside(path: &[u8], name: &[u8]) -> Vec<u8> {
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    match trimmed.iter().rposition(|b| *b == b'/') {
        Some(slash) => [&trimmed[..slash], b"/", name, b"/", &trimmed[slash + 1..]].concat(),
        None => [name, b"/", trimmed].concat(),
    }
}

/// Seconds with as many decimals as needed; the fraction counts away from zero.
fn decimal(time: Time) -> String {
    if time.nanoseconds == 0 {
        return time.seconds.to_string();
    }
    let (sign, seconds, nanoseconds) = if time.seconds < 0 {
        ("-", (time.seconds + 1).unsigned_abs(), 1_000_000_000 - time.nanoseconds)
    } else {
        ("", time.seconds.unsigned_abs(), time.nanoseconds)
    };
    format!("{sign}{seconds}.{nanoseconds:09}").trim_end_matches('0').to_owned()
}

/// An extended header with its records, sorted by key as the reference does.
fn extended(path: &[u8], records: &mut [(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    records.sort();
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + digits(rest);
        if digits(length) != digits(rest) {
            length = rest + digits(length);
        }
        body.extend(format!("{length} ").into_bytes());
        body.extend_from_slice(key);
        body.push(b'=');
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    let mut block = Block::new(b'x');
    let name = ascii(&beside(path, b"PaxHeaders.0"));
    block.text(0, 100, name.get(..100).unwrap_or(&name));
    for (at, width) in [(100, 8), (108, 8), (116, 8), (136, 12), (329, 8), (337, 8)] {
        block.octal(at, width, 0);
    }
    block.octal(124, 12, body.len() as u64);
    let mut blocks = block.sealed().to_vec();
    blocks.extend(body);
    blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
    blocks
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// The map that stands before a sparse file's data, in whole blocks. As GNU tar does, a last empty region marks the end.
fn sparse_map(regions: &[(u64, u64)], size: u64) -> Vec<u8> {
    let trailing = regions.last().is_none_or(|(offset, length)| offset + length < size);
    let mut text = format!("{}\n", regions.len() + usize::from(trailing));
    for (offset, length) in regions.iter().copied().chain(trailing.then_some((size, 0))) {
        text.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

#[cfg(test)]
mod tests {
    use super::super::reader::{Limits, Reader};
    use super::*;

    fn there_and_back(item: &Item) -> super::super::header::Entry {
        let (mut bytes, stored) = encode(item).unwrap();
        bytes.resize(bytes.len() + usize::try_from(stored).unwrap().next_multiple_of(BLOCK) + 1024, 0);
        Reader::new(bytes.as_slice(), Limits { stream_bytes: 1 << 40, entries: 9 }).next(&mut ()).unwrap().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let long = [b"d".repeat(150), b"/".to_vec(), b"f".repeat(99)].concat();
        let longer = b"x".repeat(250);
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
        let xattrs = [(b"user.a".to_vec(), b"b\n\0c".to_vec())];
        let regions = [(4096, 512), (1 << 33, 100)];
        let base = Item::file(b"a/b", 3, time(1_600_000_000, 0));
        let items = [
            base.clone(),
            Item { path: &long, ..base.clone() },
            Item { path: &longer, mtime: time(-2, 750_000_000), ..base.clone() },
            Item { path: "ü/ß".as_bytes(), mtime: time(-1, 0), uid: 3_000_000, gid: 4_294_967_294, ..base.clone() },
            Item { kind: Kind::Symlink, link: &longer, size: 0, mtime: time(1, 5), ..base.clone() },
            Item { kind: Kind::CharDevice, device: (1, 2_000_000), size: 0, mode: 0o4755, ..base.clone() },
            Item { kind: Kind::Directory, path: b"d/", size: 0, xattrs: &xattrs, ..base.clone() },
            Item { size: 1 << 34, sparse: Some(&regions), ..base.clone() },
        ];
        for item in items {
            let entry = there_and_back(&item);
            assert_eq!((entry.kind, entry.path.as_slice(), entry.link.as_slice()), (item.kind, item.path, item.link));
            assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (item.mode, item.uid, item.gid, item.mtime));
            assert_eq!((entry.size, entry.device, entry.xattrs.as_slice()), (item.size, item.device, item.xattrs));
            assert_eq!(entry.sparse.as_deref(), item.sparse);
        }
    }

    #[test]
    fn plain_entries_need_one_block() {
        let (bytes, _) = encode(&Item::file(&b"d/".repeat(100), 0, Time { seconds: 1, nanoseconds: 0 })).unwrap();
        assert_eq!(bytes.len(), 512);
        let (bytes, _) = encode(&Item::file(&b"d".repeat(101), 0, Time::default())).unwrap();
        assert_eq!(bytes.len(), 512 * 3);
        assert_eq!(bytes[156], b'x');
    }

    #[test]
    fn record_lengths_count_themselves() {
        // 99 bytes with a two-digit length would be 100 with three.
        for length in 85..100 {
            let blocks = extended(b"p", &mut [(b"k".to_vec(), vec![b'v'; length])]);
            let mut extensions = super::super::header::Extensions::default();
            let size = usize::try_from(super::super::header::size(&blocks[124..136]).unwrap()).unwrap();
            extensions.pax(&blocks[512..512 + size]).unwrap();
        }
    }
}
