//! Streams through the whole pipe: tars built by hand and by tar(1), unpacked in the jail, compared, and written again.

use super::ingest::{Expect, IngestedLayer, ingest_layer};
use super::recipe::reproduce;
use crate::error::Result;
use crate::image::digest::Digest;
use crate::image::scratch::Scratch;
use crate::sys;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A tar built field by field.
#[derive(Default)]
pub(crate) struct Tar(pub Vec<u8>);

/// One header to be; `..Head::default()` is an empty file.
#[derive(Clone)]
pub(crate) struct Head {
    pub name: &'static str,
    pub flag: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: u64,
    pub link: &'static str,
    pub device: (u32, u32),
}

impl Default for Head {
    fn default() -> Head {
        Head { name: "f", flag: b'0', mode: 0o644, uid: 0, gid: 0, size: 0, mtime: 1_600_000_000, link: "", device: (0, 0) }
    }
}

impl Tar {
    pub fn head(mut self, head: &Head) -> Tar {
        let mut block = [0u8; 512];
        block[..head.name.len()].copy_from_slice(head.name.as_bytes());
        let octal = |block: &mut [u8], value: u64| {
            let text = format!("{value:0width$o}\0", width = block.len() - 1);
            block.copy_from_slice(text.as_bytes());
        };
        octal(&mut block[100..108], head.mode.into());
        octal(&mut block[108..116], head.uid.into());
        octal(&mut block[116..124], head.gid.into());
        octal(&mut block[124..136], head.size);
        octal(&mut block[136..148], head.mtime);
        block[156] = head.flag;
        block[157..157 + head.link.len()].copy_from_slice(head.link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], head.device.0.into());
        octal(&mut block[337..345], head.device.1.into());
        self.0.extend(sealed(block));
        self
    }

    pub fn data(mut self, bytes: &[u8]) -> Tar {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &'static str, bytes: &[u8]) -> Tar {
        self.head(&Head { name, size: bytes.len() as u64, ..Head::default() }).data(bytes)
    }

    pub fn dir(self, name: &'static str) -> Tar {
        self.head(&Head { name, flag: b'5', mode: 0o755, ..Head::default() })
    }

    pub fn link(self, flag: u8, name: &'static str, link: &'static str) -> Tar {
        self.head(&Head { name, flag, link, ..Head::default() })
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            body.extend(format!("{length} {key}=").into_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.head(&Head { name: "pax", flag: b'x', size: body.len() as u64, ..Head::default() }).data(&body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// The block with its checksum.
pub(crate) fn sealed(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A directory in which one layer was unpacked.
pub(crate) struct Layer {
    scratch: Scratch,
    fd: OwnedFd,
    pub result: Result<IngestedLayer>,
}

impl Layer {
    pub fn unpack(name: &str, bytes: &[u8]) -> Layer {
        Layer::expecting(name, bytes, &Expect::default())
    }

    pub fn expecting(name: &str, bytes: &[u8], expect: &Expect) -> Layer {
        let scratch = Scratch::new(name);
        let canary = scratch.path().join("canary");
        std::fs::create_dir(&canary).unwrap();
        std::fs::write(canary.join("file"), "untouched").unwrap();
        std::fs::create_dir(scratch.path().join("layer")).unwrap();
        let path = scratch.path().join("layer");
        let fd = sys::fd::open(&sys::cstring(path.to_str().unwrap()).unwrap(), libc::O_DIRECTORY, 0).unwrap();
        let mut source = bytes;
        let result = ingest_layer(&mut source, expect, fd.as_fd(), &mut |_| {});
        assert_eq!(std::fs::read(canary.join("file")).unwrap(), b"untouched");
        assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 2, "something was made outside");
        Layer { scratch, fd, result }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join("layer/diff").join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The stream again, from the recipe.
    pub fn stream(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        reproduce(self.fd.as_fd(), &mut out).map(|_| out)
    }

    /// Unpacked well, and comes back byte for byte.
    pub fn assert_exact(&self, bytes: &[u8]) {
        let layer = self.result.as_ref().unwrap();
        assert_eq!(layer.diff_id, Digest::of(bytes));
        assert_eq!(layer.tar_size, bytes.len() as u64);
        assert!(self.stream().unwrap() == bytes, "the reproduced stream differs");
    }

    pub fn refusal(&self) -> String {
        self.result.as_ref().unwrap_err().message.clone()
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    sys::fs::lgetxattr(&sys::cstring(path.to_str().unwrap()).unwrap(), &sys::cstring(name).unwrap()).ok()
}

fn is_opaque(path: &Path) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

fn is_whiteout(path: &Path) -> bool {
    let meta = std::fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[test]
fn every_kind_of_entry_is_made_and_comes_back() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let bytes = Tar::default()
        .dir("./")
        .head(&Head { name: "d/", flag: b'5', mode: 0o1777, uid: 7, gid: 8, mtime: 1_000_000_000, ..Head::default() })
        .file("d/f", b"hello")
        .head(&Head { name: "d/suid", mode: 0o4755, uid: 1000, gid: 1001, size: 3, ..Head::default() })
        .data(b"abc")
        .link(b'1', "hard", "d/f")
        .link(b'2', "soft", "/etc/passwd")
        .head(&Head { name: "fifo", flag: b'6', mode: 0o640, ..Head::default() })
        .head(&Head { name: "null", flag: b'3', mode: 0o666, device: (1, 3), ..Head::default() })
        .head(&Head { name: "disk", flag: b'4', mode: 0o660, gid: 6, device: (8, 1), ..Head::default() })
        .pax(&[
            ("path", b"implied/deep/file"),
            ("mtime", b"1500000000.123456789"),
            ("SCHILY.xattr.user.note", b"a\0b\n"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("uid", b"3000000"),
        ])
        .file("short", b"data")
        .end();
    let layer = Layer::unpack("archive-kinds", &bytes);
    layer.assert_exact(&bytes);
    assert_eq!(layer.result.as_ref().unwrap().content_size, 5 + 3 + 11 + 4);
    let meta = |name: &str| std::fs::symlink_metadata(layer.path(name)).unwrap();
    let d = meta("d");
    assert_eq!((d.mode() & 0o7777, d.uid(), d.gid(), d.mtime()), (0o1777, 7, 8, 1_000_000_000));
    let suid = meta("d/suid");
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid()), (0o4755, 1000, 1001));
    assert_eq!(meta("hard").ino(), meta("d/f").ino());
    assert_eq!(std::fs::read_link(layer.path("soft")).unwrap(), Path::new("/etc/passwd"));
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!((meta("null").rdev(), meta("null").mode() & 0o777), (libc::makedev(1, 3), 0o666));
    assert_eq!((meta("disk").rdev(), meta("disk").gid()), (libc::makedev(8, 1), 6));
    let deep = meta("implied/deep/file");
    assert_eq!((deep.mtime(), deep.mtime_nsec(), deep.uid()), (1_500_000_000, 123_456_789, 3_000_000));
    assert_eq!(meta("implied").permissions().mode() & 0o7777, 0o755);
    let deep = layer.path("implied/deep/file");
    assert_eq!(xattr(&deep, "user.note").unwrap(), b"a\0b\n");
    assert_eq!(xattr(&deep, "security.capability").unwrap(), capability);
    assert_eq!(xattr(&deep, "trusted.overlay.opaque"), None);
}

#[test]
fn whiteouts_become_overlays_marks() {
    let bytes = Tar::default()
        .dir("d/")
        .file("d/.wh.gone", b"")
        .file("d/.wh..wh..opq", b"")
        .file(".wh.top", b"ignored content")
        .link(b'1', "d/.wh.linked", "d/.wh.gone")
        .file(".wh..wh.plnk", b"")
        // The layer's own directory after its whiteout hides what lies below.
        .file("d/.wh.sub", b"")
        .dir("d/sub/")
        .file("d/sub/f", b"1")
        // And before it.
        .dir("e/")
        .file(".wh.e", b"")
        .file("own", b"kept")
        .file(".wh.own", b"")
        .end();
    let layer = Layer::unpack("archive-whiteouts", &bytes);
    layer.assert_exact(&bytes);
    for name in ["d/gone", "top", "d/linked"] {
        assert!(is_whiteout(&layer.path(name)), "{name}");
    }
    for name in ["d", "d/sub", "e"] {
        assert!(is_opaque(&layer.path(name)), "{name}");
    }
    assert_eq!(layer.read("own"), b"kept");
    assert!(!layer.path(".wh..wh.plnk").exists() && !layer.path(".wh.plnk").exists());
}

#[test]
fn later_entries_replace_earlier_ones_and_the_stream_still_comes_back() {
    let bytes = Tar::default()
        .file("twice", b"first")
        .file("twice", b"second!")
        .file("tree/a", b"in the tree")
        .file("tree/b/c", b"deeper")
        .file("tree", b"now a file")
        .file("file", b"was a file")
        .dir("file/")
        .file("file/x", b"x")
        .file("linked", b"shared")
        .link(b'1', "other", "linked")
        .file("linked", b"alone")
        .link(b'2', "was", "elsewhere")
        .file("was", b"a link")
        .end();
    let layer = Layer::unpack("archive-replace", &bytes);
    layer.assert_exact(&bytes);
    assert_eq!((layer.read("twice"), layer.read("tree"), layer.read("file/x")), (b"second!".into(), b"now a file".into(), b"x".into()));
    assert_eq!((layer.read("linked"), layer.read("other")), (b"alone".into(), b"shared".into()));
    assert_eq!(layer.result.as_ref().unwrap().content_size, 7 + 10 + 1 + 6 + 5 + 6);
}

#[test]
fn links_inside_a_layer_are_followed_inside_it() {
    let bytes = Tar::default()
        .dir("usr/")
        .dir("usr/lib/")
        .link(b'2', "lib", "usr/lib")
        .file("lib/libc.so", b"through the link")
        .link(b'2', "up", "../../../../canary")
        .file("up/file", b"inside, not outside")
        .link(b'2', "abs", "/canary2")
        .dir("canary2/")
        .file("abs/file", b"inside too")
        .end();
    let layer = Layer::unpack("archive-links", &bytes);
    // "up" points at a directory that is not there: it is made inside, as ".." ends at the root.
    layer.assert_exact(&bytes);
    assert_eq!(layer.read("usr/lib/libc.so"), b"through the link");
    assert_eq!(layer.read("canary/file"), b"inside, not outside");
    assert_eq!(layer.read("canary2/file"), b"inside too");
}

#[test]
fn hostile_names_are_refused_in_words() {
    let deep: &'static str = Box::leak("d/".repeat(49).into_boxed_str());
    let long = b"x".repeat(256);
    let endless = b"a/".repeat(600);
    let cases: [(&str, Tar, &str); 14] = [
        ("dotdot", Tar::default().file("../canary/file", b"x"), "\"../canary/file\" is outside of \"/\""),
        ("inner", Tar::default().file("a/../../canary/file", b"x"), "is outside of"),
        ("absolute-dotdot", Tar::default().file("/../canary/file", b"x"), "is outside of"),
        ("hardlink", Tar::default().link(b'1', "l", "../canary/file"), "is outside of"),
        ("hardlink-absent", Tar::default().link(b'1', "l", "nothing"), "link /l: no such file or directory"),
        ("hardlink-link", Tar::default().link(b'2', "s", "/canary").link(b'1', "l", "s/file"), "no such file or directory"),
        ("hardlink-self", Tar::default().file("l", b"x").link(b'1', "l", "l"), "no such file or directory"),
        ("hardlink-root", Tar::default().link(b'1', "l", "/"), "invalid hardlink \"l\" -> \"/\""),
        ("whiteout-dotdot", Tar::default().dir(deep).file(".wh...", b""), "invalid whiteout name"),
        ("whiteout-dot", Tar::default().file(".wh..", b""), "invalid whiteout name"),
        ("whiteout-empty", Tar::default().file(".wh.", b""), "invalid whiteout name"),
        ("name-long", Tar::default().pax(&[("path", &long)]).file("f", b""), "file name too long"),
        ("too-deep", Tar::default().pax(&[("path", &endless)]).file("f", b""), "file name too long"),
        ("parent-file", Tar::default().file("f", b"").file("f/g", b""), "not a directory"),
    ];
    for (name, tar, words) in cases {
        let layer = Layer::unpack(&format!("archive-hostile-{name}"), &tar.end());
        assert!(layer.refusal().contains(words), "{name}: {}", layer.refusal());
    }
    // Absolute names are the layer's own root's, as with the reference.
    let layer = Layer::unpack("archive-absolute", &Tar::default().file("/etc/passwd", b"inside").end());
    assert_eq!(layer.read("etc/passwd"), b"inside");
    // A hard link does not follow a symbolic one.
    let layer = Layer::unpack("archive-hard-soft", &Tar::default().link(b'2', "s", "/canary/file").link(b'1', "l", "s").end());
    assert_eq!(std::fs::read_link(layer.path("l")).unwrap(), Path::new("/canary/file"));
}

#[test]
fn broken_streams_are_refused() {
    let whole = Tar::default().file("a", b"hello").file("b", &[7; 3000]).end();
    assert!(Layer::unpack("archive-cut", &whole[..1024 + 512 + 100]).refusal().contains("unexpected EOF"));
    assert!(Layer::unpack("archive-cut-head", &whole[..1300]).refusal().contains("unexpected EOF"));
    // The end mark may be missing.
    let without_end = &whole[..whole.len() - 1024];
    Layer::unpack("archive-no-end", without_end).assert_exact(without_end);
    let mut damaged = whole.clone();
    damaged[3] ^= 1;
    assert_eq!(Layer::unpack("archive-sum", &damaged).refusal(), "archive/tar: invalid tar header");
    // What trails the end belongs to the stream.
    let mut padded = whole.clone();
    padded.extend([0; 8192]);
    padded.extend(b"and a signature");
    Layer::unpack("archive-trail", &padded).assert_exact(&padded);
    let mut negative = [0u8; 512];
    negative.copy_from_slice(&whole[..512]);
    negative[124..136].copy_from_slice(&[0xff; 12]);
    assert_eq!(Layer::unpack("archive-negative", &sealed(negative)).refusal(), "archive/tar: invalid tar header");
    let mut huge = negative;
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x3f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert!(Layer::unpack("archive-huge", &sealed(huge)).refusal().contains("expands to more than"));
    let flood = Tar::default().head(&Head { name: "x", flag: b'x', size: 4 << 30, ..Head::default() });
    assert_eq!(Layer::unpack("archive-pax-flood", &flood.0).refusal(), "archive/tar: invalid tar header");
    let odd = Tar::default().head(&Head { flag: b'Z', ..Head::default() });
    assert_eq!(Layer::unpack("archive-type", &odd.end()).refusal(), "unhandled tar header type 90");
}

#[test]
fn bombs_stop_at_the_bounds() {
    let limits = super::reader::Limits { stream_bytes: 100_000, entries: 10 };
    let expect = Expect { limits, ..Expect::default() };
    let mut gzip = super::compress::Gzip::new(Vec::new());
    gzip.write_all(&Tar::default().head(&Head { size: 90_000, ..Head::default() }).0).unwrap();
    for _ in 0..1000 {
        gzip.write_all(&[0; 1000]).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < 10_000);
    let layer = Layer::expecting("archive-bomb", &bomb, &expect);
    assert_eq!(layer.refusal(), "archive expands to more than 100000 bytes");
    let many = (0..11).fold(Tar::default(), |tar, _| tar.file("f", b"")).end();
    assert_eq!(Layer::expecting("archive-entries", &many, &expect).refusal(), "archive has more than 10 entries");
    // Two exabytes, but a hole.
    let hole = Tar::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"hole"),
            ("GNU.sparse.realsize", b"4398046511104"),
        ])
        .file("x", &[b"1\n4398046510080\n512\n".as_slice(), &[0; 492], &[5; 512]].concat())
        .end();
    let layer = Layer::expecting("archive-hole", &hole, &expect);
    layer.assert_exact(&hole);
    let meta = std::fs::metadata(layer.path("hole")).unwrap();
    assert!(meta.len() == 4_398_046_511_104 && meta.blocks() < 64);
}

#[test]
fn zeros_become_holes_and_come_back_as_zeros() {
    let mut content = vec![0u8; 1 << 20];
    content[300_000] = 1;
    content.extend([2; 100_000]);
    content.extend(vec![0; 777_777]);
    let bytes = Tar::default().file("zeros", &content).file("more", &content[1..]).end();
    let layer = Layer::unpack("archive-zeros", &bytes);
    layer.assert_exact(&bytes);
    assert!(layer.read("zeros") == content && layer.read("more") == content[1..]);
    let meta = std::fs::metadata(layer.path("zeros")).unwrap();
    assert!(meta.blocks() * 512 < 500_000, "{} blocks", meta.blocks());
}

#[test]
fn what_was_promised_is_checked() {
    let plain = Tar::default().file("a", b"hello").end();
    let mut gzip = super::compress::Gzip::new(Vec::new());
    gzip.write_all(&plain).unwrap();
    let packed = gzip.finish().unwrap();
    let right = Expect {
        compressed_digest: Some(Digest::of(&packed)),
        compressed_size: Some(packed.len() as u64),
        diff_id: Some(Digest::of(&plain)),
        ..Expect::default()
    };
    let layer = Layer::expecting("archive-promise", &packed, &right);
    layer.assert_exact(&plain);
    assert_eq!(layer.result.as_ref().unwrap().compressed_size, packed.len() as u64);
    let other = Digest::of(b"other");
    let wrong = Expect { compressed_digest: Some(other), ..right };
    assert!(Layer::expecting("archive-wrong-blob", &packed, &wrong).refusal().contains("verification failed for digest"));
    let wrong = Expect { diff_id: Some(other), ..right };
    assert!(Layer::expecting("archive-wrong-diff", &packed, &wrong).refusal().contains("invalid diffID"));
    let wrong = Expect { compressed_size: Some(packed.len() as u64 - 1), ..right };
    assert!(Layer::expecting("archive-wrong-less", &packed, &wrong).refusal().contains("larger than its descriptor"));
    let wrong = Expect { compressed_size: Some(packed.len() as u64 + 1), ..right };
    assert_eq!(Layer::expecting("archive-wrong-more", &packed, &wrong).refusal(), "unexpected EOF");
}

#[test]
fn a_damaged_layer_is_noticed() {
    let bytes = Tar::default().file("a", b"hello").file("b", b"world").end();
    let layer = Layer::unpack("archive-damage", &bytes);
    std::fs::write(layer.path("b"), b"WORLD").unwrap();
    assert_eq!(layer.stream().unwrap_err().message, "layer content has changed: /b");
    std::fs::write(layer.path("b"), b"longer").unwrap();
    assert_eq!(layer.stream().unwrap_err().message, "layer content has changed: /b");
    let recipe = layer.path("../recipe");
    let mut torn = std::fs::read(&recipe).unwrap();
    torn.truncate(torn.len() - 3);
    std::fs::write(&recipe, torn).unwrap();
    assert_eq!(layer.stream().unwrap_err().message, "layer recipe is damaged");
}

/// A tree with everything that tar(1) can carry.
fn rich_tree(root: &Path) {
    let long = "n".repeat(120);
    std::fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    std::fs::write(root.join(&long).join(&long).join("file"), b"long way").unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
    std::fs::write(root.join("big"), vec![42; 700_000]).unwrap();
    std::fs::hard_link(root.join("big"), root.join("big2")).unwrap();
    std::os::unix::fs::symlink("t".repeat(180), root.join("link")).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    for i in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", i * 1_000_000).unwrap();
    }
    sparse.set_len(50_000_000).unwrap();
    std::fs::set_permissions(root.join("empty"), std::fs::Permissions::from_mode(0o2711)).unwrap();
    std::os::unix::fs::chown(root.join("big"), Some(2_500_000), Some(70_000)).unwrap();
}

