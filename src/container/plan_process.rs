//! The plan's tail: the process itself — program, environment, identity, limits, capabilities, filters. The same for a container's
//! first process and for every further one.

use super::capabilities;
use super::config::{HostConfig, Ulimit};
use super::plan::{Container, Mode, Own, PlanInput, Rlimit, Seccomp, c};
use super::user::UserSpec;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ffi::CString;

/// PATH where neither image nor user gives one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where `--init`'s binary appears in the container.
pub const INIT_PATH: &str = "/sbin/docker-init";

/// A terminal of the container's own. Sizes in characters; 0 leaves the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    pub rows: u16,
    pub columns: u16,
}

/// A process to be executed inside a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    pub argv: Vec<CString>,
    pub environment: Vec<CString>,
    /// HOME is added from passwd when the environment has none.
    pub home_from_passwd: bool,
    /// The directories of PATH, in which a program without a slash is looked for.
    pub search: Vec<CString>,
    /// Absolute and clean.
    pub workdir: CString,
    /// A missing working directory is made (only for a container's first process).
    pub make_workdir: bool,
    pub user: UserSpec,
    pub terminal: Option<Terminal>,
    /// Whether there is a pipe for standard input; else it is the container's /dev/null. Meaningless with a terminal.
    pub stdin: bool,
    pub rlimits: Vec<Rlimit>,
    /// "_ses.<id>".
    pub keyring: CString,
    /// The final bounding set, which for root is also permitted and effective.
    pub capabilities: u64,
    /// What has to be cut from the bounding set that the child begins with.
    pub dropped: Vec<u8>,
    pub no_new_privileges: bool,
    /// "exec <profile>", as the kernel's attribute takes it.
    pub apparmor: Option<CString>,
    /// The SELinux label of the program.
    pub selinux: Option<CString>,
    pub seccomp: Seccomp,
}

/// A process of an exec, a health check, as its API object has it.
#[derive(Clone, Debug)]
pub struct ExecInput<'a> {
    pub argv: &'a [String],
    /// Variables of this process only; those of the container stand before them.
    pub environment: &'a [String],
    /// "" is the container's user.
    pub user: &'a str,
    /// "" is the container's working directory.
    pub workdir: &'a str,
    pub terminal: Option<Terminal>,
    pub stdin: bool,
    pub privileged: bool,
}

impl Process {
    pub(super) fn of_container(input: &PlanInput, init: bool) -> Result<Process> {
        let Container { config, host, own, .. } = &input.container;
        let mut argv = Vec::new();
        if init {
            argv.extend([c(INIT_PATH)?, c("--")?]);
        }
        for argument in input.argv {
            argv.push(c(argument)?);
        }
        if input.argv.is_empty() {
            return Err(Error::invalid("no command specified"));
        }
        let linked = input.container.linked_environment;
        let size = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let terminal = Terminal { rows: size(host.console_size[0]), columns: size(host.console_size[1]) };
        Process::new(
            &input.container,
            Parts {
                argv,
                environment: environment(&config.hostname, config.tty, linked, &[config.env.as_deref().unwrap_or(&[])]),
                workdir: &config.working_dir,
                make_workdir: true,
                user: &config.user,
                terminal: config.tty.then_some(terminal),
                stdin: config.open_stdin,
                capabilities: granted(host, own)?,
                apparmor: input.container.apparmor,
            },
        )
    }

    /// A further process in a container: same sandbox, own program. A privileged exec gets all capabilities; the filter stays the
    /// container's, as the reference has it.
    pub(super) fn of_exec(container: &Container, exec: &ExecInput) -> Result<Process> {
        let Container { config, host, own, .. } = container;
        let argv: Vec<CString> = exec.argv.iter().map(c).collect::<Result<_>>()?;
        if argv.is_empty() {
            return Err(Error::invalid("No exec command specified"));
        }
        let lists = [config.env.as_deref().unwrap_or(&[]), exec.environment];
        Process::new(
            container,
            Parts {
                argv,
                environment: environment(&config.hostname, exec.terminal.is_some(), container.linked_environment, &lists),
                workdir: if exec.workdir.is_empty() { &config.working_dir } else { exec.workdir },
                make_workdir: false,
                user: if exec.user.is_empty() { &config.user } else { exec.user },
                terminal: exec.terminal,
                stdin: exec.stdin,
                capabilities: if exec.privileged { own.capabilities } else { granted(host, own)? },
                apparmor: if exec.privileged { None } else { container.apparmor },
            },
        )
    }

