//! Listening sockets: unix, tcp, and those that systemd hands over.

use crate::sys;
use crate::sys::socket::SockAddr;
use std::io;
use std::net::ToSocketAddrs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const BACKLOG: i32 = 511;
/// systemd's first descriptor (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

/// A socket that is listened on.
pub struct Listener {
    pub socket: OwnedFd,
    pub tcp: bool,
    /// The socket file to remove at an orderly stop.
    pub path: Option<PathBuf>,
    /// As it was asked for, for the log.
    pub name: String,
    /// The port of a tcp listener: never handed to a container.
    pub port: Option<u16>,
}

/// Opens what `-H` names; several for `fd://`.
pub fn listen(host: &str, group: &str, group_asked: bool) -> Result<Vec<Listener>, String> {
    let failed = |e: &io::Error| format!("failed to load listeners: {host}: {}", crate::error::strerror(e));
    match host.split_once("://").unwrap_or(("", host)) {
        ("unix", path) => {
            let path = if path.is_empty() { "/var/run/docker.sock" } else { path };
            unix(Path::new(path), group, group_asked).map(|l| vec![l]).map_err(|e| failed(&e))
        }
        ("tcp", address) => tcp(address).map_err(|e| failed(&e)),
        ("fd", name) => passed(name).map_err(|e| failed(&e)),
        _ => Err(format!("invalid bind address ({host}): should be unix://, tcp:// or fd://")),
    }
}

fn unix(path: &Path, group: &str, group_asked: bool) -> io::Result<Listener> {
    let address = SockAddr::unix(path.as_os_str().as_encoded_bytes())?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    remove_stale(path, &address)?;
    let gid = match group_id(group) {
        Some(gid) => Some(gid),
        None if group_asked && !group.is_empty() => {
            return Err(io::Error::other(format!("group {group} not found")));
        }
        None => None,
    };
    let socket = sys::socket::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    // The mask around bind leaves no moment in which others may connect.
    let mask = sys::fs::umask(if gid.is_some() { 0o117 } else { 0o177 });
    let bound = sys::socket::bind(socket.as_fd(), &address);
    sys::fs::umask(mask);
    bound?;
    if let Some(gid) = gid {
        let c_path = sys::cstring(path.as_os_str().as_encoded_bytes())?;
        sys::fs::fchownat(sys::fd::AT_FDCWD, &c_path, 0, gid, libc::AT_SYMLINK_NOFOLLOW)?;
    }
    sys::socket::listen(socket.as_fd(), BACKLOG)?;
    Ok(Listener { socket, tcp: false, path: Some(path.to_path_buf()), name: format!("unix://{}", path.display()), port: None })
}

/// Removes a socket file on which nobody listens. A daemon that was killed may be survived for a moment by a child that was
/// just being forked and still holds its listener: that one is waited for, a second at most.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    for _ in 0..50 {
        let probe = sys::socket::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
        match sys::socket::connect(probe.as_fd(), address) {
            Ok(()) => std::thread::sleep(std::time::Duration::from_millis(20)),
            Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => return std::fs::remove_file(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
}

/// A group's number from /etc/group, or the number itself. Read by hand: a static binary must not load NSS modules.
fn group_id(name: &str) -> Option<libc::gid_t> {
    if let Ok(gid) = name.parse() {
        return Some(gid);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let mut lines = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&name)).and_then(|fields| fields.get(2)?.parse().ok())
}

fn tcp(address: &str) -> io::Result<Vec<Listener>> {
    let address = address.trim_end_matches('/');
    let with_port = if address.contains(':') { address.to_string() } else { format!("{address}:2375") };
    let with_port = if with_port.starts_with(':') { format!("0.0.0.0{with_port}") } else { with_port };
    let local = ["127.", "localhost", "[::1]"].iter().any(|prefix| with_port.starts_with(prefix));
    if !local {
        log::warn!("tcp://{with_port} is open to everyone who reaches it, without TLS: whoever connects is root on this host");
    }
    let mut listeners = Vec::new();
    for target in with_port.to_socket_addrs()? {
        let domain = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = sys::socket::socket(domain, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        sys::socket::setsockopt_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        sys::socket::bind(socket.as_fd(), &SockAddr::inet(target))?;
        sys::socket::listen(socket.as_fd(), BACKLOG)?;
        let port = sys::socket::getsockname(socket.as_fd())?.to_inet().map(|a| a.port());
        listeners.push(Listener { socket, tcp: true, path: None, name: format!("tcp://{target}"), port });
    }
    Ok(listeners)
}

/// The sockets of socket activation: LISTEN_PID must name us, LISTEN_FDS counts them from 3.
fn passed(name: &str) -> io::Result<Vec<Listener>> {
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<i32>().ok());
    if number("LISTEN_PID") != Some(sys::process::getpid()) {
        return Err(io::Error::other("no sockets found via socket activation: make sure the service was started by systemd"));
    }
    let count = number("LISTEN_FDS").unwrap_or(0);
    let wanted = name.trim_start_matches('/');
    let mut listeners = Vec::new();
    for fd in FIRST_PASSED..FIRST_PASSED + count.clamp(0, 64) {
        if !matches!(wanted, "" | "*") && wanted.parse() != Ok(fd) {
            continue;
        }
        let socket = sys::fd::dup_cloexec(sys::fd::borrow(fd), FIRST_PASSED)?;
        sys::fd::set_nonblocking(socket.as_fd(), true)?;
        let address = sys::socket::getsockname(socket.as_fd())?.to_inet();
        listeners.push(Listener {
            socket,
            tcp: address.is_some(),
            path: None,
            name: format!("fd://{fd}"),
            port: address.map(|a| a.port()),
        });
    }
    if listeners.is_empty() {
        return Err(io::Error::other("no sockets found via socket activation"));
    }
    Ok(listeners)
}
