//! Host names to addresses without the C library's resolver (which loads the host's NSS modules): /etc/hosts,
//! /etc/resolv.conf, UDP and TCP.

use super::dns::{self, Reply};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Files larger than this are not host tables.
const FILE_MAX: u64 = 1 << 20;
/// Addresses kept for one host; ureq takes no more.
const ADDRESSES_MAX: usize = 16;

/// Where names are looked up.
#[derive(Clone, Debug)]
pub struct Names {
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
    /// The port that name servers listen on; 53 but in tests.
    pub port: u16,
}

impl Default for Names {
    fn default() -> Names {
        Names { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into(), port: 53 }
    }
}

/// resolv.conf's part that matters here.
#[derive(Debug, PartialEq, Eq)]
struct Conf {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
    timeout: Duration,
    attempts: u32,
}

impl Names {
    /// The addresses of a host, IPv4 first; an empty list means that there is no such host.
    pub fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![address]);
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let listed = hosts_entries(&read_bounded(&self.hosts), &name);
        if !listed.is_empty() {
            return Ok(listed);
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let conf = parse_conf(&read_bounded(&self.resolv_conf));
        let mut last = Ok(Vec::new());
        for candidate in candidates(host, &conf) {
            match self.ask_servers(&candidate, &conf) {
                Ok(found) if !found.is_empty() => return Ok(found),
                other => last = other,
            }
        }
        last
    }

    fn ask_servers(&self, name: &str, conf: &Conf) -> io::Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        let mut failure = None;
        for kind in [dns::TYPE_A, dns::TYPE_AAAA] {
            match self.ask_kind(name, kind, conf) {
                Ok(addresses) => found.extend(addresses),
                Err(e) => failure = Some(e),
            }
        }
        match failure {
            Some(e) if found.is_empty() => Err(e),
            _ => Ok(found),
        }
    }

    fn ask_kind(&self, name: &str, kind: u16, conf: &Conf) -> io::Result<Vec<IpAddr>> {
        let mut failure = io::Error::from(io::ErrorKind::TimedOut);
        for _ in 0..conf.attempts {
            for server in &conf.servers {
                let server = SocketAddr::new(*server, self.port);
                match ask(server, name, kind, conf.timeout) {
                    Ok(Reply::Addresses(found)) => return Ok(found),
                    Ok(Reply::NoSuchName) => return Ok(Vec::new()),
                    Ok(Reply::Truncated | Reply::Failed) => failure = io::Error::other("server misbehaving"),
                    Err(e) => failure = e,
                }
            }
        }
        Err(failure)
    }
}

/// One question to one server: by UDP, and again by TCP when the answer did not fit.
fn ask(server: SocketAddr, name: &str, kind: u16, timeout: Duration) -> io::Result<Reply> {
    let mut id = [0; 2];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut id).map_err(|_| io::Error::other("no random numbers"))?;
    let Some(query) = dns::query(u16::from_ne_bytes(id), name, kind) else { return Ok(Reply::NoSuchName) };
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Connected: the kernel drops what comes from anywhere else, and the port is random.
    socket.connect(server)?;
    socket.send(&query)?;
    let deadline = Instant::now() + timeout;
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            other => other?,
        };
        match dns::reply(&query, buffer.get(..length).unwrap_or_default(), kind) {
            Some(Reply::Truncated) => return ask_tcp(server, &query, kind, timeout),
            Some(reply) => return Ok(reply),
            None => {} // not the answer to this question
        }
    }
}

fn ask_tcp(server: SocketAddr, query: &[u8], kind: u16, timeout: Duration) -> io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut framed = u16::try_from(query.len()).unwrap_or(0).to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    dns::reply(query, &message, kind).ok_or_else(|| io::Error::other("server misbehaving"))
}