    fn new(container: &Container, parts: Parts) -> Result<Process> {
        let Container { host, own, id, .. } = container;
        let path = parts.environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
        // An empty element is the working directory; an empty PATH finds nothing.
        let path = path.split(':').filter(|_| !path.is_empty());
        let search = path.map(|dir| c(if dir.is_empty() { "." } else { dir })).collect::<Result<_>>()?;
        let has_home = parts.environment.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty()));
        let groups = host.group_add.as_deref().unwrap_or(&[]);
        Ok(Process {
            search,
            home_from_passwd: !has_home,
            environment: parts.environment.iter().filter(|entry| has_home || !entry.starts_with("HOME=")).map(c).collect::<Result<_>>()?,
            argv: parts.argv,
            workdir: c(clean_absolute(parts.workdir)?)?,
            make_workdir: parts.make_workdir,
            user: UserSpec::parse(parts.user, groups).map_err(|failure| Error::invalid(failure.to_string()))?,
            terminal: parts.terminal,
            stdin: parts.stdin,
            rlimits: rlimits(own, container.default_ulimits, host.resources.ulimits.as_deref().unwrap_or(&[]))?,
            keyring: c(format!("_ses.{id}"))?,
            capabilities: parts.capabilities,
            dropped: (0..64).filter(|n| own.bounding & !parts.capabilities & 1 << n != 0).collect(),
            no_new_privileges: container.no_new_privileges,
            apparmor: parts.apparmor.map(|profile| c(format!("exec {profile}"))).transpose()?,
            selinux: container.selinux.filter(|labels| !labels.process.is_empty()).map(|labels| c(&labels.process)).transpose()?,
            seccomp: container.seccomp.clone(),
        })
    }
}

/// Where the two kinds of process differ.
struct Parts<'a> {
    argv: Vec<CString>,
    environment: Vec<String>,
    workdir: &'a str,
    make_workdir: bool,
    user: &'a str,
    terminal: Option<Terminal>,
    stdin: bool,
    capabilities: u64,
    apparmor: Option<&'a str>,
}

/// Never more than the daemon has itself: asking for that does not fail the start.
pub(super) fn granted(host: &HostConfig, own: &Own) -> Result<u64> {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    capabilities::tweak(&list(&host.cap_add), &list(&host.cap_drop), host.privileged, own.capabilities)
}

/// The environment as dockerd makes it: PATH, HOSTNAME, TERM with a terminal, links; then what the lists say, each of which replaces
/// an earlier variable in its place, and removes it when it has no "=".
pub fn environment(hostname: &str, terminal: bool, linked: &[String], lists: &[&[String]]) -> Vec<String> {
    let mut result = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={hostname}")];
    if terminal {
        result.push("TERM=xterm".to_owned());
    }
    result.extend(linked.iter().cloned());
    for entry in lists.iter().copied().flatten() {
        let name = entry.split('=').next().unwrap_or("");
        let is_same = |other: &String| other.split('=').next() == Some(name);
        match (entry.contains('='), result.iter().position(is_same)) {
            (true, Some(at)) => result[at].clone_from(entry),
            (true, None) => result.push(entry.clone()),
            (false, Some(at)) => drop(result.remove(at)),
            (false, None) => {}
        }
    }
    result
}

/// Lexically clean, absolute; "" is "/".
pub(super) fn clean_absolute(path: &str) -> Result<String> {
    if !path.is_empty() && !path.starts_with('/') {
        return Err(Error::invalid(format!("the working directory '{path}' is invalid, it needs to be an absolute path")));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// RLIMIT_* by Docker's names.
fn resource(name: &str) -> Option<u32> {
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, clippy::cast_lossless)] // the constants' type differs between C libraries
    let number = match name {
        "core" => libc::RLIMIT_CORE as u32,
        "cpu" => libc::RLIMIT_CPU as u32,
        "data" => libc::RLIMIT_DATA as u32,
        "fsize" => libc::RLIMIT_FSIZE as u32,
        "locks" => libc::RLIMIT_LOCKS as u32,
        "memlock" => libc::RLIMIT_MEMLOCK as u32,
        "msgqueue" => libc::RLIMIT_MSGQUEUE as u32,
        "nice" => libc::RLIMIT_NICE as u32,
        "nofile" => libc::RLIMIT_NOFILE as u32,
        "nproc" => libc::RLIMIT_NPROC as u32,
        "rss" => libc::RLIMIT_RSS as u32,
        "rtprio" => libc::RLIMIT_RTPRIO as u32,
        "rttime" => libc::RLIMIT_RTTIME as u32,
        "sigpending" => libc::RLIMIT_SIGPENDING as u32,
        "stack" => libc::RLIMIT_STACK as u32,
        _ => return None,
    };
    Some(number)
}

