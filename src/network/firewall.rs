//! The host's packet filter as text for `iptables-restore --noflush`: pure functions, no process is run here.
//!
//! Chains carry the reference's names, so that DOCKER-USER rules and scripts that look at DOCKER keep working. What the reference
//! writes straight into POSTROUTING and raw PREROUTING stands in chains of ours, so that every rule can be made anew by flushing
//! our chains: built-in chains hold nothing of ours but jumps. Rules that hold for a whole subnet are written with its network;
//! a container without published ports needs none of its own.

use super::prefix::Prefix;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
    /// The program that takes a batch on its standard input.
    pub fn restore(self) -> &'static str {
        if self == Family::V4 { "iptables-restore" } else { "ip6tables-restore" }
    }
    /// The program that prints what there is.
    pub fn save(self) -> &'static str {
        if self == Family::V4 { "iptables-save" } else { "ip6tables-save" }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Raw,
    Nat,
    Filter,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Table::Raw => "raw",
            Table::Nat => "nat",
            Table::Filter => "filter",
        }
    }
}

/// Every chain of ours but DOCKER-USER, which is the user's.
const CHAINS: [(Table, &str); 9] = [
    (Table::Raw, "DOCKER-PREROUTING"),
    (Table::Nat, "DOCKER"),
    (Table::Nat, "DOCKER-POSTROUTING"),
    (Table::Filter, "DOCKER"),
    (Table::Filter, "DOCKER-FORWARD"),
    (Table::Filter, "DOCKER-BRIDGE"),
    (Table::Filter, "DOCKER-CT"),
    (Table::Filter, "DOCKER-ISOLATION-STAGE-1"),
    (Table::Filter, "DOCKER-ISOLATION-STAGE-2"),
];

/// How a network's addresses are seen from outside (`com.docker.network.bridge.gateway_mode_ipv4` and `_ipv6`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GatewayMode {
    #[default]
    Nat,
    /// Translated, but every port of a container can be reached directly.
    NatUnprotected,
    /// No translation: published ports are opened at the container's own address.
    Routed,
    /// The host has no address in the network (internal networks only).
    Isolated,
}

/// What a network asks of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    pub subnet: Prefix,
    pub mode: GatewayMode,
    /// Source address for what leaves (`com.docker.network.host_ipv4`); `None` = the leaving interface's.
    pub source: Option<IpAddr>,
}

/// A bridge network, as far as the packet filter is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeRules {
    pub bridge: String,
    pub sides: Vec<Side>,
    pub internal: bool,
    /// Containers of the network may talk to each other.
    pub icc: bool,
    pub masquerade: bool,
    /// Packets from other interfaces may go to the containers' addresses.
    pub direct_routing: bool,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRules {
    pub bridge: String,
    /// "tcp", "udp" or "sctp".
    pub protocol: &'static str,
    /// Unspecified = every address of its family.
    pub host: IpAddr,
    /// 0 = opened, but not translated (routed networks).
    pub host_port: u16,
    pub container: IpAddr,
    pub container_port: u16,
    pub mode: GatewayMode,
}

/// Settings of the whole daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// No userland proxy: the kernel also translates what the host and the container itself send.
    pub hairpin: bool,
    /// The policy of FORWARD becomes DROP: we turned forwarding on, so nothing else may pass because of us.
    pub forward_drop: bool,
}

/// One rule: `-A chain …` or `-I chain …` when it is added, `-D chain …` when it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub table: Table,
    pub chain: &'static str,
    /// At the head of the chain instead of its end.
    pub first: bool,
    pub spec: String,
}

fn rule(table: Table, chain: &'static str, spec: String) -> Rule {
    Rule { table, chain, first: false, spec }
}

