//! A dockerd beside ours, for comparing answers: own root, own socket, no bridge, no firewall.

use super::{World, find_program};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running dockerd (with the containerd that it starts). Dropped: ended, its world cleared.
pub struct Dockerd {
    pub socket: PathBuf,
    child: Child,
    world: World,
}

impl Dockerd {
    /// `None` where dockerd is not installed.
    #[track_caller]
    pub fn start() -> Option<Dockerd> {
        let program = find_program("dockerd")?;
        let world = World::new();
        let (socket, log) = (world.socket.clone(), fs::File::create(world.path("daemon.log")).expect("the world can be written"));
        let config = world.path("daemon.json");
        fs::write(&config, "{}").expect("the world can be written");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "unshare", "--net"]).arg(program);
        command.arg("-H").arg(format!("unix://{}", socket.display())).arg("--config-file").arg(config);
        command.arg("--data-root").arg(&world.data_root).arg("--exec-root").arg(&world.exec_root).arg("--pidfile").arg(&world.pid_file);
        command.args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-masq=false"]);
        command.arg("--cgroup-parent").arg(format!("/{}", world.name));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("descriptors are left")).stderr(log);
        let child = command.spawn().expect("setpriv (util-linux) starts");
        let dockerd = Dockerd { socket, child, world };
        super::eventually("dockerd's socket", Duration::from_secs(60), || UnixStream::connect(&dockerd.socket).ok());
        Some(dockerd)
    }

    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> super::Answer {
        let mut connection = super::Connection::open(&self.socket);
        connection.request(method, target, headers, body);
        connection.read_answer_to(method)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.world.path("daemon.log")).unwrap_or_default()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = coracle::sys::process::kill(pid, libc::SIGTERM);
        }
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
