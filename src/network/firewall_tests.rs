//! The generated text, and what iptables-restore makes of it in a network namespace of the test's own.

use super::*;
use crate::network::netlink::tests::in_new_netns;
use std::io::Write as _;
use std::process::{Command, Stdio};

fn docker0() -> BridgeRules {
    BridgeRules {
        bridge: "docker0".into(),
        sides: vec![Side { subnet: "172.17.0.1/16".parse().unwrap(), mode: GatewayMode::Nat, source: None }],
        internal: false,
        icc: true,
        masquerade: true,
        direct_routing: false,
    }
}

fn web() -> PortRules {
    PortRules {
        bridge: "docker0".into(),
        protocol: "tcp",
        host: "0.0.0.0".parse().unwrap(),
        host_port: 8080,
        container: "172.17.0.2".parse().unwrap(),
        container_port: 80,
        mode: GatewayMode::Nat,
    }
}

fn specs(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(|r| format!("{} {} {}", r.table.name(), r.chain, r.spec)).collect()
}

#[test]
fn a_published_port_is_translated_and_opened() {
    let rules = port_rules(&web(), &Settings::default());
    assert_eq!(
        specs(&rules),
        [
            "nat DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
            "filter DOCKER -d 172.17.0.2 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
        ]
    );
    assert_eq!(
        remove(&rules[..1]),
        "*nat\n-D DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\nCOMMIT\n"
    );
}

#[test]
fn a_port_on_loopback_is_closed_to_the_outside_and_not_translated() {
    let port = PortRules { host: "127.0.0.1".parse().unwrap(), ..web() };
    assert_eq!(
        specs(&port_rules(&port, &Settings::default())),
        ["raw DOCKER-PREROUTING -p tcp -d 127.0.0.1 ! -i lo -m tcp --dport 8080 -j DROP"]
    );
}

#[test]
fn mixed_families_are_the_proxys() {
    let port = PortRules { host: "::".parse().unwrap(), ..web() };
    assert_eq!(port_rules(&port, &Settings::default()), []);
}

#[test]
fn internal_networks_translate_nothing() {
    let network = BridgeRules { internal: true, ..docker0() };
    let rules = network_rules(Family::V4, &network, &Settings::default());
    assert!(rules.iter().all(|r| r.table != Table::Nat));
    assert_eq!(rules.iter().filter(|r| r.chain == "DOCKER-ISOLATION-STAGE-1").count(), 2);
    assert_eq!(network_rules(Family::V6, &network, &Settings::default()), []);
}

#[test]
fn later_changes_join_the_next_batch() {
    let mut queue = Queue::default();
    queue.push("a\n".into(), 1);
    assert_eq!(queue.start().as_deref(), Some("a\n"));
    queue.push("b\n".into(), 2);
    queue.push("c\n".into(), 3);
    assert_eq!(queue.start(), None);
    assert_eq!(queue.finish(), [1]);
    assert_eq!(queue.start().as_deref(), Some("b\nc\n"));
    assert_eq!(queue.finish(), [2, 3]);
    assert!(queue.is_idle());
}

/// Runs a program of the host with `input`; `None` when it is not installed.
fn run(program: &str, args: &[&str], input: &str) -> Option<String> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}\n{input}");
    Some(String::from_utf8(output.stdout).unwrap())
}

fn the_kernel_takes_the_rules(save: &'static str, restore: &'static str) {
    in_new_netns(move || {
        let Some(before) = run(save, &[], "") else { return eprintln!("skipped: no {save}") };
        let settings = Settings { forward_drop: true, ..Settings::default() };
        let mut networks = vec![docker0(), BridgeRules { bridge: "br-x".into(), internal: true, ..docker0() }];
        networks.push(BridgeRules { bridge: "br-y".into(), icc: false, ..docker0() });
        let mut rules: Vec<Rule> = networks.iter().flat_map(|n| network_rules(Family::V4, n, &settings)).collect();
        rules.extend(port_rules(&web(), &settings));
        let load = |text: &str| run(restore, &["--noflush"], text);
        load(&rebuild(Family::V4, &Present::parse(&before), &rules, &settings));

        let first = run(save, &[], "").unwrap();
        let present = Present::parse(&first);
        assert!(present.is_complete(Family::V4, &settings), "{first}");
        assert!(first.contains(":FORWARD DROP"), "{first}");
        // Twice makes nothing twice, and a user's rule survives.
        load("*filter\n-I DOCKER-USER -s 10.9.9.9 -j DROP\nCOMMIT\n");
        load(&rebuild(Family::V4, &present, &rules, &settings));
        let second = run(save, &[], "").unwrap();
        assert_eq!(second.matches("-j DOCKER-FORWARD").count(), 1, "{second}");
        assert_eq!(second.matches("-A DOCKER ").count(), first.matches("-A DOCKER ").count(), "{second}");
        assert!(second.contains("-A DOCKER-USER -s 10.9.9.9/32 -j DROP"), "{second}");
        let order = |what: &str| second.find(what).unwrap_or(usize::MAX);
        assert!(order("-A FORWARD -j DOCKER-USER") < order("-A FORWARD -j DOCKER-FORWARD"), "{second}");
        assert!(order("--dport 80 -j ACCEPT") < order("-A DOCKER ! -i docker0 -o docker0 -j DROP"), "{second}");

        load(&remove(&port_rules(&web(), &settings)));
        assert!(!run(save, &[], "").unwrap().contains("DNAT --to"));
        load(&tear_down(&Present::parse(&run(save, &[], "").unwrap())));
        let after = run(save, &[], "").unwrap();
        assert_eq!(after.matches("DOCKER").count(), after.matches("DOCKER-USER").count(), "{after}");
        assert!(after.contains("-A FORWARD -j DOCKER-USER"), "{after}");
        load("*filter\n-F DOCKER-USER\nCOMMIT\n");
        load(&tear_down(&Present::parse(&run(save, &[], "").unwrap())));
        assert!(!run(save, &[], "").unwrap().contains("DOCKER"));
    });
}

#[test]
fn iptables_nft_takes_the_rules() {
    the_kernel_takes_the_rules("iptables-nft-save", "iptables-nft-restore");
}

#[test]
fn iptables_legacy_takes_the_rules() {
    the_kernel_takes_the_rules("iptables-legacy-save", "iptables-legacy-restore");
}