/// The rules of a network in one family.
pub fn network_rules(family: Family, network: &BridgeRules, settings: &Settings) -> Vec<Rule> {
    let Some(side) = network.sides.iter().find(|side| Family::of(side.subnet.address) == family) else { return Vec::new() };
    let (bridge, subnet) = (&network.bridge, side.subnet.masked());
    let mut rules = Vec::new();
    // A neighbour with a route to the subnet, or a container of another network, must not reach what is not published. The
    // bridge's own address stays reachable: host-gateway points there.
    if !network.direct_routing && matches!(side.mode, GatewayMode::Nat | GatewayMode::Isolated) && (network.masquerade || network.internal)
    {
        let spec = format!("-d {subnet} ! -i {bridge} -m addrtype ! --dst-type LOCAL -j DROP");
        rules.push(rule(Table::Raw, "DOCKER-PREROUTING", spec));
    }
    let stage1 = |spec: String| rule(Table::Filter, "DOCKER-ISOLATION-STAGE-1", spec);
    let forward = |spec: String| rule(Table::Filter, "DOCKER-FORWARD", spec);
    if network.internal {
        // Link-local IPv6 stays inside the bridge, and is not of the subnet.
        let (inside, outside) =
            if family == Family::V4 { (String::new(), String::new()) } else { (format!("! -o {bridge} "), format!("! -i {bridge} ")) };
        rules.push(stage1(format!("-i {bridge} {inside}! -d {subnet} -j DROP")));
        rules.push(stage1(format!("-o {bridge} {outside}! -s {subnet} -j DROP")));
        rules.push(forward(format!("-i {bridge} -o {bridge} -j {}", if network.icc { "ACCEPT" } else { "DROP" })));
        return rules;
    }
    if network.masquerade && side.mode != GatewayMode::Routed {
        let target = match side.source {
            Some(source) => format!("SNAT --to-source {source}"),
            None => "MASQUERADE".to_string(),
        };
        rules.push(rule(Table::Nat, "DOCKER-POSTROUTING", format!("-s {subnet} ! -o {bridge} -j {target}")));
        if settings.hairpin {
            rules.push(rule(Table::Nat, "DOCKER-POSTROUTING", format!("-o {bridge} -m addrtype --src-type LOCAL -j {target}")));
        }
    }
    // Isolation between networks; what was published (and so translated) may pass.
    rules.push(stage1(format!("-i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2")));
    rules.push(rule(Table::Filter, "DOCKER-ISOLATION-STAGE-2", format!("-o {bridge} -m conntrack ! --ctstate DNAT -j DROP")));
    rules.push(rule(Table::Filter, "DOCKER-CT", format!("-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")));
    rules.push(rule(Table::Filter, "DOCKER-BRIDGE", format!("-o {bridge} -j DOCKER")));
    if side.mode == GatewayMode::Routed {
        let icmp = if family == Family::V4 { "icmp" } else { "icmpv6" };
        rules.push(rule(Table::Filter, "DOCKER", format!("-o {bridge} -p {icmp} -j ACCEPT")));
    }
    let rest = if side.mode == GatewayMode::NatUnprotected { "ACCEPT" } else { "DROP" };
    rules.push(rule(Table::Filter, "DOCKER", format!("! -i {bridge} -o {bridge} -j {rest}")));
    if network.icc {
        rules.push(forward(format!("-i {bridge} -j ACCEPT")));
    } else {
        rules.push(forward(format!("-i {bridge} -o {bridge} -j DROP")));
        rules.push(forward(format!("-i {bridge} ! -o {bridge} -j ACCEPT")));
    }
    rules
}

/// The rules of a published port; none when host and container address are of different families (the proxy does that).
pub fn port_rules(port: &PortRules, settings: &Settings) -> Vec<Rule> {
    let (bridge, protocol, container) = (&port.bridge, port.protocol, port.container);
    let mut rules = Vec::new();
    let loopback = port.host.is_loopback();
    if loopback && port.host_port != 0 && port.host.is_ipv4() {
        let spec = format!("-p {protocol} -d {} ! -i lo -m {protocol} --dport {} -j DROP", port.host, port.host_port);
        rules.push(rule(Table::Raw, "DOCKER-PREROUTING", spec));
    }
    if Family::of(port.host) != Family::of(container) {
        return rules;
    }
    // Published on loopback: the proxy serves it, and nobody outside can use a rule that is not there.
    let translated = port.host_port != 0 && port.mode != GatewayMode::Routed && (!loopback || settings.hairpin);
    if translated {
        let from = if settings.hairpin { String::new() } else { format!("! -i {bridge} ") };
        let link_local = if container.is_ipv6() { "! -s fe80::/10 " } else { "" };
        let to = if port.host.is_unspecified() { String::new() } else { format!("-d {} ", port.host) };
        let target = std::net::SocketAddr::new(container, port.container_port);
        let spec =
            format!("{from}{link_local}{to}-p {protocol} -m {protocol} --dport {} -j DNAT --to-destination {target}", port.host_port);
        rules.push(rule(Table::Nat, "DOCKER", spec));
        if settings.hairpin {
            let spec = format!("-s {container} -d {container} -p {protocol} -m {protocol} --dport {} -j MASQUERADE", port.container_port);
            rules.push(rule(Table::Nat, "DOCKER-POSTROUTING", spec));
        }
    }
    if port.mode != GatewayMode::NatUnprotected && (translated || port.mode == GatewayMode::Routed) {
        let spec =
            format!("-d {container} ! -i {bridge} -o {bridge} -p {protocol} -m {protocol} --dport {} -j ACCEPT", port.container_port);
        rules.push(Rule { table: Table::Filter, chain: "DOCKER", first: true, spec });
    }
    rules
}

