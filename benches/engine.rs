//! An engine under measurement: ours or dockerd, spoken to in the same way over its socket.

use crate::common::http::{Answer, Connection};
use crate::common::{World, find_program, image, leftovers};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Coracle,
    Dockerd,
}

pub struct Engine {
    kind: Kind,
    world: World,
    child: Child,
    /// From its start to the first answered ping.
    pub boot: Duration,
}

/// Unpacks the busybox root, for those who take a directory.
pub fn unpack_root(dir: &Path) {
    let tar = image::busybox_root().dir("proc", 0o755).dir("dev", 0o755).dir("sys", 0o755).finish();
    tar::Archive::new(&tar[..]).unpack(dir).expect("our own archive");
}

/// The release binary that `make bench` names, or the one that was built beside this program.
fn coracle() -> PathBuf {
    std::env::var_os("CORACLE").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_coracle")), PathBuf::from)
}

impl Engine {
    /// Starts it in a world of its own; `None` where it is not installed.
    pub fn boot(kind: Kind) -> Option<Engine> {
        let world = World::new();
        let program = match kind {
            Kind::Coracle => coracle(),
            Kind::Dockerd => find_program("dockerd")?,
        };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "unshare", "--net"]).arg(program);
        if kind == Kind::Coracle {
            command.args(["daemon", "--log-level", "warn"]);
        } else {
            let config = world.path("none.json");
            fs::write(&config, "{}").expect("the world can be written");
            command.args(["--log-level", "warn", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--config-file"]).arg(config);
        }
        command.arg("-H").arg(format!("unix://{}", world.socket.display())).arg("--bridge").arg("none");
        command.arg("--data-root").arg(&world.data_root).arg("--exec-root").arg(&world.exec_root).arg("--pidfile").arg(&world.pid_file);
        command.arg("--cgroup-parent").arg(format!("/{}", world.name));
        let log = fs::File::create(world.path("daemon.log")).expect("the world can be written");
        let start = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("setpriv (util-linux) starts");
        let mut engine = Engine { kind, world, child, boot: Duration::ZERO };
        while std::os::unix::net::UnixStream::connect(&engine.world.socket).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "no socket within a minute");
            std::thread::sleep(Duration::from_micros(200));
        }
        engine.request("GET", "/_ping", b"").expect(200);
        engine.boot = start.elapsed();
        Some(engine)
    }

    fn connect(&self) -> Connection {
        let connection = Connection::open(&self.world.socket);
        connection.set_patience(Duration::from_secs(120));
        connection
    }

    fn request(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        send(&mut self.connect(), method, target, body)
    }

    pub fn import(&self) {
        let tar = image::with_probe(image::busybox_root()).finish();
        let answer = self.request("POST", "/images/create?fromSrc=-&repo=bench&changes=ENV%20PATH%3D%2Fbin", &tar).expect(200);
        assert!(answer.text().contains("sha256:"), "{}", answer.text());
    }

    fn create_on(&self, connection: &mut Connection, command: &[&str], log: serde_json::Value) -> String {
        let body = json!({"Image": "bench", "Cmd": command, "HostConfig": {"NetworkMode": "none", "LogConfig": log}}).to_string();
        let answer = send(connection, "POST", "/containers/create", body.as_bytes()).expect(201).json();
        answer["Id"].as_str().expect("an id").to_owned()
    }

    fn create(&self, command: &[&str]) -> String {
        self.create_on(&mut self.connect(), command, json!({}))
    }

    pub fn create_idle(&self) -> String {
        self.create(&["sleep", "1000"])
    }

    pub fn start_sleeper(&self) -> String {
        let id = self.create_idle();
        self.request("POST", &format!("/containers/{id}/start"), b"").expect(204);
        id
    }

    pub fn remove(&self, id: &str) {
        self.request("DELETE", &format!("/containers/{id}?force=1"), b"").expect(204);
    }

    /// Create, start, wait and delete `true`, over one connection.
    pub fn cycle(&self) {
        let mut connection = self.connect();
        let id = self.create_on(&mut connection, &["true"], json!({}));
        send(&mut connection, "POST", &format!("/containers/{id}/start"), b"").expect(204);
        let code = send(&mut connection, "POST", &format!("/containers/{id}/wait"), b"").expect(200).json()["StatusCode"].clone();
        assert_eq!(code, 0);
        send(&mut connection, "DELETE", &format!("/containers/{id}"), b"").expect(204);
    }

    /// Runs `true` in a container and waits for its end.
    pub fn exec(&self, id: &str) {
        let body = json!({"Cmd": ["true"], "AttachStdout": true}).to_string();
        let exec = self.request("POST", &format!("/containers/{id}/exec"), body.as_bytes()).expect(201).json();
        let target = format!("/exec/{}/start", exec["Id"].as_str().expect("an id"));
        let answer = self.request("POST", &target, b"{\"Detach\":false}").expect(200);
        assert!(answer.body.is_empty(), "{}", answer.text());
    }

    /// Starts `count` containers, made before, by `clients` at once; starts per second.
    pub fn concurrent_starts(&self, count: usize, clients: usize) -> f64 {
        let ids: Vec<String> = (0..count).map(|_| self.create(&["true"])).collect();
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    let mut connection = self.connect();
                    while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                        send(&mut connection, "POST", &format!("/containers/{id}/start"), b"").expect(204);
                    }
                });
            }
        });
        let rate = count as f64 / start.elapsed().as_secs_f64();
        ids.iter().for_each(|id| self.remove(id));
        rate
    }

    /// GETs answered per second over `connections` kept alive.
    pub fn requests_per_s(&self, target: &str, connections: usize, time: Duration) -> f64 {
        let answered = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..connections {
                scope.spawn(|| {
                    let mut connection = self.connect();
                    while start.elapsed() < time {
                        send(&mut connection, "GET", target, b"").expect(200);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        answered.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
    }

    /// MB/s of a container's stdout into the json-file log, and of reading that back.
    pub fn log_speed(&self, megabytes: u64) -> (f64, f64) {
        let log = json!({"Type": "json-file", "Config": {"max-size": "4g"}});
        let id = self.create_on(&mut self.connect(), &["/probe", "lines", &format!("{megabytes}000000")], log);
        let start = Instant::now();
        self.request("POST", &format!("/containers/{id}/start"), b"").expect(204);
        self.request("POST", &format!("/containers/{id}/wait"), b"").expect(200);
        let write = megabytes as f64 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut connection = self.connect();
        connection.request("GET", &format!("/containers/{id}/logs?stdout=1"), &[], b"");
        connection.read_head().expect(200);
        let mut bytes = 0;
        while let Some(chunk) = connection.read_chunk() {
            bytes += chunk.len();
        }
        // Each line of 100 bytes comes in a frame with a head of 8.
        assert_eq!(bytes as u64, megabytes * 1_080_000, "the log is not whole");
        let read = megabytes as f64 / start.elapsed().as_secs_f64();
        self.remove(&id);
        (write, read)
    }

    /// MB/s of a container's stdout through an attached connection, without a log.
    pub fn attach_speed(&self, megabytes: u64) -> f64 {
        let id = self.create_on(&mut self.connect(), &["/probe", "lines", &format!("{megabytes}000000")], json!({"Type": "none"}));
        let mut connection = self.connect();
        connection.request(
            "POST",
            &format!("/containers/{id}/attach?stdout=1&stream=1"),
            &[("Connection", "Upgrade"), ("Upgrade", "tcp")],
            b"",
        );
        connection.read_head().expect(101);
        let start = Instant::now();
        self.request("POST", &format!("/containers/{id}/start"), b"").expect(204);
        let mut bytes = 0;
        loop {
            let read = connection.read_some(1 << 20).len();
            if read == 0 {
                break;
            }
            bytes += read;
        }
        assert!(bytes as u64 >= megabytes * 1_000_000, "attach lost bytes: {bytes}");
        let speed = megabytes as f64 / start.elapsed().as_secs_f64();
        self.remove(&id);
        speed
    }

    /// Proportional set size, in bytes, of every process of the engine (shims too), its containers' own not counted.
    pub fn memory(&self) -> u64 {
        let own = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|c| String::from_utf8_lossy(&c).contains(self.world.dir.to_str().unwrap_or("?")))
        };
        leftovers::processes(&self.world).iter().filter(|pid| own(pid)).map(|pid| pss(*pid)).sum()
    }

    /// Bytes of the programs that the engine consists of.
    pub fn size_on_disk(&self) -> u64 {
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        match self.kind {
            Kind::Coracle => size(coracle()),
            Kind::Dockerd => {
                let set = ["dockerd", "containerd", "containerd-shim-runc-v2", "runc", "docker-proxy", "docker-init"];
                set.iter().filter_map(|name| find_program(name)).map(size).sum()
            }
        }
    }
}

fn send(connection: &mut Connection, method: &str, target: &str, body: &[u8]) -> Answer {
    let headers: &[(&str, &str)] = if body.starts_with(b"{") { &[("Content-Type", "application/json")] } else { &[] };
    connection.request(method, target, headers, body);
    connection.read_answer_to(method)
}

fn pss(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix("Pss:")).and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = coracle::sys::process::kill(pid, libc::SIGTERM);
        }
        let end = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