#[test]
fn reads_what_tar_writes_in_every_format() {
    let scratch = Scratch::new("archive-tar-formats");
    let root = scratch.path().join("tree");
    std::fs::create_dir(&root).unwrap();
    rich_tree(&root);
    let pax = ["--format=pax", "--sparse"];
    let formats: [(&str, &[&str]); 6] = [
        ("gnu", &["--format=gnu"]),
        ("gnu-sparse", &["--format=gnu", "--sparse"]),
        ("pax", &["--format=pax", "--xattrs"]),
        ("sparse00", &[pax[0], pax[1], "--sparse-version=0.0"]),
        ("sparse01", &[pax[0], pax[1], "--sparse-version=0.1"]),
        ("sparse10", &[pax[0], pax[1], "--sparse-version=1.0"]),
    ];
    for (name, args) in formats {
        let out = Command::new("tar").args(args).arg("-C").arg(&root).args(["-cf", "-", "."]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let layer = Layer::unpack(&format!("archive-format-{name}"), &out.stdout);
        layer.assert_exact(&out.stdout);
        // tar's own comparison of contents, owners, modes, times and links.
        let mut compare =
            Command::new("tar").args(["-d", "-C"]).arg(layer.path("")).args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        compare.stdin.take().unwrap().write_all(&out.stdout).unwrap();
        assert!(compare.wait().unwrap().success(), "{name}");
        let sparse = std::fs::metadata(layer.path("sparse")).unwrap();
        // Holes that were written out as zeros are holes again, in larger blocks.
        assert!(sparse.blocks() < if name.contains("sparse") { 2000 } else { 40 * 128 + 100 }, "{name}: {} blocks", sparse.blocks());
        let mtime = std::fs::metadata(root.join("empty")).unwrap();
        if name == "pax" {
            let copy = std::fs::metadata(layer.path("empty")).unwrap();
            assert_eq!((copy.mtime(), copy.mtime_nsec()), (mtime.mtime(), mtime.mtime_nsec()));
        }
    }
}

#[test]
fn fuzz_tars_never_hang_crash_or_escape() {
    let seed_tar = Tar::default()
        .dir("d/")
        .file("d/f", b"hello")
        .pax(&[("path", b"p/q"), ("mtime", b"1.5"), ("GNU.sparse.map", b"0,5"), ("GNU.sparse.size", b"5")])
        .file("s", b"12345")
        .link(b'1', "h", "d/f")
        .link(b'2', "l", "../x")
        .file("d/.wh.x", b"")
        .end();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let started = std::time::Instant::now();
    let seconds: u64 = std::env::var("CORACLE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2);
    let mut accepted = 0;
    for round in 0u64.. {
        if started.elapsed().as_secs() >= seconds {
            break;
        }
        let mut bytes = seed_tar.clone();
        for _ in 0..1 + random() % 6 {
            let at = usize::try_from(random()).unwrap_or(0) % bytes.len();
            match random() % 4 {
                0 => bytes[at] = random().to_le_bytes()[0],
                1 => bytes[at] ^= 1 << (random() % 8),
                2 => bytes.truncate(at.max(512)),
                _ => {
                    let piece = bytes[at..(at + 700).min(bytes.len())].to_vec();
                    bytes.extend(piece);
                }
            }
        }
        // Sound checksums, so that the damage gets past them.
        if round % 3 != 0 {
            for block in bytes.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    let fixed = sealed(block.try_into().unwrap());
                    block.copy_from_slice(&fixed);
                }
            }
        }
        let layer = Layer::unpack("archive-fuzz", &bytes);
        if layer.result.is_ok() {
            layer.assert_exact(&bytes);
            accepted += 1;
        }
    }
    assert!(accepted > 0);
}

#[test]
fn a_source_that_fails_leaves_no_layer() {
    struct Broken(u32);
    impl Read for Broken {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 3 { Err(std::io::Error::from_raw_os_error(libc::ECONNRESET)) } else { Ok(out.len().min(10)) }
        }
    }
    let scratch = Scratch::new("archive-source");
    let error = ingest_layer(&mut Broken(0), &Expect::default(), scratch.fd().as_fd(), &mut |_| {}).unwrap_err();
    assert_eq!(error.message, "read archive: connection reset by peer");
}
