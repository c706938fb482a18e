//! Mounts that the configuration asks for, as the container sees them.

use super::launch::launch;
use super::plan::LaunchPlan;
use super::plan_mounts::{MountInput, MountSource, Propagation};
use super::report::{Phase, Step};
use super::test_world::{World, alone, finish};
use crate::sys;
use std::path::Path;

fn bind(source: &Path, target: &str) -> MountInput {
    MountInput {
        target: target.into(),
        source: MountSource::Path(source.to_owned()),
        read_only: false,
        propagation: Propagation::default(),
        recursive: true,
        read_only_recursive: true,
        subpath: None,
        create_source: false,
    }
}

fn mount_tmpfs(at: &Path) {
    std::fs::create_dir_all(at).expect("writable");
    let at = sys::cstring(at.as_os_str().as_encoded_bytes()).expect("no NUL");
    sys::mount::mount(Some(c"tmpfs"), &at, Some(c"tmpfs"), 0, None).expect("root");
}

#[test]
fn read_only_binds_are_read_only_below_too() {
    alone("ro", |world| {
        let source = world.path.join("source");
        mount_tmpfs(&source.join("below"));
        for (below, expected) in [
            (true, "touch: /d/x: Read-only file system\ntouch: /d/below/x: Read-only file system\n"),
            (false, "touch: /d/x: Read-only file system\n"),
        ] {
            world.mounts = vec![MountInput { read_only: true, read_only_recursive: below, ..bind(&source, "/d") }];
            assert_eq!(world.sh("touch /d/x 2>&1; touch /d/below/x 2>&1").output, expected);
        }
        world.mounts = vec![MountInput { recursive: false, ..bind(&source, "/d") }];
        assert_eq!(world.sh("mount | grep -c /d/below; touch /d/y; ls /d").output, "0\nbelow\ny\n");
    });
}

