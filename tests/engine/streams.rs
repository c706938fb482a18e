//! Logs and attach: every byte, in order, to everybody who asked.

use crate::common::{Connection, Daemon, demultiplex, eventually};
use serde_json::{Value, json};
use std::time::Duration;

/// A container that prints numbered lines and ends.
fn finished(daemon: &Daemon, name: &str, script: &str) -> String {
    let id = daemon.run(name, &["sh", "-c", script]);
    daemon.wait(&id);
    id
}

#[test]
fn logs_tail_since_until_and_timestamps() {
    let daemon = Daemon::with_busybox();
    let id = finished(&daemon, "logged", "echo one; sleep 1.2; echo two; echo three >&2");
    let said = daemon.docker(&["logs", "logged"]).expect(0);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("one\ntwo\n", "three\n"));
    assert_eq!(daemon.docker(&["logs", "--tail", "1", "logged"]).expect(0).err, "three\n");
    let said = daemon.docker(&["logs", "--tail", "2", "logged"]).expect(0);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("two\n", "three\n"));
    assert_eq!(daemon.docker(&["logs", "--tail", "0", "logged"]).expect(0).out, "");
    assert_eq!(daemon.docker(&["logs", "-n", "all", "logged"]).expect(0).out, "one\ntwo\n");
    let said = daemon.docker(&["logs", "-t", "logged"]).expect(0);
    let stamps: Vec<&str> = said.out.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert!(stamps.iter().all(|stamp| stamp.len() == 30 && stamp.starts_with("20") && stamp.ends_with('Z')), "{said:?}");
    assert_eq!(daemon.docker(&["logs", "--since", stamps[1], "logged"]).expect(0).out, "two\n");
    let until = daemon.docker(&["logs", "--until", stamps[0], "logged"]).expect(0);
    assert_eq!((until.out.as_str(), until.err.as_str()), ("one\n", ""));
    let only = daemon.get(&format!("/containers/{id}/logs?stderr=1")).expect(200);
    assert_eq!(demultiplex(&only.body), (Vec::new(), b"three\n".to_vec()));
    assert_eq!(only.header("Content-Type"), Some("application/vnd.docker.multiplexed-stream"));
    daemon.get(&format!("/containers/{id}/logs")).refuses(400, "Bad parameters: you must choose at least one stream");
    daemon.get("/containers/nosuch/logs?stdout=1").refuses(404, "No such container: nosuch");
}

#[test]
fn logs_follow_to_the_end() {
    let daemon = Daemon::with_busybox();
    let id = daemon.run("followed", &["sh", "-c", "for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done"]);
    let said = daemon.docker(&["logs", "-f", "followed"]).expect(0);
    assert_eq!(said.out, "line 1\nline 2\nline 3\nline 4\nline 5\n");
    daemon.wait(&id);
    let said = daemon.docker(&["logs", "-f", "--tail", "1", "followed"]).expect(0);
    assert_eq!(said.out, "line 5\n");
}

