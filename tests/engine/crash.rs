//! The daemon is killed at every state-changing system call; the next start finds the old state or the new one.

use crate::common::image::{self, Tar};
use crate::common::{Connection, Daemon, World, eventually, leftovers};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A request whose answer may never come.
fn attempt(daemon: &Daemon, method: &str, target: &str, body: &[u8]) -> Option<u16> {
    let mut connection = match std::os::unix::net::UnixStream::connect(daemon.socket()) {
        Ok(_) => Connection::open(daemon.socket()),
        Err(_) => return None,
    };
    let headers: &[(&str, &str)] = if body.starts_with(b"{") { &[("Content-Type", "application/json")] } else { &[] };
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !connection.try_send([(head + "\r\n").as_bytes(), body].concat()) {
        return None;
    }
    let answer = connection.read_to_end();
    std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
}

/// Import, create, start, stop, rename, tag, remove: everything that changes state, once.
/// False when the daemon went away in between.
fn voyage(daemon: &Daemon, tar: &[u8]) -> bool {
    let steps: [(&str, &str, &[u8]); 9] = [
        ("POST", "/images/create?fromSrc=-&repo=fresh&tag=1&changes=ENV%20PATH%3D%2Fbin", tar),
        (
            "POST",
            "/containers/create?name=one",
            br#"{"Image":"base","Cmd":["sleep","600"],"StopSignal":"KILL","HostConfig":{"NetworkMode":"none"}}"#,
        ),
        ("POST", "/containers/one/start", b""),
        ("POST", "/containers/one/stop?t=0", b""),
        ("POST", "/containers/one/rename?name=two", b""),
        ("POST", "/images/fresh:1/tag?repo=fresh&tag=2", b""),
        ("DELETE", "/images/fresh:1", b""),
        ("DELETE", "/containers/two?force=1", b""),
        ("DELETE", "/images/fresh:2", b""),
    ];
    for (method, target, body) in steps {
        if attempt(daemon, method, target, body).is_none() {
            return false;
        }
    }
    true
}

