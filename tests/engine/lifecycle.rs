//! A container's states and the commands that move it through them.

use crate::common::{Daemon, eventually};
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn created_started_stopped_started_again() {
    let daemon = Daemon::with_busybox();
    assert_eq!(daemon.docker(&["create", "--name", "boat", "--net", "none", "busybox", "sleep", "60"]).expect(0).trimmed().len(), 64);
    let state = || daemon.docker(&["inspect", "-f", "{{.State.Status}}", "boat"]).expect(0).trimmed().to_owned();
    assert_eq!(state(), "created");
    assert_eq!(daemon.docker(&["start", "boat"]).expect(0).trimmed(), "boat");
    assert_eq!(state(), "running");
    assert_eq!(daemon.docker(&["stop", "-t", "0", "boat"]).expect(0).trimmed(), "boat");
    assert_eq!(state(), "exited");
    daemon.docker(&["start", "boat"]).expect(0);
    assert_eq!(daemon.docker(&["restart", "-t", "0", "boat"]).expect(0).trimmed(), "boat");
    assert_eq!(state(), "running");
    let said = daemon.docker(&["rm", "boat"]).expect(1);
    assert!(said.err.contains("container is running: stop the container before removing or force remove"), "{said:?}");
    assert_eq!(daemon.docker(&["rm", "-f", "boat"]).expect(0).trimmed(), "boat");
    let said = daemon.docker(&["inspect", "boat"]).expect(1);
    assert!(said.err.contains("No such object: boat") || said.err.contains("no such object: boat"), "{said:?}");
}

#[test]
fn starting_and_stopping_twice_changes_nothing() {
    let daemon = Daemon::with_busybox();
    let id = daemon.run("twice", &["sleep", "60"]);
    daemon.post(&format!("/containers/{id}/start")).expect(304);
    daemon.post(&format!("/containers/{id}/stop?t=0")).expect(204);
    daemon.post(&format!("/containers/{id}/stop?t=0")).expect(304);
    daemon.post(&format!("/containers/{id}/kill")).refuses(409, &format!("cannot kill container: {id}: container {id} is not running"));
}

#[test]
fn stop_sends_the_stop_signal_and_then_kills() {
    let daemon = Daemon::with_busybox();
    let script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let id = daemon.run("gentle", &["sh", "-c", script]);
    eventually("ready", Duration::from_secs(10), || daemon.logs(&id).0.contains("ready").then_some(()));
    daemon.post(&format!("/containers/{id}/stop")).expect(204);
    assert_eq!(daemon.inspect(&id)["State"]["ExitCode"], 7);
    assert!(daemon.logs(&id).0.ends_with("caught\n"));
    let id = daemon.create("usr1", json!({"Image": "busybox", "StopSignal": "SIGUSR1", "Cmd": ["sh", "-c", "trap 'exit 8' USR1; echo ready; while :; do sleep 0.05; done"]}));
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    eventually("ready", Duration::from_secs(10), || daemon.logs(&id).0.contains("ready").then_some(()));
    daemon.post(&format!("/containers/{id}/stop")).expect(204);
    assert_eq!(daemon.inspect(&id)["State"]["ExitCode"], 8);
    let id = daemon.run("stubborn", &["sh", "-c", "trap '' TERM; sleep 100"]);
    let start = Instant::now();
    daemon.post(&format!("/containers/{id}/stop?t=1")).expect(204);
    assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(daemon.inspect(&id)["State"]["ExitCode"], 137);
}

