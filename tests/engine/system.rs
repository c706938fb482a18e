//! The system's own routes: ping, version, info, events, and those of a swarm that is not there.

use crate::common::Daemon;
use serde_json::json;

#[test]
fn ping_says_ok_and_what_it_speaks() {
    let daemon = Daemon::new();
    let get = daemon.get("/_ping").expect(200);
    assert_eq!(get.text(), "OK");
    assert_eq!(get.header("Content-Type"), Some("text/plain; charset=utf-8"));
    for answer in [get, daemon.request("HEAD", "/_ping", &[], b"").expect(200)] {
        assert_eq!(answer.header("Builder-Version"), Some("1"));
        assert_eq!(answer.header("Swarm"), Some("inactive"));
        assert_eq!(answer.header("Cache-Control"), Some("no-cache, no-store, must-revalidate"));
        assert_eq!(answer.header("Pragma"), Some("no-cache"));
    }
}

#[test]
fn version_is_taken_for_docker_28() {
    let daemon = Daemon::new();
    let version = daemon.get("/version").expect(200).json();
    assert_eq!(version["ApiVersion"], "1.51");
    assert_eq!(version["MinAPIVersion"], "1.24");
    assert_eq!(version["Os"], "linux");
    assert!(version["Version"].as_str().is_some_and(|v| v.starts_with("28.")), "{version}");
    for key in ["Arch", "KernelVersion", "GitCommit", "GoVersion", "BuildTime"] {
        assert!(version[key].is_string(), "{key} in {version}");
    }
    assert_eq!(version["Components"][0]["Name"], "Engine");
    assert_eq!(version["Components"][0]["Details"]["ApiVersion"], "1.51");
    daemon.docker(&["version"]).expect(0);
}

#[test]
fn info_counts_what_there_is() {
    let daemon = Daemon::with_busybox();
    let info = daemon.get("/info").expect(200).json();
    assert_eq!(info["Containers"], 0);
    assert_eq!(info["Images"], 1);
    daemon.create("", json!({"Image": "busybox"}));
    let running = daemon.run("", &["sleep", "60"]);
    let info = daemon.get("/info").expect(200).json();
    assert_eq!((&info["Containers"], &info["ContainersRunning"], &info["ContainersStopped"]), (&json!(2), &json!(1), &json!(1)));
    assert_eq!(info["OSType"], "linux");
    assert_eq!(info["DockerRootDir"], daemon.world.data_root.to_str().expect("UTF-8"));
    for key in [
        "ID",
        "Driver",
        "Architecture",
        "KernelVersion",
        "OperatingSystem",
        "Name",
        "CgroupDriver",
        "CgroupVersion",
        "ServerVersion",
        "SystemTime",
        "LoggingDriver",
        "DefaultRuntime",
    ] {
        assert!(info[key].is_string(), "{key} in {info}");
    }
    for key in ["NCPU", "MemTotal", "NFd", "NGoroutines", "NEventsListener"] {
        assert!(info[key].is_number(), "{key} in {info}");
    }
    assert_eq!(info["Swarm"]["LocalNodeState"], "inactive");
    let said = daemon.docker(&["info", "--format", "{{.ContainersRunning}} {{.ServerVersion}}"]).expect(0);
    assert!(said.out.starts_with("1 "), "{said:?}");
    let said = daemon.docker(&["info"]).expect(0);
    assert!(said.out.contains("Running: 1"), "{said:?}");
    daemon.remove(&running);
}

#[test]
fn the_daemons_id_is_kept() {
    let mut daemon = Daemon::new();
    let id = daemon.get("/info").expect(200).json()["ID"].clone();
    assert!(id.as_str().is_some_and(|id| id.len() >= 32), "{id}");
    daemon.stop();
    daemon.start_again(&[]);
    assert_eq!(daemon.get("/info").expect(200).json()["ID"], id);
    daemon.kill();
    daemon.start_again(&[]);
    assert_eq!(daemon.get("/info").expect(200).json()["ID"], id);
}

#[test]
fn routes_of_a_swarm_are_answered_as_without_one() {
    let daemon = Daemon::new();
    let words =
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
    for target in [
        "/swarm",
        "/nodes",
        "/nodes/x",
        "/services",
        "/services/x",
        "/tasks",
        "/tasks/x",
        "/secrets",
        "/secrets/x",
        "/configs",
        "/configs/x",
        "/swarm/unlockkey",
    ] {
        daemon.get(target).refuses(503, words);
    }
    for target in ["/services/x", "/secrets/x", "/configs/x", "/nodes/x"] {
        daemon.delete(target).refuses(503, words);
    }
    let plugins = daemon.get("/plugins").expect(200);
    assert_eq!(plugins.text().trim(), "[]");
    assert_eq!(daemon.docker(&["plugin", "ls", "-q"]).expect(0).trimmed(), "");
    let said = daemon.docker(&["node", "ls"]).expect(1);
    assert!(said.err.contains(words), "{said:?}");
}

