//! A container's confinement in the daemon: what SecurityOpt, the container's kind and the daemon's defaults come to,
//! checked at create, looked up at start; and what its CDI devices add.

use super::cgroup::devices::{Devices, Node, Rule};
use super::config::HostConfig;
use super::plan::Seccomp;
use super::plan_mounts::{MountInput, MountSource, Propagation};
use super::record::Record;
use super::security_opt::{self, SecurityOptions};
use super::{apparmor, capabilities, cdi};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use std::path::PathBuf;

/// What every process of a container is confined by.
#[derive(Clone, Debug)]
pub struct Confinement {
    pub seccomp: Seccomp,
    /// `None`: no AppArmor here, or unconfined.
    pub apparmor: Option<String>,
    /// The profile's name, "unconfined" too; empty without AppArmor.
    pub apparmor_shown: String,
    pub no_new_privileges: bool,
    pub writable_cgroups: bool,
}

impl Daemon {
    /// Checks and completes what HostConfig says of confinement, so that a start has nothing left to refuse.
    pub(super) fn check_confinement(&mut self, host: &mut HostConfig) -> Result<()> {
        let options = self.security_options_of(host)?;
        let generated = security_opt::generated(host);
        if !generated.is_empty() {
            host.security_opt.get_or_insert_default().extend(generated);
        }
        if options.unconfined_paths {
            (host.masked_paths, host.readonly_paths) = (Some(Vec::new()), Some(Vec::new()));
        }
        if options.writable_cgroups == Some(true) && !host.privileged {
            // On v1, or in the host's view, they would be a way to other containers' limits and to helpers on the host.
            let v2 = self.cgroups.as_ref().is_some_and(|cgroups| cgroups.facts().hierarchy.version.is_v2());
            if !v2 || host.cgroupns_mode == "host" {
                return Err(Error::invalid("writable-cgroups needs cgroup v2 and a private cgroup namespace"));
            }
        }
        self.seccomp_of(host, &options).map(drop)
    }

    /// The confinement of a process that starts now.
    pub(super) fn confine(&mut self, host: &HostConfig) -> Result<Confinement> {
        let options = self.security_options_of(host)?;
        let apparmor_shown = self.apparmor_of(host, &options)?;
        Ok(Confinement {
            seccomp: self.seccomp_of(host, &options)?,
            apparmor: Some(apparmor_shown.clone()).filter(|profile| !profile.is_empty() && profile != apparmor::UNCONFINED),
            apparmor_shown,
            no_new_privileges: options.no_new_privileges,
            writable_cgroups: host.privileged || options.writable_cgroups == Some(true),
        })
    }

    fn security_options_of(&self, host: &HostConfig) -> Result<SecurityOptions> {
        let list = host.security_opt.as_deref().unwrap_or_default();
        SecurityOptions::parse(list, self.options.flag("no-new-privileges"), &self.builtin_profile)
    }

    fn seccomp_of(&mut self, host: &HostConfig, options: &SecurityOptions) -> Result<Seccomp> {
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let mask = capabilities::tweak(&list(&host.cap_add), &list(&host.cap_drop), host.privileged, self.own.bounding)?;
        match options.seccomp_profile(host.privileged, &self.seccomp) {
            Some(profile) => Ok(Seccomp::Filter { program: self.filters.get(profile, mask)?, flags: profile.flags() }),
            None => Ok(Seccomp::Unconfined),
        }
    }

    fn apparmor_of(&mut self, host: &HostConfig, options: &SecurityOptions) -> Result<String> {
        if !self.apparmor {
            return Ok(String::new());
        }
        let profile = apparmor::profile_for(options.apparmor.as_deref(), host.privileged);
        // Upgrades of the host's own policy have been seen to drop it.
        if profile == apparmor::DEFAULT_PROFILE && !apparmor::is_loaded(profile)? {
            let load = || i32::from(apparmor::load().is_err());
            if let Err(e) = self.fork_helper("apparmor_parser", load, |_, _| ()) {
                log::warn!("fork apparmor_parser: {e}");
            }
            let words =
                "AppArmor enabled on system but the docker-default profile could not be loaded: it was missing, and is being loaded";
            return Err(Error::system(words));
        }
        Ok(profile.to_owned())
    }