#[test]
fn kill_takes_names_and_numbers() {
    let daemon = Daemon::with_busybox();
    for (signal, code) in [("KILL", 137), ("SIGKILL", 137), ("9", 137), ("sigusr1", 33), ("USR1", 33), ("10", 33)] {
        let id = daemon.run("", &["sh", "-c", "trap 'exit 33' USR1; echo ready; while :; do sleep 0.05; done"]);
        eventually("ready", Duration::from_secs(10), || daemon.logs(&id).0.contains("ready").then_some(()));
        daemon.docker(&["kill", "-s", signal, &id]).expect(0);
        assert_eq!(daemon.wait(&id), code, "signal {signal}");
        daemon.remove(&id);
    }
    let id = daemon.run("bad", &["sleep", "60"]);
    for signal in ["NOSUCH", "0", "-1", "999", "SIG"] {
        daemon
            .post(&format!("/containers/{id}/kill?signal={signal}"))
            .refuses(400, &format!("cannot kill container: {id}: invalid signal: {signal}"));
    }
}

#[test]
fn wait_knows_its_conditions() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("waited", json!({"Image": "busybox", "Cmd": ["sh", "-c", "exit 4"]}));
    assert_eq!(daemon.wait(&id), 0, "a container that never ran is not running");
    let mut next = daemon.connect();
    next.request("POST", &format!("/containers/{id}/wait?condition=next-exit"), &[], b"");
    assert_eq!(next.read_head().status, 200, "the head comes at once");
    let mut removed = daemon.connect();
    removed.request("POST", &format!("/containers/{id}/wait?condition=removed"), &[], b"");
    removed.read_head().expect(200);
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let chunk = next.read_chunk().expect("an answer");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&chunk).expect("JSON")["StatusCode"], 4);
    assert_eq!(daemon.wait(&id), 4);
    daemon.remove(&id);
    let chunk = removed.read_chunk().expect("an answer");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&chunk).expect("JSON")["StatusCode"], 4);
    daemon.post(&format!("/containers/{id}/wait")).refuses(404, &format!("No such container: {id}"));
    let id = daemon.create("again", json!({"Image": "busybox"}));
    daemon.post(&format!("/containers/{id}/wait?condition=nonsense")).refuses(400, "invalid condition: \"nonsense\"");
}

#[test]
fn rename_moves_the_name() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("old", json!({"Image": "busybox"}));
    let other = daemon.create("other", json!({"Image": "busybox"}));
    daemon.docker(&["rename", "old", "new"]).expect(0);
    assert_eq!(daemon.inspect("new")["Id"], id.as_str());
    assert_eq!(daemon.inspect("new")["Name"], "/new");
    daemon.get("/containers/old/json").refuses(404, "No such container: old");
    let words = format!(
        "Conflict. The container name \"/other\" is already in use by container \"{other}\". You have to remove (or rename) that container to be able to reuse that name."
    );
    let answer = daemon.post("/containers/new/rename?name=other").expect(409);
    assert!(answer.message().ends_with(&words), "{}", answer.message());
    daemon.post("/containers/new/rename?name=").expect(400);
    daemon.post("/containers/new/rename?name=a/b").expect(400);
    daemon.post("/containers/new/rename?name=new").expect(400);
}

#[test]
fn names_are_found_by_id_name_and_prefix() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("found", json!({"Image": "busybox"}));
    for name in [&id[..], "found", &id[..12], &id[..4]] {
        assert_eq!(daemon.get(&format!("/containers/{name}/json")).expect(200).json()["Id"], id.as_str());
    }
    daemon.create(&id[..6], json!({"Image": "busybox"}));
    assert_ne!(daemon.inspect(&id[..6])["Id"], id.as_str(), "a name goes before a prefix");
    daemon.get("/containers/nosuch/json").refuses(404, "No such container: nosuch");
    for bad in ["-x", ".x", "a b", "a/b", "é", "a", "_"] {
        let answer = daemon.post_json(&format!("/containers/create?name={}", crate::common::encode(bad)), &json!({"Image": "busybox"}));
        // One letter is too short for the grammar that dockerd prints.
        answer.expect(400);
    }
}

#[test]
fn a_generated_name_is_given() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("", json!({"Image": "busybox"}));
    let name = daemon.inspect(&id)["Name"].as_str().expect("a name").to_owned();
    let (adjective, surname) = name.trim_start_matches('/').split_once('_').unwrap_or_else(|| panic!("{name:?}"));
    assert!(adjective.bytes().chain(surname.bytes()).all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{name:?}");
}

