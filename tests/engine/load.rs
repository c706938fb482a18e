//! Many at once, and those who go without a word: afterwards nothing is left, and memory stayed bounded.

use crate::common::image::Tar;
use crate::common::{Connection, Daemon, eventually, leftovers};
use serde_json::json;
use std::time::{Duration, Instant};

/// What a daemon holds: descriptors, its mounts, its processes, the files of its roots.
#[derive(Debug, PartialEq)]
struct Holdings {
    descriptors: usize,
    mounts: usize,
    processes: usize,
    cgroups: usize,
    containers: usize,
    exec_root: Vec<std::path::PathBuf>,
    staging: usize,
}

fn holdings(daemon: &Daemon) -> Holdings {
    let world = &daemon.world;
    let own_mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", daemon.pid())).expect("the daemon runs");
    let cgroups: usize = leftovers::cgroups(world).iter().map(|dir| directories(dir)).sum();
    Holdings {
        descriptors: daemon.descriptors(),
        mounts: own_mounts.lines().filter(|line| line.contains(&world.name)).count() + leftovers::mounts(world).len(),
        processes: leftovers::processes(world).len(),
        cgroups,
        containers: std::fs::read_dir(world.data_root.join("containers")).map_or(0, Iterator::count),
        exec_root: leftovers::files(&world.exec_root),
        staging: leftovers::staging(world).len(),
    }
}

/// How many directories there are below one, itself not counted.
fn directories(dir: &std::path::Path) -> usize {
    let below = std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.map(|entry| 1 + directories(&entry.path())).sum()
}

/// Proportional set size of one process, in bytes.
fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix("Pss:")).and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[test]
fn two_hundred_containers_in_a_row_leave_nothing() {
    let daemon = Daemon::with_busybox();
    // The first makes what is made once.
    let id = daemon.run("first", &["sleep", "60"]);
    daemon.remove(&id);
    eventually("the first's end", Duration::from_secs(10), || (leftovers::processes(&daemon.world).len() == 1).then_some(()));
    let before = holdings(&daemon);
    for n in 0..200 {
        let id = daemon.run(&format!("row-{n}"), &["sleep", "600"]);
        daemon.post(&format!("/containers/{id}/kill")).expect(204);
        daemon.delete(&format!("/containers/{id}?force=1")).expect(204);
    }
    let (mut last, end) = (None, Instant::now() + Duration::from_secs(20));
    while last.as_ref() != Some(&before) {
        assert!(Instant::now() < end, "{last:?}, not {before:?}");
        std::thread::sleep(Duration::from_millis(20));
        let mut now = holdings(&daemon);
        // Fewer than at first is as well: a connection may have been open when they were counted.
        now.descriptors = now.descriptors.max(before.descriptors);
        last = Some(now);
    }
    assert_eq!(daemon.get("/containers/json?all=1").expect(200).json(), json!([]));
}

#[test]
fn two_hundred_vanishing_clients_leave_nothing() {
    let daemon = Daemon::with_busybox();
    let id = daemon
        .create("chatty", json!({"Image": "busybox", "OpenStdin": true, "Cmd": ["sh", "-c", "while :; do echo tick; sleep 0.01; done"]}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let before = holdings(&daemon);
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "tcp")];
    for n in 0..200 {
        let mut connection = daemon.connect();
        match n % 4 {
            0 => connection.request("POST", &format!("/containers/{id}/attach?stdin=1&stdout=1&stream=1"), &upgrade, b""),
            1 => connection.request("POST", &format!("/containers/{id}/attach?stdout=1&stderr=1&stream=1&logs=1"), &upgrade, b""),
            2 => connection.request("GET", &format!("/containers/{id}/logs?stdout=1&follow=1"), &[], b""),
            _ => connection.request("POST", &format!("/containers/{id}/wait"), &[], b""),
        }
        if n % 3 == 0 {
            connection.read_head();
        }
    }
    let exec = json!({"Cmd": ["sleep", "0.1"], "AttachStdout": true, "AttachStdin": true});
    for _ in 0..20 {
        let exec = daemon.post_json(&format!("/containers/{id}/exec"), &exec).expect(201).json();
        let mut connection = daemon.connect();
        let headers = [("Content-Type", "application/json"), upgrade[0], upgrade[1]];
        connection.request("POST", &format!("/exec/{}/start", exec["Id"].as_str().expect("an id")), &headers, b"{}");
        connection.read_head().expect(101);
    }
    eventually("all descriptors closed", Duration::from_secs(20), || (daemon.descriptors() <= before.descriptors).then_some(()));
    // The container's own sleep comes and goes.
    eventually("all programs ended", Duration::from_secs(20), || (holdings(&daemon).processes <= before.processes + 1).then_some(()));
    assert_eq!(daemon.inspect(&id)["State"]["Running"], true);
    daemon.remove(&id);
}