    /// Adds the CDI devices that the container asks for: to the record that its plan is made from, its devices and
    /// mounts. Looks at the host's files.
    pub(super) fn add_cdi_devices(
        &self,
        record: &mut Record,
        nodes: &mut Vec<Node>,
        rules: &mut Devices,
        mounts: &mut Vec<MountInput>,
    ) -> Result<()> {
        let names = cdi::requested(record.host.resources.device_requests.as_deref().unwrap_or_default())?;
        if names.is_empty() {
            return Ok(());
        }
        let edits = self.cdi_registry().resolve(&names)?;
        let environment = record.config.env.get_or_insert_default();
        for variable in edits.environment {
            let key = variable.split_inclusive('=').next().unwrap_or_default().to_owned();
            environment.retain(|had| !had.starts_with(&key));
            environment.push(variable);
        }
        record.host.group_add.get_or_insert_default().extend(edits.groups.iter().map(u32::to_string));
        if let Devices::Only(list) = rules {
            for node in &edits.nodes {
                allow(list, node);
            }
        }
        nodes.retain(|node| !edits.nodes.iter().any(|new| new.path == node.path));
        nodes.extend(edits.nodes);
        for mount in edits.mounts {
            mounts.push(mount_input(mount)?);
        }
        Ok(())
    }

    fn cdi_registry(&self) -> cdi::Registry {
        let registry = cdi::Registry::scan(&self.cdi_directories());
        for problem in &registry.problems {
            log::warn!("{problem}");
        }
        registry
    }

    /// Where CDI specs are looked for; later directories override.
    pub fn cdi_directories(&self) -> Vec<String> {
        match self.options.list("cdi-spec-dir") {
            [] => cdi::DIRECTORIES.map(str::to_owned).to_vec(),
            given => given.to_vec(),
        }
    }

    /// The CDI devices of this host, by qualified name.
    pub fn cdi_devices(&self) -> Vec<String> {
        cdi::Registry::scan(&self.cdi_directories()).devices().map(str::to_owned).collect()
    }
}

/// Whether containers are confined by AppArmor, once the default profile is there: loaded now, if it is missing. Once
/// a boot, before the first container.
pub fn prepare_apparmor() -> bool {
    if !apparmor::host_supports() {
        return false;
    }
    if !apparmor::is_loaded(apparmor::DEFAULT_PROFILE).unwrap_or(false)
        && let Err(e) = apparmor::load()
    {
        log::warn!("{e}; containers without a profile of their own will not start");
    }
    true
}

/// No two rules of the list may differ in access alone.
fn allow(list: &mut Vec<Rule>, node: &Node) {
    let numbers = (node.kind, Some(node.major), Some(node.minor));
    match list.iter_mut().find(|rule| (rule.kind, rule.major, rule.minor) == numbers) {
        Some(rule) => rule.access |= node.access,
        None => list.push(Rule { allow: true, kind: node.kind, major: numbers.1, minor: numbers.2, access: node.access }),
    }
}

fn mount_input(mount: cdi::Mount) -> Result<MountInput> {
    let source = match mount.source {
        Some(path) => MountSource::Restricted { path: PathBuf::from(path), attributes: mount.attributes },
        None => MountSource::Tmpfs(mount.data),
    };
    Ok(MountInput {
        target: mount.target,
        source,
        read_only: mount.read_only,
        propagation: Propagation::parse(&mount.propagation)?,
        recursive: mount.recursive,
        read_only_recursive: false,
        subpath: None,
        create_source: false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::devices::{Kind, MKNOD, READ, WRITE};
    use super::*;

    #[test]
    fn a_devices_access_joins_the_rule_of_the_same_numbers() {
        let rule = |major, access| Rule { allow: true, kind: Kind::Char, major: Some(major), minor: Some(3), access };
        let node = |major, access| Node { path: "/dev/x".into(), kind: Kind::Char, major, minor: 3, mode: 0o666, uid: 0, gid: 0, access };
        let mut list = vec![rule(1, READ)];
        allow(&mut list, &node(1, WRITE));
        allow(&mut list, &node(7, MKNOD));
        assert_eq!(list, [rule(1, READ | WRITE), rule(7, MKNOD)]);
    }
}