#[test]
fn create_refuses_what_it_cannot_do() {
    let daemon = Daemon::with_busybox();
    let create = |body: serde_json::Value| daemon.post_json("/containers/create", &body);
    create(json!({"Image": "nosuch"})).refuses(404, "No such image: nosuch:latest");
    create(json!({})).expect(400);
    create(json!({"Image": "busybox", "HostConfig": {"Memory": 1000}})).refuses(400, "Minimum memory limit allowed is 6MB");
    create(json!({"Image": "busybox", "HostConfig": {"NetworkMode": "container:"}})).expect(400);
    create(json!({"Image": "busybox", "HostConfig": {"PidMode": "nonsense"}})).refuses(400, "invalid PID mode: nonsense");
    create(json!({"Image": "busybox", "HostConfig": {"UTSMode": "nonsense"}})).refuses(400, "invalid UTS mode: nonsense");
    create(json!({"Image": "busybox", "HostConfig": {"IpcMode": "nonsense"}})).refuses(400, "invalid IPC mode: nonsense");
    create(json!({"Image": "busybox", "HostConfig": {"CapAdd": ["NOSUCH"]}})).expect(400);
    create(json!({"Image": "busybox", "HostConfig": {"RestartPolicy": {"Name": "sometimes"}}})).expect(400);
    create(json!({"Image": "busybox", "StopSignal": "NOSUCH"})).expect(400);
    create(json!({"Image": "busybox", "WorkingDir": "relative"}))
        .refuses(400, "the working directory 'relative' is invalid, it needs to be an absolute path");
    assert_eq!(daemon.get("/containers/json?all=1").expect(200).json(), json!([]));
}

#[test]
fn an_auto_removed_container_is_gone() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("fleeting", json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"AutoRemove": true}}));
    let mut wait = daemon.connect();
    wait.request("POST", &format!("/containers/{id}/wait?condition=removed"), &[], b"");
    wait.read_head().expect(200);
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    assert_eq!(wait.read_json_chunk()["StatusCode"], 0);
    daemon.get(&format!("/containers/{id}/json")).expect(404);
    assert!(!daemon.container_dir(&id).exists());
}