#[test]
fn events_are_streamed_as_they_happen() {
    let daemon = Daemon::with_busybox();
    let mut stream = daemon.connect();
    stream.request("GET", "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%7D", &[], b"");
    assert_eq!(stream.read_head().expect(200).header("Content-Type"), Some("application/json"));
    let id = daemon.run("eventful", &["true"]);
    assert_eq!(daemon.wait(&id), 0);
    let rename = daemon.post(&format!("/containers/{id}/rename?name=later"));
    rename.expect(204);
    daemon.remove(&id);
    let mut last = 0;
    for action in ["create", "start", "die", "rename", "destroy"] {
        let event = stream.read_json_chunk();
        assert_eq!((&event["Type"], &event["Action"]), (&json!("container"), &json!(action)), "{event}");
        assert_eq!(event["Actor"]["ID"], id.as_str());
        assert_eq!(event["id"], id.as_str());
        assert_eq!(event["status"], action);
        assert_eq!(event["from"], "busybox");
        assert_eq!(event["scope"], "local");
        assert_eq!(event["Actor"]["Attributes"]["image"], "busybox");
        let name = if matches!(action, "rename" | "destroy") { "later" } else { "eventful" };
        assert_eq!(event["Actor"]["Attributes"]["name"], name);
        if action == "die" {
            assert_eq!(event["Actor"]["Attributes"]["exitCode"], "0");
        }
        let nanoseconds = event["timeNano"].as_i64().expect("timeNano");
        assert!(nanoseconds > last, "events are ordered in time");
        assert_eq!(event["time"].as_i64(), Some(nanoseconds / 1_000_000_000));
        last = nanoseconds;
    }
}

#[test]
fn past_events_are_told_again() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("told", json!({"Image": "busybox"}));
    daemon.remove(&id);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let events = daemon.get(&format!("/events?since={}&until={}", now - 60, now + 1));
    let actions: Vec<String> = events
        .json_lines()
        .iter()
        .map(|e| format!("{} {}", e["Type"].as_str().unwrap_or(""), e["Action"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(actions, ["image tag", "image import", "container create", "container destroy"]);
    let filters = crate::common::encode(r#"{"event":["create"],"container":["told"]}"#);
    let events = daemon.get(&format!("/events?since={}&until={}&filters={filters}", now - 60, now + 1)).json_lines();
    assert_eq!(events.len(), 1);
    let until = (now + 1).to_string();
    let said = daemon.docker(&[
        "events",
        "--since",
        "1m",
        "--until",
        &until,
        "--filter",
        "event=destroy",
        "--format",
        "{{.Action}} {{.Actor.Attributes.name}}",
    ]);
    assert_eq!(said.expect(0).trimmed(), "destroy told");
}

#[test]
fn bad_event_queries_are_refused() {
    let daemon = Daemon::new();
    for query in ["since=yesterday", "until=x", "filters=%7B", "filters=%7B%22nosuch%22%3A%5B%22a%22%5D%7D"] {
        daemon.get(&format!("/events?{query}")).expect(400);
    }
}

#[test]
fn a_second_daemon_on_the_same_root_refuses() {
    let daemon = Daemon::new();
    let mut command = daemon.world.daemon_command(&["-H", &format!("unix://{}", daemon.world.path("other.sock").display())]);
    let status = command.arg("--pidfile").arg(daemon.world.path("other.pid")).status().expect("it starts");
    assert!(!status.success());
    daemon.get("/_ping").expect(200);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut daemon = Daemon::new();
    daemon.kill();
    assert!(daemon.world.socket.exists(), "SIGKILL leaves the socket");
    daemon.start_again(&[]);
    daemon.get("/_ping").expect(200);
}

#[test]
fn an_unknown_key_in_the_config_file_is_named() {
    let world = crate::common::World::new();
    let path = world.path("daemon.json");
    std::fs::write(&path, r#"{"nonsense": true}"#).expect("the world can be written");
    let status = world.daemon_command(&["--config-file", path.to_str().expect("UTF-8")]).status().expect("it starts");
    assert!(!status.success());
    let log = std::fs::read_to_string(world.path("daemon.log")).expect("a log");
    assert!(log.contains("nonsense"), "{log}");
}

#[test]
fn the_socket_is_for_root_alone_where_there_is_no_docker_group() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let daemon = Daemon::new();
    let metadata = std::fs::metadata(daemon.socket()).expect("the socket");
    let mode = metadata.permissions().mode() & 0o777;
    match metadata.gid() {
        0 => assert!(mode == 0o600 || mode == 0o660, "{mode:o}"),
        _ => assert_eq!(mode, 0o660),
    }
    assert_eq!(std::fs::metadata(&daemon.world.data_root).expect("the root").permissions().mode() & 0o007, 0);
}
