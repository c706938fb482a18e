//! Images made without any network: a root file system around the host's static busybox, imported over the socket.

use super::Daemon;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use tar::{Builder, EntryType, Header};

/// A tar archive under construction.
pub struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Tar {
        Tar(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header
    }

    pub fn dir(mut self, path: &str, mode: u32) -> Tar {
        self.0.append_data(&mut Tar::header(EntryType::Directory, mode, 0), path, &[][..]).expect("a short path");
        self
    }

    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Tar {
        let size = content.len() as u64;
        self.0.append_data(&mut Tar::header(EntryType::Regular, mode, size), path, content).expect("a short path");
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Tar {
        self.0.append_link(&mut Tar::header(EntryType::Symlink, 0o777, 0), path, target).expect("a short path");
        self
    }

    pub fn hard_link(mut self, path: &str, target: &str) -> Tar {
        self.0.append_link(&mut Tar::header(EntryType::Link, 0o755, 0), path, target).expect("a short path");
        self
    }

    /// A fifo, or a device with its numbers.
    pub fn node(mut self, path: &str, kind: EntryType, major: u32, minor: u32) -> Tar {
        let mut header = Tar::header(kind, 0o666, 0);
        header.set_device_major(major).expect("a GNU header has devices");
        header.set_device_minor(minor).expect("a GNU header has devices");
        self.0.append_data(&mut header, path, &[][..]).expect("a short path");
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("a Vec takes everything")
    }
}

/// The host's static busybox.
#[track_caller]
fn busybox() -> Vec<u8> {
    let path = super::find_program("busybox").expect("busybox on PATH (make deps)");
    std::fs::read(path).expect("busybox can be read")
}

fn applets() -> &'static str {
    static APPLETS: OnceLock<String> = OnceLock::new();
    APPLETS.get_or_init(|| {
        let output = Command::new("busybox").arg("--list").output().expect("busybox on PATH (make deps)");
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

/// The busybox root file system, without /dev, /proc and /sys (which the engine makes), open for more.
pub fn busybox_root() -> Tar {
    let mut tar = Tar::new().dir("bin", 0o755).file("bin/busybox", 0o755, &busybox());
    for applet in applets().lines().filter(|applet| *applet != "busybox") {
        tar = tar.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    tar.dir("etc", 0o755)
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\nalice:x:1000:1000::/home/alice:/bin/sh\n",
        )
        .file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\nusers:x:1000:\nextra:x:2000:alice\n")
        .dir("root", 0o700)
        .dir("home", 0o755)
        .dir("home/alice", 0o755)
        .dir("tmp", 0o1777)
}

/// Imports a tar archive as `reference`; gives the image's id.
#[track_caller]
pub fn import(daemon: &Daemon, reference: &str, tar: &[u8]) -> String {
    import_with(daemon, reference, &["ENV PATH=/bin", "CMD [\"sh\"]"], tar)
}

/// As [`import`], with `changes` in a Dockerfile's words.
#[track_caller]
pub fn import_with(daemon: &Daemon, reference: &str, changes: &[&str], tar: &[u8]) -> String {
    let (repository, tag) = reference.split_once(':').unwrap_or((reference, "latest"));
    let mut target = format!("/images/create?fromSrc=-&repo={}&tag={}", super::encode(repository), super::encode(tag));
    for change in changes {
        target += &format!("&changes={}", super::encode(change));
    }
    let answer = daemon.request("POST", &target, &[("Content-Type", "application/x-tar")], tar).expect(200);
    let lines = answer.json_lines();
    let id = lines.iter().rev().find_map(|line| line["status"].as_str().filter(|status| status.starts_with("sha256:")));
    id.unwrap_or_else(|| panic!("import said {}", answer.text())).to_owned()
}

#[track_caller]
pub fn import_busybox(daemon: &Daemon) -> String {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    import(daemon, "busybox", TAR.get_or_init(|| busybox_root().finish()))
}

/// The image `probe`: busybox and `/probe`.
#[track_caller]
pub fn import_probe(daemon: &Daemon) -> String {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    import(daemon, "probe", TAR.get_or_init(|| with_probe(busybox_root()).finish()))
}

/// Adds `/probe`, the program that tells from inside what a container was given.
pub fn with_probe(root: Tar) -> Tar {
    let probe = std::fs::read(Path::new(env!("CARGO_BIN_EXE_probe"))).expect("cargo builds the probe before the tests");
    root.file("probe", 0o755, &probe)
}