#[test]
fn inspect_tells_what_was_asked_and_what_is() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create(
        "told",
        json!({"Image": "busybox", "Cmd": ["sleep", "60"], "Labels": {"a": "b"}, "Env": ["X=y"], "HostConfig": {"Memory": 67_108_864}}),
    );
    let created = daemon.inspect(&id);
    assert_eq!(created["State"]["Status"], "created");
    assert_eq!(created["State"]["Pid"], 0);
    assert_eq!(created["State"]["StartedAt"], "0001-01-01T00:00:00Z");
    assert_eq!((&created["Path"], &created["Args"]), (&json!("sleep"), &json!(["60"])));
    assert_eq!(created["Config"]["Env"], json!(["X=y", "PATH=/bin"]));
    assert_eq!(created["Config"]["Labels"], json!({"a": "b"}));
    assert_eq!(created["Config"]["Image"], "busybox");
    assert_eq!(created["HostConfig"]["Memory"], 67_108_864);
    assert_eq!(created["HostConfig"]["NetworkMode"], "none");
    assert!(created["Image"].as_str().is_some_and(|image| image.starts_with("sha256:")));
    assert_eq!(created["Driver"], "overlay2");
    assert_eq!(created["Platform"], "linux");
    daemon.post(&format!("/containers/{id}/start")).expect(204);
    let running = daemon.inspect(&id);
    let pid = running["State"]["Pid"].as_i64().expect("a pid");
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).expect("the pid is the host's");
    assert_eq!(command, b"sleep\x0060\0");
    assert!(running["State"]["StartedAt"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')));
    assert_eq!(running["RestartCount"], 0);
    let listed = daemon.get("/containers/json").expect(200).json();
    assert_eq!(listed[0]["Id"], id.as_str());
    assert_eq!(listed[0]["Names"], json!(["/told"]));
    assert_eq!(listed[0]["Command"], "sleep 60");
    assert_eq!(listed[0]["State"], "running");
    assert!(listed[0]["Status"].as_str().is_some_and(|status| status.starts_with("Up ")));
    assert_eq!(listed[0]["Labels"], json!({"a": "b"}));
    daemon.remove(&id);
}

#[test]
fn the_list_is_filtered() {
    let daemon = Daemon::with_busybox();
    let up = daemon.run("up", &["sleep", "60"]);
    let down = daemon.run("down", &["sh", "-c", "exit 3"]);
    daemon.wait(&down);
    let fresh = daemon.create("fresh", json!({"Image": "busybox", "Labels": {"k": "v"}}));
    let names = |query: &str| -> String {
        let list = daemon.get(&format!("/containers/json?{query}")).expect(200).json();
        let names = list.as_array().expect("a list").iter().map(|c| c["Names"][0].as_str().expect("a name").to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    let filtered = |filters: &str| names(&format!("all=1&filters={}", crate::common::encode(filters)));
    assert_eq!(names(""), "/up");
    assert_eq!(names("all=1"), "/fresh /down /up");
    assert_eq!(names("limit=2"), "/fresh /down");
    assert_eq!(filtered(r#"{"status":["exited"]}"#), "/down");
    assert_eq!(filtered(r#"{"exited":["3"]}"#), "/down");
    assert_eq!(filtered(r#"{"label":["k=v"]}"#), "/fresh");
    assert_eq!(filtered(r#"{"label":["k"]}"#), "/fresh");
    assert_eq!(filtered(r#"{"name":["^/up$"]}"#), "/up");
    assert_eq!(filtered(r#"{"ancestor":["busybox"]}"#), "/fresh /down /up");
    assert_eq!(filtered(r#"{"before":["down"]}"#), "/up");
    assert_eq!(filtered(r#"{"since":["down"]}"#), "/fresh");
    assert_eq!(filtered(&format!(r#"{{"id":["{fresh}"]}}"#)), "/fresh");
    assert_eq!(filtered(r#"{"id":["nothing"]}"#), "");
    let answer = daemon.get(&format!("/containers/json?filters={}", crate::common::encode(r#"{"nosuch":["x"]}"#)));
    answer.refuses(400, "invalid filter 'nosuch'");
    let shown = daemon.docker(&["ps", "-a", "--format", "{{.Names}}\t{{.Status}}"]).expect(0);
    assert!(shown.out.starts_with("fresh\tCreated\ndown\tExited (3) "), "{shown:?}");
    daemon.remove(&up);
}

#[test]
fn containers_survive_an_orderly_restart_of_the_daemon() {
    let mut daemon = Daemon::with_busybox();
    let done = daemon.run("done", &["sh", "-c", "echo kept; exit 6"]);
    daemon.wait(&done);
    let running = daemon.run("running", &["sleep", "600"]);
    daemon.stop();
    daemon.start_again(&[]);
    assert_eq!(daemon.inspect(&done)["State"]["ExitCode"], 6);
    assert_eq!(daemon.logs(&done).0, "kept\n");
    let state = daemon.inspect(&running)["State"].clone();
    assert_eq!((&state["Status"], &state["Running"]), (&json!("exited"), &json!(false)));
    daemon.post(&format!("/containers/{running}/start")).expect(204);
    daemon.remove(&running);
}

#[test]
fn the_daemon_stops_although_a_container_ignores_it() {
    let mut daemon = Daemon::start(crate::common::World::new(), &["--shutdown-timeout", "1"]);
    crate::common::image::import_busybox(&daemon);
    daemon.run("stubborn", &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
    let start = Instant::now();
    daemon.stop();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}