fn read_bounded(path: &std::path::Path) -> String {
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // An unreadable table is an empty one, as it is to the C library.
        let _ = file.take(FILE_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn hosts_entries(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

fn parse_conf(text: &str) -> Conf {
    let mut conf = Conf { servers: Vec::new(), search: Vec::new(), ndots: 1, timeout: Duration::from_secs(5), attempts: 2 };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => conf.servers.extend(words.next().and_then(|w| w.split('%').next()?.parse::<IpAddr>().ok())),
            Some("search" | "domain") => conf.search = words.map(|w| w.trim_end_matches('.').to_owned()).take(6).collect(),
            Some("options") => {
                for (key, value) in words.filter_map(|w| w.split_once(':')) {
                    let Ok(number) = value.parse::<u32>() else { continue };
                    match key {
                        "ndots" => conf.ndots = number.min(15) as usize,
                        "timeout" => conf.timeout = Duration::from_secs(number.clamp(1, 30).into()),
                        "attempts" => conf.attempts = number.clamp(1, 5),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    conf.servers.truncate(3);
    if conf.servers.is_empty() {
        conf.servers = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    conf
}

/// The full names to ask for, in order; a trailing dot means that the name is full already.
fn candidates(host: &str, conf: &Conf) -> Vec<String> {
    if let Some(full) = host.strip_suffix('.') {
        return vec![full.into()];
    }
    let mut names: Vec<String> = conf.search.iter().filter(|s| !s.is_empty()).map(|domain| format!("{host}.{domain}")).collect();
    let place = if host.matches('.').count() >= conf.ndots { 0 } else { names.len() };
    names.insert(place, host.into());
    names
}

/// [`Names`] as ureq wants it; remembers the last address for error messages.
#[derive(Clone, Debug, Default)]
pub struct Stub {
    pub names: Names,
    pub last: Arc<Mutex<Option<SocketAddr>>>,
}

impl Resolver for Stub {
    fn resolve(&self, uri: &Uri, config: &Config, _timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let found = self.names.lookup(host).map_err(ureq::Error::Io)?;
        let mut out = self.empty();
        for address in config.ip_family().keep_wanted(found.into_iter().map(|ip| SocketAddr::new(ip, port))).take(ADDRESSES_MAX) {
            out.push(address);
        }
        if let (Ok(mut last), Some(address)) = (self.last.lock(), out.iter().next()) {
            *last = Some(*address);
        }
        if out.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_the_c_library_does() {
        let text = "127.0.0.1 localhost\n::1 both # alias\n1.2.3.4\tone two Both\nbad line\n";
        assert_eq!(hosts_entries(text, "both"), ["1.2.3.4".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert!(hosts_entries(text, "alias").is_empty());
    }

    #[test]
    fn conf_and_candidates() {
        let conf = parse_conf("search a.b. c\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\noptions ndots:2 timeout:1 attempts:9 x\n");
        assert_eq!(conf.servers.len(), 2);
        assert_eq!((conf.ndots, conf.timeout.as_secs(), conf.attempts), (2, 1, 5));
        assert_eq!(candidates("host", &conf), ["host.a.b", "host.c", "host"]);
        assert_eq!(candidates("x.y.z", &conf), ["x.y.z", "x.y.z.a.b", "x.y.z.c"]);
        assert_eq!(candidates("x.", &conf), ["x"]);
        assert_eq!(parse_conf("").servers.len(), 2);
    }

    #[test]
    fn addresses_need_no_lookup() {
        let names = Names { hosts: "/nonexistent".into(), resolv_conf: "/nonexistent".into(), port: 1 };
        assert_eq!(names.lookup("[::1]").unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.lookup("10.1.2.3").unwrap(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.lookup("localhost").unwrap().len(), 2);
    }

    #[test]
    fn a_truncated_answer_is_asked_again_by_tcp() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        let tcp = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            for _ in 0..2 {
                // A: by UDP "truncated", then the answer by TCP; AAAA: none.
                let (length, peer) = udp.recv_from(&mut buffer).unwrap();
                let mut message = buffer[..length].to_vec();
                let is_a = message[length - 3] == 1;
                message[2..4].copy_from_slice(&if is_a { 0x8380u16 } else { 0x8180 }.to_be_bytes());
                udp.send_to(&message, peer).unwrap();
                if is_a {
                    let (mut stream, _) = tcp.accept().unwrap();
                    let mut size = [0; 2];
                    stream.read_exact(&mut size).unwrap();
                    let mut message = vec![0; usize::from(u16::from_be_bytes(size))];
                    stream.read_exact(&mut message).unwrap();
                    message[2..4].copy_from_slice(&0x8180u16.to_be_bytes());
                    message[7] = 1;
                    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 5, 6, 7, 8]);
                    stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
                    stream.write_all(&message).unwrap();
                }
            }
        });
        let dir = std::env::temp_dir().join(format!("coracle-resolver-{}-{port}", std::process::id()));
        std::fs::write(&dir, "nameserver 127.0.0.1\n").unwrap();
        let names = Names { hosts: "/nonexistent".into(), resolv_conf: dir.clone(), port };
        let found = names.lookup("registry.example");
        std::fs::remove_file(dir).unwrap();
        server.join().unwrap();
        assert_eq!(found.unwrap(), ["5.6.7.8".parse::<IpAddr>().unwrap()]);
    }
}