/// After a crash and a start: what is listed is whole, nothing runs that is not listed, and all can be removed.
#[track_caller]
fn check(daemon: &Daemon, crashed_at: u32) {
    let context = |what: &str| format!("after a crash at call {crashed_at}: {what}");
    let images = daemon.get("/images/json?all=1").expect(200).json();
    for listed in images.as_array().expect("a list") {
        let id = listed["Id"].as_str().expect("an id");
        let image = daemon.get(&format!("/images/{id}/json")).expect(200).json();
        assert_eq!(image["Id"], id, "{}", context("an image"));
        let (code, out, err) = daemon.run_to_end(json!({"Image": id, "Cmd": ["/bin/busybox", "echo", "whole"]}));
        assert_eq!((code, out.as_str()), (0, "whole\n"), "{}: {err}", context("a listed image does not run"));
        for tag in listed["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if tag != "base:latest" {
                assert!(tag == "fresh:1" || tag == "fresh:2", "{}", context(tag));
                daemon.delete(&format!("/images/{tag}")).expect(200);
            }
        }
        if listed["RepoTags"].as_array().is_none_or(Vec::is_empty) {
            daemon.delete(&format!("/images/{id}")).expect(200);
        }
    }
    for listed in daemon.get("/containers/json?all=1").expect(200).json().as_array().expect("a list") {
        let name = listed["Names"][0].as_str().expect("a name");
        assert!(name == "/one" || name == "/two", "{}", context(name));
        let id = listed["Id"].as_str().expect("an id");
        let state = daemon.inspect(id)["State"].clone();
        assert_eq!(state["Running"], false, "{}: {state}", context("it runs"));
        daemon.post(&format!("/containers/{id}/start")).expect(204);
        daemon.remove(id);
    }
    eventually(&context("staging"), Duration::from_secs(10), || leftovers::staging(&daemon.world).is_empty().then_some(()));
    let containers: Vec<_> =
        std::fs::read_dir(daemon.world.data_root.join("containers")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert!(containers.is_empty(), "{}: {containers:?}", context("left on disk"));
    let torn: Vec<_> = std::fs::read_dir(daemon.world.data_root.join("lost")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert!(torn.is_empty(), "{}: {torn:?}", context("state files were torn"));
}

#[test]
fn every_crash_point_is_survived() {
    let tar = Tar::new()
        .dir("bin", 0o755)
        .file("bin/busybox", 0o755, &std::fs::read(crate::common::find_program("busybox").expect("busybox")).expect("read"))
        .finish();
    let mut daemon = Daemon::start(World::new(), &[]);
    let base = image::busybox_root().finish();
    image::import(&daemon, "base", &base);
    let (mut at, mut survived) = (1, 0);
    loop {
        daemon.stop();
        let mut command = daemon.world.daemon_command(&[]);
        command.env("CORACLE_CRASH_AT", at.to_string());
        // Points before the socket is there end the daemon at once.
        daemon.start_unready(command);
        if daemon.wait_ready_or_exit() && voyage(&daemon, &tar) {
            // What follows the last answer (fsyncs, removals) may still meet the point.
            let end = Instant::now() + Duration::from_millis(300);
            while daemon.is_running() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            if daemon.is_running() {
                break;
            }
        }
        daemon.wait_exit(Duration::from_secs(10));
        survived += 1;
        daemon.start_again(&[]);
        check(&daemon, at);
        at += 1;
        assert!(at < 2000, "the voyage has no end");
    }
    // This one is armed still.
    daemon.kill();
    daemon.start_again(&[]);
    check(&daemon, at);
    println!("survived {survived} crash points");
    assert!(survived > 20, "only {survived} state-changing calls were counted");
}

#[test]
fn sigkill_while_containers_run_is_cleaned_up() {
    let mut daemon = Daemon::with_busybox();
    let running = daemon.run("running", &["sleep", "600"]);
    let removed = daemon.create("auto", json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"AutoRemove": true}}));
    daemon.post(&format!("/containers/{removed}/start")).expect(204);
    let still = daemon.create("still", json!({"Image": "busybox"}));
    let pid = daemon.inspect(&running)["State"]["Pid"].as_i64().expect("a pid");
    daemon.kill();
    daemon.start_again(&[]);
    let state = daemon.inspect(&running)["State"].clone();
    assert_eq!((&state["Running"], &state["Status"]), (&json!(false), &json!("exited")), "{state}");
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    eventually("the end of what ran", Duration::from_secs(10), || (stat().is_empty() || stat().contains(") Z ")).then_some(()));
    assert_eq!(daemon.inspect(&still)["State"]["Status"], "created");
    eventually("auto-removal", Duration::from_secs(10), || {
        (daemon.get(&format!("/containers/{removed}/json")).status == 404).then_some(())
    });
    daemon.post(&format!("/containers/{running}/start")).expect(204);
    daemon.remove(&running);
}

#[test]
fn sigkill_at_random_moments_of_an_import() {
    let mut daemon = Daemon::with_busybox();
    let tar = Tar::new().file("big", 0o644, &vec![5; 20_000_000]).dir("bin", 0o755).finish();
    for round in 0..8u64 {
        let socket = daemon.socket().to_owned();
        let body = tar.clone();
        let client = std::thread::spawn(move || {
            let mut connection = Connection::open(&socket);
            let head = format!("POST /images/create?fromSrc=-&repo=cut HTTP/1.1\r\nHost: d\r\nContent-Length: {}\r\n\r\n", body.len());
            if connection.try_send(head) && connection.try_send(&body) {
                connection.read_to_end();
            }
        });
        std::thread::sleep(Duration::from_millis(round * 25));
        daemon.kill();
        client.join().expect("the client");
        daemon.start_again(&[]);
        let answer = daemon.get("/images/cut/json");
        assert!(answer.status == 404 || answer.status == 200, "{answer:?}");
        if answer.status == 200 {
            assert!(answer.json()["Size"].as_i64().is_some_and(|size| size >= 20_000_000));
            daemon.delete("/images/cut").expect(200);
        }
        eventually("staging", Duration::from_secs(10), || leftovers::staging(&daemon.world).is_empty().then_some(()));
    }
}