/// The text that adds rules.
pub fn add(rules: &[Rule]) -> String {
    tables(rules, |text, rule| writeln!(text, "{} {} {}", if rule.first { "-I" } else { "-A" }, rule.chain, rule.spec))
}

/// The text that removes rules; it fails when one of them is not there.
pub fn remove(rules: &[Rule]) -> String {
    tables(rules, |text, rule| writeln!(text, "-D {} {}", rule.chain, rule.spec))
}

fn tables(rules: &[Rule], line: impl Fn(&mut String, &Rule) -> std::fmt::Result) -> String {
    let mut text = String::new();
    for table in [Table::Raw, Table::Nat, Table::Filter] {
        let mut of_table = rules.iter().filter(|rule| rule.table == table).peekable();
        if of_table.peek().is_none() {
            continue;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "*{}", table.name());
        for rule in of_table {
            let _ = line(&mut text, rule);
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// The jumps into our chains, as (table, built-in chain, rest), in the order in which they are to stand.
fn jumps(family: Family, settings: &Settings) -> Vec<(Table, &'static str, String)> {
    let not_loopback = match (settings.hairpin, family) {
        (true, _) => "",
        (false, Family::V4) => "! -d 127.0.0.0/8 ",
        (false, Family::V6) => "! -d ::1/128 ",
    };
    vec![
        (Table::Raw, "PREROUTING", "-j DOCKER-PREROUTING".into()),
        (Table::Nat, "PREROUTING", "-m addrtype --dst-type LOCAL -j DOCKER".into()),
        (Table::Nat, "OUTPUT", format!("{not_loopback}-m addrtype --dst-type LOCAL -j DOCKER")),
        (Table::Nat, "POSTROUTING", "-j DOCKER-POSTROUTING".into()),
        (Table::Filter, "FORWARD", "-j DOCKER-USER".into()),
        (Table::Filter, "FORWARD", "-j DOCKER-FORWARD".into()),
    ]
}

/// What `iptables-save` printed, as far as it concerns us.
#[derive(Clone, Debug, Default)]
pub struct Present {
    chains: Vec<(Table, String)>,
    /// Rules of built-in chains that jump to a chain of ours, without their "-A ".
    jumps: Vec<(Table, String)>,
    /// Rules in DOCKER-USER other than the RETURN that we put there.
    user_rules: bool,
}

impl Present {
    pub fn parse(save: &str) -> Present {
        let mut present = Present::default();
        let mut table = None;
        for line in save.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = [Table::Raw, Table::Nat, Table::Filter].into_iter().find(|t| t.name() == name.trim());
            }
            let Some(table) = table else { continue };
            if let Some(chain) = line.strip_prefix(':') {
                present.chains.push((table, chain.split(' ').next().unwrap_or("").to_string()));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rest) = rule.split_once(' ').unwrap_or((rule, ""));
                let target = rest.rsplit_once("-j ").map_or("", |(_, target)| target);
                if table == Table::Filter && chain == "DOCKER-USER" {
                    present.user_rules |= rest != "-j RETURN";
                } else if !chain.starts_with("DOCKER") && is_ours(table, target) {
                    present.jumps.push((table, rule.to_string()));
                }
            }
        }
        present
    }

    fn has(&self, table: Table, chain: &str) -> bool {
        self.chains.iter().any(|(t, c)| *t == table && c == chain)
    }

    /// Everything of ours is there: the cheap check after somebody else has touched the rules.
    pub fn is_complete(&self, family: Family, settings: &Settings) -> bool {
        CHAINS.iter().all(|(table, chain)| self.has(*table, chain)) && self.jumps.len() >= jumps(family, settings).len()
    }
}

