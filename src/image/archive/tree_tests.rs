//! Trees to streams and back: what an overlay's upper directory becomes, what a copy out holds, what `diff` says.

use super::changes::{ChangeKind, changes, size_of};
use super::ingest::{Expect, ingest_layer, layer_from_upper};
use super::jail::{self, Policy, Root};
use super::recipe::reproduce;
use super::write::{Options, Writer};
use super::{apply, decompress};
use crate::image::digest::Digest;
use crate::image::scratch::Scratch;
use crate::sys;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

fn open(path: &Path) -> OwnedFd {
    sys::fd::open(&sys::cstring(path.to_str().unwrap()).unwrap(), libc::O_DIRECTORY, 0).unwrap()
}

fn whiteout(path: &Path) {
    sys::fs::mknodat(sys::fd::AT_FDCWD, &sys::cstring(path.to_str().unwrap()).unwrap(), libc::S_IFCHR, 0).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    sys::fs::lsetxattr(&sys::cstring(path.to_str().unwrap()).unwrap(), &sys::cstring(name).unwrap(), value, 0).unwrap();
}

/// An upper directory as a busy container leaves it.
fn upper(root: &Path) {
    std::fs::create_dir_all(root.join("etc/app")).unwrap();
    std::fs::write(root.join("etc/app/config"), "x=1\n").unwrap();
    std::fs::hard_link(root.join("etc/app/config"), root.join("etc/copy")).unwrap();
    symlink("app/config", root.join("etc/link")).unwrap();
    whiteout(&root.join("etc/passwd"));
    // Overlay links all its whiteouts to one inode.
    std::fs::hard_link(root.join("etc/passwd"), root.join("gone")).unwrap();
    set_xattr(&root.join("etc/app"), "trusted.overlay.opaque", b"y");
    set_xattr(&root.join("etc"), "trusted.overlay.impure", b"y");
    set_xattr(&root.join("etc/app/config"), "user.origin", b"test");
    set_xattr(&root.join("etc/app/config"), "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    std::fs::write(root.join("suid"), "#!").unwrap();
    std::os::unix::fs::chown(root.join("suid"), Some(12), Some(34)).unwrap();
    std::fs::set_permissions(root.join("suid"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 2_000_000_000).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    std::fs::write(root.join("ünï".to_owned() + &"x".repeat(140)), "long").unwrap();
}

#[test]
fn an_upper_directory_becomes_a_layer_and_travels() {
    let scratch = Scratch::new("archive-upper");
    let layer = scratch.path().join("layer");
    std::fs::create_dir_all(layer.join("diff")).unwrap();
    upper(&layer.join("diff"));
    let fd = open(&layer);
    let made = layer_from_upper(fd.as_fd()).unwrap();
    let mut stream = Vec::new();
    let again = reproduce(fd.as_fd(), &mut stream).unwrap();
    assert_eq!((again.diff_id, again.size), (made.diff_id, made.tar_size));
    assert_eq!(Digest::of(&stream), made.diff_id);
    assert!(stream.len() < 100_000, "the hole was written out: {}", stream.len());
    assert_eq!(made.content_size, 4 + 10 + 2 + 2_000_000_003 + 4);
    // Elsewhere: the same upper.
    let other = scratch.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let other_fd = open(&other);
    let loaded = ingest_layer(&mut stream.as_slice(), &Expect::default(), other_fd.as_fd(), &mut |_| {}).unwrap();
    assert_eq!((loaded.diff_id, loaded.content_size), (made.diff_id, made.content_size));
    let compared = changes(open(&other.join("diff")).as_fd(), &[open(&layer.join("diff")).as_fd()]).unwrap();
    // Overlay's marks hide what is equal; everything else is equal but the socket, which stays behind.
    let differences: Vec<_> = compared.iter().filter(|c| c.kind != ChangeKind::Deleted).collect();
    assert!(differences.is_empty(), "{differences:?}");
    let config = other.join("diff/etc/app/config");
    assert_eq!(std::fs::metadata(&config).unwrap().ino(), std::fs::metadata(other.join("diff/etc/copy")).unwrap().ino());
    let name = |path: &Path| sys::cstring(path.to_str().unwrap()).unwrap();
    assert_eq!(sys::fs::lgetxattr(&name(&config), c"user.origin").unwrap(), b"test");
    assert_eq!(sys::fs::lgetxattr(&name(&config), c"security.capability").unwrap().len(), 20);
    assert_eq!(sys::fs::lgetxattr(&name(&other.join("diff/etc/app")), c"trusted.overlay.opaque").unwrap(), b"y");
    assert!(sys::fs::lgetxattr(&name(&other.join("diff/etc")), c"trusted.overlay.impure").is_err());
    for path in ["etc/passwd", "gone"] {
        assert_eq!(std::fs::symlink_metadata(other.join("diff").join(path)).unwrap().rdev(), 0, "{path}");
    }
    // Made again from the other copy, the tar is the same.
    std::fs::remove_file(other.join("recipe")).unwrap();
    assert_eq!(layer_from_upper(other_fd.as_fd()).unwrap().diff_id, made.diff_id);
}

#[test]
fn tar_reads_what_is_written() {
    let scratch = Scratch::new("archive-export");
    let tree = scratch.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    upper(&tree);
    std::fs::remove_file(tree.join("etc/passwd")).unwrap();
    std::fs::remove_file(tree.join("gone")).unwrap();
    let mut stream = Vec::new();
    let mut writer = Writer::new(&mut stream);
    writer.tree(open(&tree).as_fd(), c".", b"", &Options::default()).unwrap();
    writer.finish().unwrap();
    let copy = scratch.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for (args, dir) in [(["-xpf", "-"], &copy), (["-df", "-"], &tree)] {
        let mut tar = Command::new("tar").arg("-C").arg(dir).args(args).stdin(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&stream).unwrap();
        assert!(tar.wait().unwrap().success(), "{args:?}");
    }
    let (a, b) = (std::fs::metadata(tree.join("etc/app/config")).unwrap(), std::fs::metadata(copy.join("etc/app/config")).unwrap());
    assert_eq!((a.mtime(), a.mtime_nsec(), a.nlink()), (b.mtime(), b.mtime_nsec(), b.nlink()));
    assert!(std::fs::metadata(copy.join("sparse")).unwrap().blocks() < 100);
}

#[test]
fn a_copy_goes_in_and_out_through_jails() {
    let scratch = Scratch::new("archive-copy");
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    std::fs::create_dir_all(from.join("dir/sub")).unwrap();
    std::fs::write(from.join("dir/sub/file"), "content").unwrap();
    symlink("/outside", from.join("dir/escape")).unwrap();
    std::fs::create_dir_all(to.join("tmp")).unwrap();
    std::fs::create_dir(to.join("tmp/renamed")).unwrap();
    let from_fd = open(&from);
    let mut stream = Vec::new();
    jail::stream_out(Policy::new(Root::Directory(from_fd.as_fd())), &mut stream, |out, _| {
        let root = sys::fd::open(c"/", libc::O_DIRECTORY, 0).unwrap();
        let mut writer = Writer::new(out);
        writer.tree(root.as_fd(), c"dir", b"renamed", &Options::default())?;
        writer.finish().map(|_| Vec::new())
    })
    .unwrap();
    let mut gzip = super::compress::Gzip::new(Vec::new());
    gzip.write_all(&stream).unwrap();
    let packed = gzip.finish().unwrap();
    let to_fd = open(&to);
    let copy_in = |options: apply::Options| {
        let mut source = decompress::Decompressor::new(packed.as_slice()).unwrap();
        jail::stream_in(Policy::new(Root::Directory(to_fd.as_fd())), &mut source, |input, prisoner| {
            assert!(std::fs::metadata("/proc/self").is_err(), "the host is still visible");
            let root = sys::fd::open(c"/tmp", libc::O_DIRECTORY, 0).unwrap();
            apply::apply(input, root.as_fd(), None, &options, &mut (), prisoner).map(|_| Vec::new())
        })
    };
    copy_in(apply::Options { owner: Some((5, 6)), keep_kinds: true, ..apply::Options::copy("/tmp") }).unwrap();
    let file = std::fs::metadata(to.join("tmp/renamed/sub/file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (5, 6));
    // A directory in the way of a file, and the other way round.
    std::fs::remove_file(to.join("tmp/renamed/sub/file")).unwrap();
    std::fs::create_dir(to.join("tmp/renamed/sub/file")).unwrap();
    let keep = || apply::Options { keep_kinds: true, ..apply::Options::copy("/tmp") };
    assert_eq!(copy_in(keep()).unwrap_err().message, "cannot overwrite directory \"/tmp/renamed/sub/file\" with non-directory \"/tmp\"");
    std::fs::remove_dir_all(to.join("tmp/renamed")).unwrap();
    std::fs::write(to.join("tmp/renamed"), "a file").unwrap();
    assert_eq!(copy_in(keep()).unwrap_err().message, "cannot overwrite non-directory \"/tmp/renamed\" with directory \"/tmp\"");
    copy_in(apply::Options::copy("/tmp")).unwrap();
    assert_eq!(std::fs::read(to.join("tmp/renamed/sub/file")).unwrap(), b"content");
}

#[test]
fn a_jail_has_few_capabilities_and_sees_little() {
    let scratch = Scratch::new("archive-jail");
    let fd = scratch.fd();
    let policy = Policy { devices: true, ..Policy::new(Root::Directory(fd.as_fd())) };
    let report = jail::start(policy, |_| {
        let held = sys::security::capget().unwrap();
        assert_eq!((held.permitted, held.inheritable), (held.effective, 0));
        assert!(sys::mount::mount(None, c"/", Some(c"tmpfs"), 0, None).is_err());
        assert!(sys::security::capbset_read(21).is_ok_and(|held| !held));
        assert!(std::fs::read_dir("/").unwrap().count() == 0);
        assert!(std::fs::metadata("/../../etc/passwd").is_err());
        Ok(held.permitted.to_le_bytes().to_vec())
    });
    let permitted = u64::from_le_bytes(report.unwrap().finish().unwrap().try_into().unwrap());
    assert_eq!(permitted, 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31);
    let killed = jail::start(Policy::new(Root::Directory(fd.as_fd())), |_| sys::process::exit(3)).unwrap().finish().unwrap_err();
    assert_eq!(killed.message, "unpacking process exited with code 3");
}

#[test]
fn diff_says_what_the_reference_says() {
    let scratch = Scratch::new("archive-diff");
    let make = |layer: &str, files: &[(&str, &str)]| {
        let root = scratch.path().join(layer);
        std::fs::create_dir(&root).unwrap();
        for (path, content) in files {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), content).unwrap();
        }
        root
    };
    let base = make(
        "base",
        &[("etc/a", "1"), ("etc/b", "1"), ("usr/x", "1"), ("usr/y", "1"), ("same/f", "1"), ("deep/gone", "1"), ("dir/in", "1")],
    );
    let middle = make("middle", &[("etc/c", "2"), ("back", "2")]);
    whiteout(&middle.join("deep"));
    let upper = make("upper", &[("etc/a", "33"), ("etc/new/file", "3"), ("usr/x", "1"), ("deep", "now a file"), ("dir", "a file")]);
    whiteout(&upper.join("etc/b"));
    whiteout(&upper.join("etc/c"));
    whiteout(&upper.join("never"));
    set_xattr(&upper.join("usr"), "trusted.overlay.opaque", b"y");
    // A copy-up that changed nothing.
    let out = Command::new("cp").arg("-a").args([base.join("same"), upper.join("same")]).status().unwrap();
    assert!(out.success());
    let (base, middle) = (open(&base), open(&middle));
    let found = changes(open(&upper).as_fd(), &[middle.as_fd(), base.as_fd()]).unwrap();
    let lines: Vec<String> = found.iter().map(|c| format!("{} {}", c.kind.letter(), String::from_utf8_lossy(&c.path))).collect();
    let expected = [
        "A /deep",
        "C /dir",
        "C /etc",
        "C /etc/a",
        "D /etc/b",
        "D /etc/c",
        "A /etc/new",
        "A /etc/new/file",
        "C /usr",
        "C /usr/x",
        "D /usr/y",
    ];
    assert_eq!(lines, expected);
    std::fs::hard_link(upper.join("etc/a"), upper.join("etc/a2")).unwrap();
    assert_eq!(size_of(open(&upper).as_fd()).unwrap(), 2 + 1 + 1 + 10 + 6 + 1);
}