#[test]
fn propagation_is_as_asked() {
    alone("propagation", |world| {
        let source = world.path.join("source");
        mount_tmpfs(&source);
        let shared = sys::cstring(source.as_os_str().as_encoded_bytes()).expect("no NUL");
        sys::mount::mount(None, &shared, None, libc::MS_SHARED, None).expect("root");
        for (propagation, tag) in [
            (Propagation::RecursivePrivate, " - tmpfs"),
            (Propagation::RecursiveSlave, " master:"),
            (Propagation::RecursiveShared, " shared:"),
        ] {
            world.mounts = vec![MountInput { propagation, ..bind(&source, "/d") }];
            let outcome = world.sh("grep ' /d ' /proc/self/mountinfo");
            assert!(outcome.output.contains(tag), "{tag} in {outcome:?}");
        }
        // A mount made in the container reaches the host through a shared bind, and only through that.
        world.host.privileged = true;
        let outcome = world.sh("busybox mkdir /d/new; busybox mount -t tmpfs up /d/new && busybox mount -t tmpfs root /mnt 2>&1; busybox mkdir /m && busybox mount -t tmpfs own /m; echo done");
        assert!(outcome.output.ends_with("done\n"), "{outcome:?}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("procfs");
        assert!(mounts.contains("/source/new ") && !mounts.contains(" own "), "{outcome:?} {mounts}");
    });
}

#[test]
fn the_reference_s_words_for_a_file_on_a_directory() {
    alone("kinds", |world| {
        let file = world.path.join("file");
        std::fs::write(&file, "x").expect("writable");
        world.mounts = vec![bind(&file, "/etc")];
        let failure = world.sh("true").failure.expect("not a directory");
        let (error, code) = failure.explain(Phase::Create);
        assert_eq!((failure.step, code), (Step::Mount, 127));
        let source = file.display();
        assert!(error.message.ends_with(&format!(
            "error during container init: error mounting \"{source}\" to rootfs at \"/etc\": mount src={source}, dst=/etc, flags=MS_BIND|MS_REC: \
             not a directory: unknown: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists \
             and is the expected type"
        )), "{error}");
        world.mounts = vec![bind(&world.path.join("nosuch"), "/d")];
        assert_eq!(world.sh("true").failure.expect("no such source").step, Step::BindSource);
        world.mounts = vec![MountInput { create_source: true, ..bind(&world.path.join("made/here"), "/d") }];
        assert_eq!(world.sh("touch /d/x").failure, None);
        assert!(world.path.join("made/here/x").is_file());
    });
}

#[test]
fn a_subpath_stays_in_its_volume() {
    alone("subpath", |world| {
        let volume = world.path.join("volume");
        std::fs::create_dir_all(volume.join("in/side")).expect("writable");
        std::fs::write(volume.join("in/side/f"), "inside").expect("writable");
        std::os::unix::fs::symlink("/in", volume.join("link")).expect("writable");
        std::os::unix::fs::symlink("/etc", volume.join("out")).expect("writable");
        for (subpath, words) in [("in/side", "inside"), ("link/side", "inside"), ("../../in/side", "inside"), ("out", "")] {
            world.mounts = vec![MountInput { subpath: Some(subpath.into()), ..bind(&volume, "/d") }];
            let outcome = world.sh("cat /d/f");
            assert_eq!(outcome.output, words, "{outcome:?}");
            assert_eq!(outcome.failure.map(|failure| failure.step), words.is_empty().then_some(Step::BindSubpath));
        }
    });
}

#[test]
fn tmpfs_takes_options_and_the_mode_of_what_it_covers() {
    alone("tmpfs", |world| {
        let covered = world.path.join("layer/covered");
        std::fs::create_dir(&covered).expect("writable");
        std::fs::set_permissions(&covered, std::os::unix::fs::PermissionsExt::from_mode(0o1750)).expect("ours");
        world.host.tmpfs = Some(
            [
                ("/covered".to_owned(), String::new()),
                ("/fresh".to_owned(), String::new()),
                ("/new".to_owned(), "size=1m,mode=700,exec,ro".to_owned()),
            ]
            .into(),
        );
        let outcome = world.sh("stat -c %a /covered /new /fresh; mount | grep -E ' /(new|covered) '");
        assert!(outcome.output.starts_with("1750\n700\n1777\n"), "{outcome:?}");
        assert!(outcome.output.contains("tmpfs on /covered type tmpfs (rw,nosuid,nodev,noexec,"), "{outcome:?}");
        assert!(outcome.output.contains("tmpfs on /new type tmpfs (ro,nosuid,nodev,relatime,size=1024k,mode=700"), "{outcome:?}");
    });
}

#[test]
fn an_image_is_mounted_read_only() {
    alone("image", |world| {
        let (one, two) = (world.path.join("one/dir"), world.path.join("two/dir"));
        for (dir, name) in [(&one, "a"), (&two, "b")] {
            std::fs::create_dir_all(dir).expect("writable");
            std::fs::write(dir.join(name), name).expect("writable");
        }
        let layers = [world.path.join("one"), world.path.join("two")];
        let image = |layers: &[std::path::PathBuf], subpath: Option<&str>| MountInput {
            source: MountSource::Image(layers.to_vec()),
            subpath: subpath.map(str::to_owned),
            ..bind(Path::new(""), "/i")
        };
        for (layers, subpath, list) in [
            (&layers[..], None, "dir\n"),
            (&layers[..], Some("dir"), "a\nb\n"),
            (&layers[..1], Some("dir"), "a\n"),
            (&layers[1..], None, "dir\n"),
        ] {
            world.mounts = vec![image(layers, subpath)];
            let outcome = world.sh("ls /i; touch /i/x 2>&1; mount | grep -c ' /i '");
            assert_eq!(outcome.output, format!("{list}touch: /i/x: Read-only file system\n1\n"), "{outcome:?}");
        }
    });
}

#[test]
fn nested_targets_are_mounted_shallow_first() {
    alone("nested", |world| {
        let (outer, inner) = (world.path.join("outer"), world.path.join("inner"));
        std::fs::create_dir_all(&outer).expect("writable");
        std::fs::create_dir_all(&inner).expect("writable");
        std::fs::write(inner.join("f"), "inner").expect("writable");
        world.mounts = vec![bind(&inner, "/a/b/c"), bind(&outer, "/a")];
        assert_eq!(world.sh("cat /a/b/c/f").output, "inner");
    });
}

#[test]
fn the_user_s_dev_replaces_ours() {
    alone("dev", |world: &mut World| {
        world.mounts = vec![bind(Path::new("/dev"), "/dev")];
        let outcome = world.sh("mount | grep -c ' /dev/'; ls /dev/null");
        assert_eq!(outcome.failure, None);
        assert!(outcome.output.ends_with("/dev/null\n"), "{outcome:?}");
        for target in ["/proc", "/proc/sys", "/", "relative"] {
            world.mounts = vec![bind(Path::new("/tmp"), target)];
            assert!(LaunchPlan::new(&world.input()).is_err(), "{target}");
        }
        world.mounts = vec![bind(Path::new("/proc/uptime"), "/proc/uptime")];
        assert_eq!(finish(launch(&world.plan())).failure, None);
    });
}