/// The daemon's original limits, the defaults, the container's: the later wins.
fn rlimits(own: &Own, defaults: &[Ulimit], ulimits: &[Ulimit]) -> Result<Vec<Rlimit>> {
    let mut limits = own.rlimits.clone();
    for ulimit in defaults.iter().chain(ulimits) {
        let resource =
            resource(&ulimit.name.to_ascii_lowercase()).ok_or_else(|| Error::invalid(format!("invalid ulimit type: {}", ulimit.name)))?;
        // -1 is "no limit"; other negative numbers wrap to huge ones in the reference, and mean the same.
        let value = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
        let limit = Rlimit { resource, soft: value(ulimit.soft), hard: value(ulimit.hard) };
        if limit.soft > limit.hard {
            return Err(Error::invalid(format!(
                "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                ulimit.soft, ulimit.hard
            )));
        }
        limits.retain(|other| other.resource != resource);
        limits.push(limit);
    }
    Ok(limits)
}

/// A kernel parameter of one of the container's namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Below /proc/sys: "net/…".
    pub path: CString,
    pub value: Vec<u8>,
    /// The defaults are left out where the kernel does not have them.
    pub required: bool,
}

/// The container's sysctls: the safe defaults of an own network namespace, then its own.
pub(super) fn sysctls(host: &HostConfig, private_network: bool, ipc: Mode) -> Result<Vec<Sysctl>> {
    let mut all = std::collections::BTreeMap::new();
    if private_network {
        all.insert("net.ipv4.ip_unprivileged_port_start", ("0", false));
        all.insert("net.ipv4.ping_group_range", ("0 2147483647", false));
    }
    for (name, value) in host.sysctls.iter().flatten() {
        check_sysctl(name, value, private_network, ipc != Mode::Named("host"))?;
        all.insert(name, (value, true));
    }
    let path = |name: &str| c(name.replace('.', "/"));
    all.into_iter().map(|(name, (value, required))| Ok(Sysctl { path: path(name)?, value: value.as_bytes().to_vec(), required })).collect()
}

/// Whether a sysctl belongs to a namespace that is the container's own. The name can't lead out of /proc/sys, the value is one line.
pub fn check_sysctl(name: &str, value: &str, private_network: bool, private_ipc: bool) -> Result<()> {
    let refused = |why: &str| Err(Error::invalid(format!("sysctl {name:?} {why}")));
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) && name.split('.').all(|part| !part.is_empty());
    let ipc_names = ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem"];
    let is_ipc = ipc_names.contains(&name) || name.starts_with("kernel.shm") || name.starts_with("fs.mqueue.");
    let is_network = name.starts_with("net.");
    if !plain || !(is_ipc || is_network) {
        return refused("is not in a separate kernel namespace");
    }
    if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return refused("has a value with control characters");
    }
    if is_network && !private_network {
        return refused("not allowed in host network namespace");
    }
    if is_ipc && !private_ipc {
        return refused("not allowed in host ipc namespace");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn the_environment_is_replaced_in_place() {
        let image = list(&["PATH=/bin", "A=1", "HOSTNAME"]);
        let exec = list(&["A=2", "B", "C="]);
        assert_eq!(environment("h", true, &[], &[&image, &exec]), ["PATH=/bin", "TERM=xterm", "A=2", "C="]);
        assert_eq!(environment("h", false, &[], &[]), [format!("PATH={DEFAULT_PATH}"), "HOSTNAME=h".to_owned()]);
    }

    #[test]
    fn sysctls_stay_in_their_namespaces() {
        assert!(check_sysctl("net.core.somaxconn", "1024", true, true).is_ok());
        assert!(check_sysctl("kernel.shm_rmid_forced", "1", true, true).is_ok());
        assert!(check_sysctl("net.core.somaxconn", "1024", false, true).is_err());
        assert!(check_sysctl("kernel.sem", "1", true, false).is_err());
        for name in ["net.../../../kernel/core_pattern", "net.", "kernel.core_pattern", "net/ipv4/x", "kernel.semx", "vm.swappiness"] {
            assert!(check_sysctl(name, "1", true, true).is_err(), "{name}");
        }
        assert!(check_sysctl("net.core.x", "1\n2", true, true).is_err());
    }

    #[test]
    fn a_container_s_ulimit_wins_over_the_default_and_the_daemon_s() {
        let own = Own {
            capabilities: 0,
            bounding: 0,
            rlimits: vec![Rlimit { resource: resource("nofile").unwrap(), soft: 1024, hard: 4096 }],
            oom_score_adj: 0,
            possible_cpus: 1,
        };
        let limit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
        let got = rlimits(&own, &[limit("core", 0, 0)], &[limit("NOFILE", 5, -1)]).unwrap();
        assert_eq!(got.len(), 2);
        assert_eq!((got[1].soft, got[1].hard), (5, u64::MAX));
        assert!(rlimits(&own, &[], &[limit("nofile", 6, 5)]).is_err());
        assert!(rlimits(&own, &[], &[limit("nosuch", 5, 5)]).is_err());
    }

    #[test]
    fn working_directories_are_cleaned() {
        assert_eq!(clean_absolute("").unwrap(), "/");
        assert_eq!(clean_absolute("/a/../../b/./c//").unwrap(), "/b/c");
        assert!(clean_absolute("a").is_err());
    }
}