#[test]
fn eight_clients_start_containers_at_once() {
    let daemon = Daemon::with_busybox();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let daemon = &daemon;
            scope.spawn(move || {
                for n in 0..10 {
                    let (code, out, _) =
                        daemon.run_to_end(json!({"Image": "busybox", "Cmd": ["sh", "-c", format!("echo {client}-{n}; exit {n}")]}));
                    assert_eq!((code, out), (n, format!("{client}-{n}\n")));
                }
            });
        }
    });
}

#[test]
fn memory_stays_bounded_under_load() {
    let daemon = Daemon::with_probe();
    let id = daemon.create("talker", json!({"Image": "probe", "Cmd": ["sh", "-c", "while :; do /probe lines 1000000; sleep 0.2; done"]}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let held: Vec<Connection> = (0..1000).map(|_| daemon.connect()).collect();
    let follow = |query: &str| {
        let mut connection = daemon.connect();
        connection.request("GET", &format!("/containers/{id}/logs?stdout=1&{query}"), &[], b"");
        connection
    };
    // Half of the followers and all of the attached read nothing.
    let followers: Vec<Connection> = (0..50).map(|_| follow("follow=1")).collect();
    let attached: Vec<Connection> = (0..200)
        .map(|_| {
            let mut connection = daemon.connect();
            connection.request(
                "POST",
                &format!("/containers/{id}/attach?stdout=1&stream=1"),
                &[("Connection", "Upgrade"), ("Upgrade", "tcp")],
                b"",
            );
            connection
        })
        .collect();
    let importer = {
        let socket = daemon.socket().to_owned();
        std::thread::spawn(move || {
            let mut connection = Connection::open(&socket);
            connection.set_patience(Duration::from_secs(300));
            let block = vec![7; 1_000_000];
            let mut header = tar::Header::new_gnu();
            header.set_path("big").expect("a short path");
            header.set_size(300_000_000);
            header.set_mode(0o644);
            header.set_cksum();
            connection.send("POST /images/create?fromSrc=-&repo=big HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n");
            connection.send(format!("200\r\n{}\r\n", String::from_utf8_lossy(header.as_bytes())));
            for _ in 0..300 {
                connection.send(format!("{:x}\r\n", block.len()));
                connection.send(&block);
                connection.send("\r\n");
            }
            let padding = 300_000_000usize.next_multiple_of(512) - 300_000_000 + 1024;
            connection.send(format!("{padding:x}\r\n{}\r\n0\r\n\r\n", "\0".repeat(padding)));
            connection.read_answer()
        })
    };
    let (mut daemon_most, mut workers_most) = (0, 0);
    while !importer.is_finished() {
        let own = pss(daemon.pid());
        let children = children(daemon.pid());
        let workers: u64 = children.iter().filter(|pid| is_worker(**pid)).map(|pid| pss(*pid)).sum();
        (daemon_most, workers_most) = (daemon_most.max(own), workers_most.max(workers));
        std::thread::sleep(Duration::from_millis(50));
    }
    let answer = importer.join().expect("the importer");
    assert!(answer.status == 200 && answer.text().contains("sha256:"), "{} {}", answer.status, answer.text());
    println!("the daemon held at most {} KiB, its workers together {} KiB", daemon_most / 1024, workers_most / 1024);
    assert!(daemon_most < 16 << 20, "the daemon held {daemon_most} bytes");
    assert!(workers_most < 64 << 20, "the workers held {workers_most} bytes");
    drop((held, followers, attached));
    daemon.remove(&id);
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Workers are forked from the daemon and name themselves `coracle: title`.
fn is_worker(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("coracle"))
}

#[test]
fn a_worker_ends_with_its_client() {
    let daemon = Daemon::new();
    for _ in 0..5 {
        let mut connection = daemon.connect();
        connection.send("POST /images/create?fromSrc=-&repo=cut HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n");
        let tar = Tar::new().file("x", 0o644, &[1; 5000]).finish();
        connection.send(format!("{:x}\r\n", tar.len()));
        connection.send(&tar[..3000]);
        eventually("a worker", Duration::from_secs(10), || (!children(daemon.pid()).is_empty()).then_some(()));
        drop(connection);
        eventually("its end", Duration::from_secs(10), || children(daemon.pid()).is_empty().then_some(()));
    }
    daemon.get("/images/cut/json").expect(404);
    eventually("no staging", Duration::from_secs(10), || leftovers::staging(&daemon.world).is_empty().then_some(()));
}