fn is_ours(table: Table, target: &str) -> bool {
    CHAINS.contains(&(table, target)) || (table == Table::Filter && target == "DOCKER-USER")
}

/// The text that makes our chains and jumps anew, whatever was there, and fills them with `rules`.
pub fn rebuild(family: Family, present: &Present, rules: &[Rule], settings: &Settings) -> String {
    let mut text = String::new();
    for table in [Table::Raw, Table::Nat, Table::Filter] {
        // Writing to a String cannot fail. Naming a chain of ours makes it, or empties it.
        let _ = writeln!(text, "*{}", table.name());
        if table == Table::Filter && settings.forward_drop {
            text.push_str(":FORWARD DROP [0:0]\n");
        }
        for (_, chain) in CHAINS.iter().filter(|(t, _)| *t == table) {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        if table == Table::Filter && !present.has(table, "DOCKER-USER") {
            text.push_str(":DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\n");
        }
        for (_, jump) in present.jumps.iter().filter(|(t, _)| *t == table) {
            let _ = writeln!(text, "-D {jump}");
        }
        let of_table: Vec<_> = jumps(family, settings).into_iter().filter(|(t, ..)| *t == table).collect();
        for (_, chain, rest) in of_table.iter().rev() {
            let _ = match *chain {
                // Ahead of what other firewalls let through; address translation, where the reference has it, at the end.
                "FORWARD" => writeln!(text, "-I {chain} {rest}"),
                _ => writeln!(text, "-A {chain} {rest}"),
            };
        }
        if table == Table::Filter {
            for chain in ["DOCKER-CT", "DOCKER-ISOLATION-STAGE-1", "DOCKER-BRIDGE"] {
                let _ = writeln!(text, "-A DOCKER-FORWARD -j {chain}");
            }
        }
        for rule in rules.iter().filter(|rule| rule.table == table) {
            let _ = writeln!(text, "{} {} {}", if rule.first { "-I" } else { "-A" }, rule.chain, rule.spec);
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// The text that takes away all that is ours: the orderly stop. A DOCKER-USER chain with the user's rules stays, and stays in force.
pub fn tear_down(present: &Present) -> String {
    let keep_user = present.user_rules;
    let mut by_table: BTreeMap<Table, String> = BTreeMap::new();
    for (table, jump) in &present.jumps {
        if !(keep_user && jump.ends_with("-j DOCKER-USER")) {
            let _ = writeln!(by_table.entry(*table).or_default(), "-D {jump}");
        }
    }
    let gone: Vec<(Table, &str)> = CHAINS
        .into_iter()
        .chain((!keep_user).then_some((Table::Filter, "DOCKER-USER")))
        .filter(|(table, chain)| present.has(*table, chain))
        .collect();
    // All are emptied before the first is deleted: they jump to each other.
    for action in ["-F", "-X"] {
        for (table, chain) in &gone {
            let _ = writeln!(by_table.entry(*table).or_default(), "{action} {chain}");
        }
    }
    by_table.into_iter().fold(String::new(), |mut text, (table, lines)| {
        let _ = write!(text, "*{}\n{lines}COMMIT\n", table.name());
        text
    })
}

/// Changes of one family on their way: one batch runs, later changes are gathered for the next.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: Vec<(String, T)>,
    running: Vec<T>,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { waiting: Vec::new(), running: Vec::new() }
    }
}

impl<T> Queue<T> {
    /// `text` is one change (from [`add`], [`remove`]); `token` says who waits for it.
    pub fn push(&mut self, text: String, token: T) {
        self.waiting.push((text, token));
    }

    /// The next batch's text, when none is running and something waits.
    pub fn start(&mut self) -> Option<String> {
        if !self.running.is_empty() || self.waiting.is_empty() {
            return None;
        }
        let mut batch = String::new();
        for (text, token) in self.waiting.drain(..) {
            batch.push_str(&text);
            self.running.push(token);
        }
        Some(batch)
    }

    /// Everything that waits runs now, by a text of the caller's that holds all of it: a rebuild.
    pub fn take_all(&mut self) {
        self.running.extend(self.waiting.drain(..).map(|(_, token)| token));
    }

    /// The running batch has ended: who waited for it.
    pub fn finish(&mut self) -> Vec<T> {
        std::mem::take(&mut self.running)
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
#[path = "firewall_tests.rs"]
mod tests;
