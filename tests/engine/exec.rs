//! `docker exec`: another program in a container that runs.

use crate::common::{Daemon, eventually};
use serde_json::json;
use std::time::Duration;

/// A daemon with a container `box` that sleeps.
fn with_box() -> Daemon {
    let daemon = Daemon::with_busybox();
    daemon.run("box", &["sleep", "600"]);
    daemon
}

#[test]
fn output_and_status_are_the_programs() {
    let daemon = with_box();
    let said = daemon.docker(&["exec", "box", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (3, "out\n", "err\n"));
    daemon.docker(&["exec", "box", "sh", "-c", "kill -9 $$"]).expect(137);
    let said = daemon.docker(&["exec", "box", "nosuch"]).expect(127);
    assert!(
        said.out.contains("exec: \"nosuch\": executable file not found in $PATH")
            || said.err.contains("executable file not found in $PATH"),
        "{said:?}"
    );
    daemon.docker(&["exec", "box", "/etc/passwd"]).expect(126);
    daemon.remove("box");
}

#[test]
fn it_sees_the_containers_processes() {
    let daemon = with_box();
    let said = daemon.docker(&["exec", "box", "ps", "-o", "pid,args"]).expect(0);
    assert!(said.out.contains("1 sleep 600"), "{said:?}");
    daemon.docker(&["exec", "box", "kill", "-0", "1"]).expect(0);
    daemon.remove("box");
}

#[test]
fn user_workdir_and_environment() {
    let daemon = with_box();
    let said =
        daemon.docker(&["exec", "-u", "alice", "-w", "/tmp", "-e", "A=b", "box", "sh", "-c", "id -un; pwd; echo $A $HOME"]).expect(0);
    assert_eq!(said.out, "alice\n/tmp\nb /home/alice\n");
    let said = daemon.docker(&["exec", "-u", "nosuch", "box", "id"]);
    assert!(
        said.code != 0 && (said.err.clone() + &said.out).contains("unable to find user nosuch: no matching entries in passwd file"),
        "{said:?}"
    );
    let said = daemon.docker(&["exec", "-w", "/no/such", "box", "pwd"]);
    assert!(said.code == 126 || said.code == 127, "{said:?}");
    daemon.remove("box");
}

#[test]
fn input_reaches_it() {
    let daemon = with_box();
    let said = daemon.docker_with_input(&["exec", "-i", "box", "cat"], b"through\n").expect(0);
    assert_eq!(said.out, "through\n");
    let much = vec![b'y'; 3_000_000];
    assert_eq!(daemon.docker_with_input(&["exec", "-i", "box", "wc", "-c"], &much).expect(0).trimmed(), "3000000");
    daemon.remove("box");
}

#[test]
fn a_terminal_is_given_and_resized() {
    let daemon = with_box();
    let mut terminal = daemon.docker_tty(&["exec", "-it", "box", "sh"]);
    terminal.expect("# ");
    terminal.send("tty; stty size; echo do\"\"ne\r");
    let shown = terminal.expect("done");
    assert!(shown.contains("/dev/pts/") && shown.contains("24 80"), "{shown:?}");
    terminal.resize(40, 120);
    terminal.send("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.05; done; echo res\"\"ized\r");
    terminal.expect("resized");
    terminal.send("exit 9\r");
    assert_eq!(terminal.finish().0, 9);
    daemon.remove("box");
}

#[test]
fn detached_runs_on() {
    let daemon = with_box();
    daemon.docker(&["exec", "-d", "box", "sh", "-c", "echo yes >/tmp/made"]).expect(0);
    eventually("the file", Duration::from_secs(10), || (daemon.docker(&["exec", "box", "cat", "/tmp/made"]).out == "yes\n").then_some(()));
    daemon.remove("box");
}

#[test]
fn inspect_tells_its_life() {
    let daemon = with_box();
    let body =
        json!({"Cmd": ["sh", "-c", "read x; exit 5"], "AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "Tty": false});
    let id = daemon.post_json("/containers/box/exec", &body).expect(201).json()["Id"].as_str().expect("an id").to_owned();
    let before = daemon.get(&format!("/exec/{id}/json")).expect(200).json();
    assert_eq!((&before["Running"], &before["ExitCode"], &before["Pid"]), (&json!(false), &json!(null), &json!(0)));
    assert_eq!(before["ProcessConfig"]["entrypoint"], "sh");
    let mut stream = daemon.connect();
    let headers = [("Content-Type", "application/json"), ("Connection", "Upgrade"), ("Upgrade", "tcp")];
    stream.request("POST", &format!("/exec/{id}/start"), &headers, b"{}");
    let head = stream.read_head().expect(101);
    assert_eq!(head.header("Upgrade"), Some("tcp"));
    assert_eq!(head.header("Content-Type"), Some("application/vnd.docker.multiplexed-stream"));
    // The head comes before the program.
    let running = eventually("it runs", Duration::from_secs(10), || {
        Some(daemon.get(&format!("/exec/{id}/json")).expect(200).json()).filter(|exec| exec["Running"] == true)
    });
    assert!(running["Pid"].as_i64().is_some_and(|pid| pid > 1), "{running}");
    assert_eq!(daemon.inspect("box")["ExecIDs"], json!([id]));
    stream.send("go\n");
    assert_eq!(stream.read_to_end(), b"");
    let after = daemon.get(&format!("/exec/{id}/json")).expect(200).json();
    assert_eq!((&after["Running"], &after["ExitCode"]), (&json!(false), &json!(5)));
    let answer = daemon.post_json(&format!("/exec/{id}/start"), &json!({"Detach": true})).expect(409);
    assert!(!answer.message().is_empty());
    daemon.remove("box");
}

#[test]
fn a_container_that_does_not_run_takes_none() {
    let daemon = Daemon::with_busybox();
    let id = daemon.create("still", json!({"Image": "busybox"}));
    daemon.post_json("/containers/still/exec", &json!({"Cmd": ["true"]})).refuses(409, &format!("container {id} is not running"));
    daemon.post_json("/containers/nosuch/exec", &json!({"Cmd": ["true"]})).refuses(404, "No such container: nosuch");
    daemon.get("/exec/nosuch/json").refuses(404, "No such exec instance: nosuch");
    daemon.post_json("/exec/nosuch/start", &json!({})).refuses(404, "No such exec instance: nosuch");
    let running = daemon.run("up", &["sleep", "60"]);
    daemon.post_json("/containers/up/exec", &json!({})).refuses(400, "No exec command specified");
    daemon.remove(&running);
}

#[test]
fn it_ends_with_its_container() {
    let daemon = with_box();
    let child = daemon.docker_spawn(&["exec", "box", "sleep", "500"]);
    eventually("the exec", Duration::from_secs(10), || daemon.docker(&["exec", "box", "ps"]).out.contains("sleep 500").then_some(()));
    daemon.docker(&["kill", "box"]).expect(0);
    let output = child.wait_with_output().expect("our child");
    assert_eq!(output.status.code(), Some(137));
    daemon.remove("box");
}
