//! `docker cp`, `docker export`, `docker diff`: files into and out of containers, stopped and running.

use crate::common::Daemon;

#[test]
fn files_go_in_and_out_of_stopped_and_running_containers() {
    let daemon = Daemon::with_busybox();
    let file = daemon.world.path("hello");
    std::fs::write(&file, "hello\n").unwrap();
    let file = file.to_str().unwrap().to_owned();
    daemon.docker(&["create", "--name", "box", "-u", "alice", "-v", "vol:/data", "busybox", "sleep", "600"]).expect(0);
    daemon.docker(&["cp", &file, "box:/tmp/stopped"]).expect(0);
    daemon.docker(&["cp", "-a", &file, "box:/tmp/owned"]).expect(0);
    daemon.docker(&["cp", &file, "box:/data/volume"]).expect(0);
    daemon.docker(&["start", "box"]).expect(0);
    daemon.docker(&["cp", &file, "box:/tmp/running"]).expect(0);
    let said = daemon.docker(&["exec", "box", "sh", "-c", "cat /tmp/stopped /tmp/running /data/volume; stat -c %u /tmp/owned"]).expect(0);
    assert_eq!(said.out, "hello\nhello\nhello\n1000\n");
    let back = daemon.world.path("back");
    daemon.docker(&["cp", "box:/data/.", back.to_str().unwrap()]).expect(0);
    assert_eq!(std::fs::read(back.join("volume")).unwrap(), b"hello\n");
    let said = daemon.docker(&["cp", "box:/nosuch", "-"]);
    assert!(said.code == 1 && said.err.contains("Could not find the file /nosuch in container box"), "{said:?}");
    let said = daemon.docker(&["diff", "box"]).expect(0);
    for line in ["C /tmp", "A /tmp/owned", "A /tmp/running", "A /tmp/stopped"] {
        assert!(said.out.lines().any(|l| l == line), "{line}: {said:?}");
    }
    let tar = daemon.world.path("export.tar");
    daemon.docker(&["export", "-o", tar.to_str().unwrap(), "box"]).expect(0);
    let listed = std::process::Command::new("tar").arg("-tf").arg(&tar).output().unwrap();
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(names.lines().any(|l| l == "tmp/running") && !names.contains("data/volume") && !names.contains("proc/1"), "{names}");
    daemon.remove("box");
}

#[test]
fn what_is_read_only_is_not_written() {
    let daemon = Daemon::with_busybox();
    let file = daemon.world.path("hello");
    std::fs::write(&file, "hello\n").unwrap();
    let file = file.to_str().unwrap().to_owned();
    daemon.docker(&["create", "--name", "ro", "--read-only", "-v", "vol:/data:ro", "busybox", "true"]).expect(0);
    for (path, words) in [("ro:/tmp/x", "container rootfs is marked read-only"), ("ro:/data/x", "mounted volume is marked read-only")] {
        let said = daemon.docker(&["cp", &file, path]);
        assert!(said.code == 1 && said.err.contains(words), "{said:?}");
    }
    daemon.remove("ro");
}
