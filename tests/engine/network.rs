//! Networks from outside: a "host" namespace with the daemon, and an "outside" one across a veth.

use crate::common::cli::Said;
use crate::common::{Daemon, eventually};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The host's address towards the outside, and the outside's own.
const HOST: &str = "10.200.0.1";
const OUTSIDE: &str = "10.200.0.2";

/// A daemon whose namespace has a neighbour. The neighbour knows a way to the containers' own addresses.
struct Topology {
    daemon: Daemon,
    outside: Child,
}

impl Topology {
    #[track_caller]
    fn new() -> Topology {
        let daemon = Daemon::with_busybox();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "1000"]).stdin(Stdio::null());
        let outside = command.spawn().expect("setpriv (util-linux) starts");
        let pid = outside.id().to_string();
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        eventually("a namespace of its own", Duration::from_secs(5), || (namespace(&pid) != namespace("self")).then_some(()));
        let topology = Topology { daemon, outside };
        topology
            .host(&format!("ip link add up0 type veth peer name out0 netns {pid} && ip addr add {HOST}/24 dev up0 && ip link set up0 up"));
        let out =
            format!("ip link set lo up; ip addr add {OUTSIDE}/24 dev out0 && ip link set out0 up && ip route add 172.16.0.0/12 via {HOST}");
        topology.outside(&out).expect(0);
        topology
    }

    /// A shell in the daemon's namespace.
    #[track_caller]
    fn host(&self, script: &str) -> Said {
        inside(&self.daemon.pid().to_string(), script).expect(0)
    }

    /// A shell across the veth.
    fn outside(&self, script: &str) -> Said {
        inside(&self.outside.id().to_string(), script)
    }

    /// A container that answers "hello" on port 80.
    #[track_caller]
    fn web(&self, args: &[&str]) {
        let serve = "mkdir /www && echo hello >/www/index.html && exec httpd -f -p 80 -h /www";
        let args = [&["run", "-d"], args, &["busybox", "sh", "-c", serve]].concat();
        self.daemon.docker(&args).expect(0);
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Said {
        self.daemon.docker(&[&["run", "--rm"], args].concat())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}

fn inside(pid: &str, script: &str) -> Said {
    let output = Command::new("nsenter").args(["-t", pid, "-n", "sh", "-c", script]).output().expect("nsenter (util-linux) starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

/// A shell command that gets a page, trying while the server starts.
fn get(url: &str) -> String {
    format!("for i in 1 2 3 4 5 6 7 8 9 10; do timeout 2 busybox wget -qO- {url} && exit 0; sleep 0.2; done; exit 1")
}

/// A shell command that tries once, for what must not be reached.
fn try_once(url: &str) -> String {
    format!("timeout 2 busybox wget -qO- {url}")
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    let topology = Topology::new();
    topology.web(&["--name", "web", "-p", "8080:80", "-p", "127.0.0.1:8081:80"]);
    for url in ["http://127.0.0.1:8080/", "http://127.0.0.1:8081/", "http://10.200.0.1:8080/"] {
        assert_eq!(topology.host(&get(url)).out, "hello\n", "{url}");
    }
    assert_eq!(topology.outside(&get("http://10.200.0.1:8080/")).expect(0).out, "hello\n");
    let page = get("http://10.200.0.1:8080/");
    assert_eq!(topology.run(&["busybox", "sh", "-c", &page]).expect(0).out, "hello\n", "from another container");
    assert_eq!(topology.daemon.docker(&["exec", "web", "sh", "-c", &page]).expect(0).out, "hello\n", "from itself");
    topology.daemon.docker(&["network", "create", "other"]).expect(0);
    assert_eq!(topology.run(&["--network", "other", "busybox", "sh", "-c", &page]).expect(0).out, "hello\n", "from another network");
    let ports = topology.daemon.docker(&["port", "web"]).expect(0).out;
    assert!(ports.contains("80/tcp -> 0.0.0.0:8080\n") && ports.contains("80/tcp -> 127.0.0.1:8081\n"), "{ports}");
}

#[test]
fn what_is_not_published_is_not_reached() {
    let topology = Topology::new();
    topology.web(&["--name", "web", "-p", "127.0.0.1:8081:80"]);
    topology.host(&get("http://127.0.0.1:8081/"));
    let address = topology.daemon.docker(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"]).expect(0).trimmed().to_string();
    let direct = format!("http://{address}/");
    for url in [direct.as_str(), "http://10.200.0.1:8081/"] {
        assert_ne!(topology.outside(&try_once(url)).code, 0, "{url} from outside");
    }
    assert_eq!(topology.run(&["busybox", "sh", "-c", &get(&direct)]).expect(0).out, "hello\n", "from its own network");
    topology.run(&["busybox", "ping", "-c1", "-W2", OUTSIDE]).expect(0);
}

#[test]
fn a_taken_port_is_refused_and_nothing_is_left_half_done() {
    let topology = Topology::new();
    topology.web(&["--name", "first", "-p", "8080:80"]);
    let refused = topology.run(&["-p", "8090:80", "-p", "8080:80", "busybox", "true"]).expect(125);
    assert!(refused.err.contains("Bind for 0.0.0.0:8080 failed: port is already allocated"), "{refused:?}");
    let refused = topology.run(&["-p", "8090-8091:80", "busybox", "true"]).expect(0);
    assert_eq!(refused.err, "", "8090 is free again");
}

#[test]
fn names_are_found_in_user_defined_networks() {
    let topology = Topology::new();
    let docker = |args: &[&str]| topology.daemon.docker(args);
    docker(&["network", "create", "mynet"]).expect(0);
    topology.web(&["--name", "web", "--network", "mynet", "--network-alias", "alias"]);
    for name in ["web", "web.mynet", "alias", "WEB"] {
        let page = get(&format!("http://{name}/"));
        assert_eq!(topology.run(&["--network", "mynet", "busybox", "sh", "-c", &page]).expect(0).out, "hello\n", "{name}");
    }
    assert_ne!(topology.run(&["busybox", "ping", "-c1", "-W1", "web"]).code, 0, "not on the default bridge");
    docker(&["rename", "web", "shop"]).expect(0);
    topology.run(&["--network", "mynet", "busybox", "ping", "-c1", "-W2", "shop"]).expect(0);
}

#[test]
fn internal_networks_reach_nothing() {
    let topology = Topology::new();
    topology.daemon.docker(&["network", "create", "--internal", "inner"]).expect(0);
    let run = |script: &str| topology.run(&["--network", "inner", "busybox", "sh", "-c", script]);
    assert!(!run("ip route").expect(0).out.contains("default"));
    assert_ne!(run(&format!("ping -c1 -W1 {OUTSIDE}")).code, 0);
    let answer = run("nslookup example.org 127.0.0.11");
    assert!(answer.out.contains("SERVFAIL"), "{answer:?}");
    topology.web(&["--name", "web", "--network", "inner"]);
    assert_eq!(run(&get("http://web/")).expect(0).out, "hello\n");
}

#[test]
fn containers_are_connected_and_disconnected_while_they_run() {
    let topology = Topology::new();
    let docker = |args: &[&str]| topology.daemon.docker(args);
    docker(&["network", "create", "--subnet", "10.77.0.0/24", "one"]).expect(0);
    docker(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).expect(0);
    docker(&["network", "connect", "--ip", "10.77.0.9", "--alias", "other", "one", "box"]).expect(0);
    let shown = docker(&["inspect", "-f", "{{.NetworkSettings.Networks.one.IPAddress}}", "box"]).expect(0);
    assert_eq!(shown.trimmed(), "10.77.0.9");
    assert!(docker(&["exec", "box", "ip", "addr", "show", "eth1"]).expect(0).out.contains("10.77.0.9/24"));
    topology.run(&["--network", "one", "busybox", "ping", "-c1", "-W2", "other"]).expect(0);
    let refused = docker(&["network", "connect", "one", "box"]).expect(1);
    assert!(refused.err.contains("endpoint with name box already exists in network one"), "{refused:?}");
    let refused = docker(&["network", "rm", "one"]).expect(1);
    assert!(refused.err.contains("network one has active endpoints (name:\"box\" id:"), "{refused:?}");
    docker(&["network", "disconnect", "one", "box"]).expect(0);
    assert_ne!(docker(&["exec", "box", "ip", "addr", "show", "eth1"]).code, 0);
    docker(&["network", "rm", "one"]).expect(0);
    docker(&["exec", "box", "ping", "-c1", "-W2", OUTSIDE]).expect(0);
}

#[test]
fn icc_false_parts_the_containers_of_a_network() {
    let topology = Topology::new();
    topology.daemon.docker(&["network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "apart"]).expect(0);
    topology.web(&["--name", "web", "--network", "apart", "-p", "8080:80"]);
    topology.host(&get("http://127.0.0.1:8080/"));
    assert_ne!(topology.run(&["--network", "apart", "busybox", "sh", "-c", &try_once("http://web/")]).code, 0);
}

#[test]
fn ipv6_and_fixed_addresses() {
    let topology = Topology::new();
    let docker = |args: &[&str]| topology.daemon.docker(args);
    docker(&["network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "six"]).expect(0);
    topology.web(&["--name", "web", "--network", "six", "--ip", "10.77.0.9", "--ip6", "fd77::9", "-p", "8086:80"]);
    topology.run(&["--network", "six", "busybox", "ping", "-6", "-c1", "-W2", "fd77::9"]).expect(0);
    assert_eq!(topology.host(&get("'http://[::1]:8086/'")).out, "hello\n");
    topology.host("ip addr add fd88::1/64 dev up0 nodad");
    topology.outside("ip addr add fd88::2/64 dev out0 nodad").expect(0);
    assert_eq!(topology.outside(&get("'http://[fd88::1]:8086/'")).expect(0).out, "hello\n");
    let refused = topology.run(&["--network", "six", "--ip", "10.77.0.9", "busybox", "true"]).expect(125);
    assert!(refused.err.contains("Address already in use"), "{refused:?}");
}

#[test]
fn a_macvlan_stands_beside_its_parent() {
    let topology = Topology::new();
    let create = ["network", "create", "-d", "macvlan", "-o", "parent=up0", "--subnet", "10.200.0.0/24", "--gateway", OUTSIDE, "mv"];
    topology.daemon.docker(&create).expect(0);
    topology.run(&["--network", "mv", "--ip", "10.200.0.77", "busybox", "ping", "-c1", "-W2", OUTSIDE]).expect(0);
}

#[test]
fn a_daemon_leaves_the_host_as_it_was() {
    let topology = Topology::new();
    topology.daemon.docker(&["network", "create", "mynet"]).expect(0);
    topology.web(&["--name", "one", "-p", "8080:80"]);
    topology.web(&["--name", "two", "--network", "mynet", "-p", "8081:80"]);
    let links = topology.host("ip -br link").out;
    assert!(links.contains("docker0") && links.matches("veth").count() == 2, "{links}");
    topology.daemon.docker(&["rm", "-f", "one", "two"]).expect(0);
    eventually("the rules' end", Duration::from_secs(5), || {
        let rules = topology.host("iptables-save").out;
        (!rules.contains("--dport 80")).then_some(())
    });
    assert!(!topology.host("ip -br link").out.contains("veth"));
    topology.daemon.signal(libc::SIGTERM);
    // The outside keeps the host's namespace open through nothing; look at it while the daemon goes.
    let mut topology = topology;
    topology.daemon.wait_exit(Duration::from_secs(10));
}

#[test]
fn a_flushed_filter_is_made_anew_on_sighup() {
    let topology = Topology::new();
    topology.web(&["--name", "web", "-p", "8080:80"]);
    assert_eq!(topology.outside(&get("http://10.200.0.1:8080/")).expect(0).out, "hello\n");
    topology.host("iptables -F; iptables -t nat -F; iptables -t raw -F");
    topology.daemon.signal(libc::SIGHUP);
    eventually("the rules", Duration::from_secs(5), || topology.host("iptables-save").out.contains("DNAT --to-destination").then_some(()));
    assert_eq!(topology.outside(&get("http://10.200.0.1:8080/")).expect(0).out, "hello\n");
}