#[test]
fn a_terminals_log_is_raw() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("tty", json!({"Image": "busybox", "Tty": true, "Cmd": ["sh", "-c", "echo a; echo b >&2"]}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    daemon.wait(&id);
    let answer = daemon.get(&format!("/containers/{id}/logs?stdout=1&stderr=1")).expect(200);
    assert_eq!(answer.text(), "a\r\nb\r\n");
    assert_eq!(answer.header("Content-Type"), Some("application/vnd.docker.raw-stream"));
}

#[test]
fn the_log_file_is_dockers() {
    let daemon = Daemon::with_busybox();
    let id = finished(&daemon, "json", r#"printf 'a "b" \\ <&> \t\001é\n\377\nno end'; echo err >&2"#);
    let path = daemon.inspect(&id)["LogPath"].as_str().expect("a path").to_owned();
    assert!(path.ends_with(&format!("{id}-json.log")), "{path}");
    let text = std::fs::read_to_string(&path).expect("the log file");
    // The two pipes have no order between them.
    let of = |stream: &str| -> Vec<String> {
        let end = format!(",\"stream\":\"{stream}\"");
        text.lines().filter_map(|line| line.split_once(&format!("{end},\"time\":\""))).map(|(log, _)| log.to_owned()).collect()
    };
    let quoted = r#"{"log":"a \"b\" \\ \u003c\u0026\u003e \t\u0001é\n""#;
    assert_eq!(of("stdout"), [quoted, r#"{"log":"\ufffd\n""#, r#"{"log":"no end""#], "{text}");
    assert_eq!(of("stderr"), [r#"{"log":"err\n""#]);
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(value.as_object().map(serde_json::Map::len), Some(3));
        assert!(value["time"].as_str().is_some_and(|time| time.ends_with('Z')));
    }
}

#[test]
fn long_lines_are_split_at_16_kib() {
    let daemon = Daemon::with_busybox();
    let id = finished(&daemon, "long", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo after");
    let path = daemon.inspect(&id)["LogPath"].as_str().expect("a path").to_owned();
    let text = std::fs::read_to_string(path).expect("the log file");
    let sizes: Vec<usize> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["log"].as_str().expect("text").len()).collect();
    assert_eq!(sizes, [16384, 16384, 40000 - 32768 + 1, 6]);
    assert_eq!(daemon.logs(&id).0, format!("{}\nafter\n", "x".repeat(40000)));
}

#[test]
fn the_log_is_rotated_and_followers_survive_it() {
    let daemon = Daemon::with_busybox();
    let config = json!({"Image": "busybox", "Cmd": ["sh", "-c", "read go; seq 1 60000"], "OpenStdin": true,
        "HostConfig": {"LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "3"}}}});
    let id = daemon.create("rotated", config);
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let mut follower = daemon.connect();
    follower.request("GET", &format!("/containers/{id}/logs?stdout=1&follow=1"), &[], b"");
    follower.read_head().expect(200);
    let mut input = attach(&daemon, &id, "stdin=1&stream=1");
    input.send("go\n");
    let mut bytes = Vec::new();
    while let Some(chunk) = follower.read_chunk() {
        bytes.extend(chunk);
    }
    let text = String::from_utf8(demultiplex(&bytes).0).expect("digits");
    let expected: String = (1..=60000).map(|n| format!("{n}\n")).collect();
    assert!(text == expected, "{} of {} bytes", text.len(), expected.len());
    let path = daemon.inspect(&id)["LogPath"].as_str().expect("a path").to_owned();
    for suffix in ["", ".1", ".2"] {
        let size = std::fs::metadata(format!("{path}{suffix}")).unwrap_or_else(|e| panic!("{path}{suffix}: {e}")).len();
        assert!(size <= 1_100_000, "{path}{suffix}: {size}");
    }
    assert!(!std::path::Path::new(&format!("{path}.3")).exists());
    let tail = daemon.get(&format!("/containers/{id}/logs?stdout=1&tail=3")).expect(200);
    assert_eq!(demultiplex(&tail.body).0, b"59998\n59999\n60000\n");
}

/// An attached connection after its 101.
#[track_caller]
fn attach(daemon: &Daemon, id: &str, query: &str) -> Connection {
    let mut connection = daemon.connect();
    connection.request("POST", &format!("/containers/{id}/attach?{query}"), &[("Connection", "Upgrade"), ("Upgrade", "tcp")], b"");
    let head = connection.read_head().expect(101);
    assert_eq!(head.reason, "UPGRADED");
    assert_eq!(head.header("Connection"), Some("Upgrade"));
    connection
}

#[test]
fn attach_carries_all_three_streams() {
    let daemon = Daemon::with_busybox();
    let id = daemon
        .create("attached", json!({"Image": "busybox", "Cmd": ["sh", "-c", "cat; echo err >&2"], "OpenStdin": true, "StdinOnce": true}));
    let mut stream = attach(&daemon, &id, "stdin=1&stdout=1&stderr=1&stream=1");
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    stream.send("first\n");
    assert_eq!(stream.read_frame(), Some((1, b"first\n".to_vec())));
    stream.send("second\n");
    assert_eq!(stream.read_frame(), Some((1, b"second\n".to_vec())));
    stream.shut_write();
    assert_eq!(stream.read_frame(), Some((2, b"err\n".to_vec())));
    assert_eq!(stream.read_frame(), None);
    assert_eq!(daemon.wait(&id), 0);
}

#[test]
fn attach_without_upgrade_is_an_open_ended_200() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("plain", json!({"Image": "busybox", "Cmd": ["echo", "plain"]}));
    let mut stream = daemon.connect();
    stream.request("POST", &format!("/containers/{id}/attach?stdout=1&stream=1"), &[], b"");
    let head = stream.read_head().expect(200);
    assert_eq!(head.header("Content-Type"), Some("application/vnd.docker.raw-stream"));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    assert_eq!(demultiplex(&stream.read_to_end()).0, b"plain\n");
}

#[test]
fn attach_with_logs_replays_them() {
    let daemon = Daemon::with_busybox();
    let id = finished(&daemon, "replayed", "echo before");
    let mut stream = attach(&daemon, &id, "stdout=1&logs=1");
    assert_eq!(demultiplex(&stream.read_to_end()).0, b"before\n");
}

#[test]
fn a_client_that_stops_reading_stalls_nobody() {
    let daemon = Daemon::with_probe();
    let id = daemon.create("stalling", json!({"Image": "probe", "Cmd": ["/probe", "lines", "20000000"]}));
    let stalled: Vec<Connection> = (0..5).map(|_| attach(&daemon, &id, "stdout=1&stream=1")).collect();
    let mut reader = attach(&daemon, &id, "stdout=1&stream=1");
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let (out, _) = demultiplex(&reader.read_to_end());
    assert_eq!(out.len(), 20_000_000);
    assert_eq!(daemon.wait(&id), 0);
    daemon.remove(&id);
    drop(stalled);
}

#[test]
fn fifty_followers_all_get_every_line() {
    let daemon = Daemon::with_probe();
    let id = daemon.create("many", json!({"Image": "probe", "Cmd": ["/probe", "lines", "3000000"]}));
    let path = format!("/containers/{id}/logs?stdout=1&follow=1");
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let mut followers: Vec<Connection> = (0..50)
        .map(|_| {
            let mut connection = daemon.connect();
            connection.request("GET", &path, &[], b"");
            connection
        })
        .collect();
    for follower in &mut followers {
        let answer = follower.read_answer().expect(200);
        let (out, _) = demultiplex(&answer.body);
        assert_eq!(out.len(), 3_000_000);
        check_lines(&out);
    }
    assert_eq!(daemon.wait(&id), 0);
}

/// Each of the probe's lines in its place.
#[track_caller]
fn check_lines(bytes: &[u8]) {
    for (n, line) in bytes.chunks(100).enumerate() {
        assert!(line.starts_with(format!("{n:012}").as_bytes()) && line.ends_with(b"\n"), "line {n}: {:?}", String::from_utf8_lossy(line));
    }
}

#[test]
fn five_hundred_megabytes_lose_no_line() {
    let daemon = Daemon::with_probe();
    // Rotation would remove what a follower is ten files behind with; here every line is to be seen.
    let log = json!({"Type": "json-file", "Config": {"max-size": "4g"}});
    let id = daemon.create("much", json!({"Image": "probe", "Cmd": ["/probe", "lines", "500000000"], "HostConfig": {"LogConfig": log}}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let mut follower = daemon.connect();
    follower.request("GET", &format!("/containers/{id}/logs?stdout=1&follow=1"), &[], b"");
    follower.read_head().expect(200);
    follower.set_patience(Duration::from_secs(120));
    let (mut pending, mut line) = (Vec::new(), 0u64);
    while let Some(chunk) = follower.read_chunk() {
        pending.extend(chunk);
        let mut at = 0;
        while pending.len() - at >= 8 {
            let head = &pending[at..at + 8];
            let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            if pending.len() - at < 8 + length {
                break;
            }
            let body = &pending[at + 8..at + 8 + length];
            assert_eq!(body.len(), 100, "frame at line {line}: {:?}", String::from_utf8_lossy(body));
            assert!(body.starts_with(format!("{line:012}").as_bytes()), "line {line} is {:?}", String::from_utf8_lossy(body));
            line += 1;
            at += 8 + length;
        }
        pending.drain(..at);
    }
    assert_eq!(line, 5_000_000);
    assert_eq!(daemon.wait(&id), 0);
}

#[test]
fn resize_answers_and_reaches_the_terminal() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("sized", json!({"Image": "busybox", "Tty": true, "OpenStdin": true, "Cmd": ["sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done"]}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let log = || daemon.get(&format!("/containers/{id}/logs?stdout=1")).expect(200).text();
    eventually("ready", Duration::from_secs(10), || log().contains("ready").then_some(()));
    daemon.post(&format!("/containers/{id}/resize?h=33&w=99")).expect(200);
    eventually("the new size", Duration::from_secs(10), || log().contains("33 99").then_some(()));
    daemon.post(&format!("/containers/{id}/resize?h=x&w=99")).expect(400);
    daemon.remove(&id);
}
