//! Clients other than the docker CLI.

use crate::common::Daemon;
use crate::needs;
use std::process::Command;

#[test]
fn docker_py_drives_containers() {
    let library = Command::new("python3").args(["-c", "import docker"]).output().is_ok_and(|output| output.status.success());
    needs!(library, "docker-py");
    let daemon = Daemon::with_busybox();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engine/docker_py.py");
    let output = Command::new("timeout")
        .args(["120", "python3", script])
        .env("DOCKER_HOST", format!("unix://{}", daemon.socket().display()))
        .env("HOME", &daemon.world.dir)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("timeout starts");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

#[test]
fn curl_follows_the_readme() {
    let daemon = Daemon::with_busybox();
    let curl = |args: &[&str], path: &str| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail-with-body", "--max-time", "30", "--unix-socket"]).arg(daemon.socket()).args(args);
        let output = command.arg(format!("http://localhost{path}")).output().expect("curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?} {path}: {text} {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let json = ["-H", "Content-Type: application/json", "-d"];
    let body = r#"{"Image": "busybox", "Cmd": ["sh", "-c", "for i in 1 2 3; do echo line $i; done"], "Tty": true, "HostConfig": {"NetworkMode": "none"}}"#;
    let created = curl(&[json[0], json[1], json[2], body], "/containers/create?name=first");
    assert!(created.starts_with("{\"Id\":\""), "{created}");
    curl(&["-X", "POST"], "/containers/first/start");
    assert_eq!(curl(&[], "/containers/first/logs?stdout=1&follow=1"), "line 1\r\nline 2\r\nline 3\r\n");
    assert_eq!(curl(&["-X", "POST"], "/containers/first/wait").trim(), "{\"StatusCode\":0}");
    curl(&["-X", "DELETE"], "/containers/first");
}
