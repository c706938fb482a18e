//! HostConfig.SecurityOpt, and the daemon's defaults beside it: which confinement a container asked for.
//!
//! Pure parsing. What cannot be understood is refused when the container is created, in the reference's words.

use super::config::HostConfig;
use super::seccomp::Profile;
use super::selinux::LabelOption;
use crate::error::{Error, Result};
use std::rc::Rc;

/// A choice of seccomp filter that somebody made.
#[derive(Clone, Debug)]
pub enum Seccomp {
    /// No filter: asked for by name.
    Unconfined,
    Profile(Rc<Profile>),
}

/// What SecurityOpt asks for.
#[derive(Clone, Debug, Default)]
pub struct SecurityOptions {
    /// `None`: the daemon's default.
    pub seccomp: Option<Seccomp>,
    /// `None`: the default for the container's kind ([`super::apparmor::profile_for`]).
    pub apparmor: Option<String>,
    /// SELinux, in the order given; later ones win.
    pub labels: Vec<LabelOption>,
    pub no_new_privileges: bool,
    /// /sys/fs/cgroup writable although the container is not privileged.
    pub writable_cgroups: Option<bool>,
    /// No masked and no read-only paths.
    pub unconfined_paths: bool,
}

impl SecurityOptions {
    /// Parses the list. `no_new_privileges` is the daemon's default; `builtin` its builtin profile.
    ///
    /// # Errors
    /// InvalidParameter, `invalid --security-opt 1: "…"` for what is not an option, `… 2: "…"` for an unknown
    /// option or value; and what [`Profile::from_json`] and [`LabelOption::parse`] refuse.
    pub fn parse(list: &[String], no_new_privileges: bool, builtin: &Rc<Profile>) -> Result<SecurityOptions> {
        let mut options = SecurityOptions { no_new_privileges, ..SecurityOptions::default() };
        for option in list {
            options.add(option, builtin)?;
        }
        Ok(options)
    }

    fn add(&mut self, option: &str, builtin: &Rc<Profile>) -> Result<()> {
        let invalid = |stage: u8| Error::invalid(format!("invalid --security-opt {stage}: {option:?}"));
        match option {
            "no-new-privileges" => {
                self.no_new_privileges = true;
                return Ok(());
            }
            "disable" => {
                self.labels.push(LabelOption::Disable);
                return Ok(());
            }
            _ => {}
        }
        // The colon is the older separator; a profile's own colons stand behind an equals sign.
        let (key, value) = option.split_once('=').or_else(|| option.split_once(':')).ok_or_else(|| invalid(1))?;
        match key {
            "label" => self.labels.push(LabelOption::parse(value)?),
            // Written to a file of the kernel's by the container's child: one line, no room for another command.
            "apparmor" if value.len() > 4096 || value.chars().any(char::is_control) => return Err(invalid(2)),
            "apparmor" => self.apparmor = Some(value.to_owned()).filter(|profile| !profile.is_empty()),
            "seccomp" => self.seccomp = seccomp(value, builtin)?,
            "no-new-privileges" => self.no_new_privileges = flag(value).ok_or_else(|| invalid(2))?,
            "writable-cgroups" => self.writable_cgroups = Some(flag(value).ok_or_else(|| invalid(2))?),
            // The docker command turns this into two empty lists itself; other clients need not know how.
            "systempaths" if value == "unconfined" => self.unconfined_paths = true,
            _ => return Err(invalid(2)),
        }
        Ok(())
    }

    /// The profile under which the container runs; `None` only where somebody chose to run without: the container, the
    /// daemon's administrator, or by Privileged without a profile of its own.
    pub fn seccomp_profile<'a>(&'a self, privileged: bool, daemon: &'a Seccomp) -> Option<&'a Rc<Profile>> {
        match self.seccomp.as_ref() {
            Some(Seccomp::Profile(profile)) => Some(profile),
            Some(Seccomp::Unconfined) => None,
            None if privileged => None,
            None => match daemon {
                Seccomp::Profile(profile) => Some(profile),
                Seccomp::Unconfined => None,
            },
        }
    }
}

/// The value of `seccomp=`: a name, or the profile itself, as clients send the file's content. Empty: the default.
fn seccomp(value: &str, builtin: &Rc<Profile>) -> Result<Option<Seccomp>> {
    Ok(match value {
        "" => None,
        "unconfined" => Some(Seccomp::Unconfined),
        "builtin" => Some(Seccomp::Profile(Rc::clone(builtin))),
        json => Some(Seccomp::Profile(Rc::new(Profile::from_json(json.as_bytes())?))),
    })
}

/// The daemon's `--seccomp-profile`: "builtin" (or nothing), "unconfined", or else a file's content, which `read`
/// gets by its path.
///
/// # Errors
/// What `read` and [`Profile::from_json`] refuse.
pub fn daemon_seccomp(setting: &str, builtin: &Rc<Profile>, read: impl FnOnce(&str) -> Result<Vec<u8>>) -> Result<Seccomp> {
    match setting {
        "" | "builtin" => Ok(Seccomp::Profile(Rc::clone(builtin))),
        "unconfined" => Ok(Seccomp::Unconfined),
        path => Ok(Seccomp::Profile(Rc::new(Profile::from_json(&read(path)?)?))),
    }
}

/// Go's strconv.ParseBool.
fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What create adds to SecurityOpt, and inspect shows: sharing the host's processes or IPC, like Privileged, makes an
/// SELinux label of one's own pointless. Nothing where the client chose a label itself.
pub fn generated(host: &HostConfig) -> Vec<String> {
    let chosen = host.security_opt.iter().flatten().any(|option| option.split('=').next() == Some("label"));
    let shares_host = host.privileged || host.ipc_mode == "host" || host.pid_mode == "host";
    if shares_host && !chosen { vec!["label=disable".to_owned()] } else { Vec::new() }
}

/// What this daemon can and does by default, for `/info`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Support<'a> {
    pub apparmor: bool,
    /// `None`: the kernel has none. Else the `--seccomp-profile` setting.
    pub seccomp: Option<&'a str>,
    pub selinux: bool,
    pub userns_remap: bool,
    pub cgroup_namespaces: bool,
    pub no_new_privileges: bool,
}

/// `/info`'s SecurityOptions.
pub fn info(support: Support) -> Vec<String> {
    let mut list = Vec::new();
    let mut add = |present: bool, text: &str| {
        if present {
            list.push(format!("name={text}"));
        }
    };
    add(support.apparmor, "apparmor");
    if let Some(profile) = support.seccomp {
        add(true, &format!("seccomp,profile={}", if profile.is_empty() { "builtin" } else { profile }));
    }
    add(support.selinux, "selinux");
    add(support.userns_remap, "userns");
    add(support.cgroup_namespaces, "cgroupns");
    add(support.no_new_privileges, "no-new-privileges");
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn parse(list: &[&str]) -> Result<SecurityOptions> {
        let list: Vec<String> = list.iter().map(|option| (*option).to_owned()).collect();
        SecurityOptions::parse(&list, false, &Rc::new(Profile::builtin()))
    }

    #[test]
    fn both_separators_and_bare_words() {
        let options =
            parse(&["no-new-privileges", "apparmor:unconfined", "label=type:svirt_t", "label:disable", "writable-cgroups=true"]).unwrap();
        assert!(options.no_new_privileges);
        assert_eq!(options.apparmor.as_deref(), Some("unconfined"));
        assert_eq!(options.labels.len(), 2);
        assert_eq!(options.writable_cgroups, Some(true));
        assert!(!parse(&["no-new-privileges", "no-new-privileges:false"]).unwrap().no_new_privileges);
        assert!(parse(&["no-new-privileges=1"]).unwrap().no_new_privileges);
        assert!(parse(&["systempaths=unconfined"]).unwrap().unconfined_paths);
        assert!(parse(&["disable"]).is_ok());
    }

    #[test]
    fn the_daemons_default_can_be_overridden() {
        let builtin = Rc::new(Profile::builtin());
        assert!(SecurityOptions::parse(&[], true, &builtin).unwrap().no_new_privileges);
        assert!(!SecurityOptions::parse(&["no-new-privileges=false".into()], true, &builtin).unwrap().no_new_privileges);
    }

    #[test]
    fn refuses_in_the_references_words() {
        let cases = [
            ("label", r#"invalid --security-opt 1: "label""#),
            ("unknown", r#"invalid --security-opt 1: "unknown""#),
            ("", r#"invalid --security-opt 1: """#),
            ("unknown=something", r#"invalid --security-opt 2: "unknown=something""#),
            ("no-new-privileges=yes", r#"invalid --security-opt 2: "no-new-privileges=yes""#),
            ("writable-cgroups=dang", r#"invalid --security-opt 2: "writable-cgroups=dang""#),
            ("systempaths=some", r#"invalid --security-opt 2: "systempaths=some""#),
            ("apparmor=a\nb", r#"invalid --security-opt 2: "apparmor=a\nb""#),
        ];
        for (option, words) in cases {
            let error = parse(&[option]).unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (Kind::InvalidParameter, words));
        }
        assert!(parse(&["seccomp=/etc/profile.json"]).unwrap_err().message.starts_with("Decoding seccomp profile failed: "));
    }

    #[test]
    fn seccomp_choices() {
        let builtin = Rc::new(Profile::builtin());
        let daemon = daemon_seccomp("builtin", &builtin, |_| unreachable!()).unwrap();
        let profile = |list: &[&str], privileged| parse(list).unwrap().seccomp_profile(privileged, &daemon).is_some();
        let custom =
            r#"seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","comment":"a=b:c"}]}"#;
        let cases: [(&[&str], bool, bool); 6] = [
            (&[], false, true),
            (&[], true, false),
            (&["seccomp=unconfined"], false, false),
            (&["seccomp:builtin"], true, true),
            (&[custom], false, true),
            // A profile of one's own counts although the container is privileged.
            (&[custom], true, true),
        ];
        for (list, privileged, confined) in cases {
            assert_eq!(profile(list, privileged), confined, "{list:?} privileged {privileged}");
        }
        let unconfined = daemon_seccomp("unconfined", &builtin, |_| unreachable!()).unwrap();
        assert!(parse(&[]).unwrap().seccomp_profile(false, &unconfined).is_none());
        assert!(parse(&["seccomp=builtin"]).unwrap().seccomp_profile(false, &unconfined).is_some());
        assert!(daemon_seccomp("/p", &builtin, |_| Ok(b"{}".to_vec())).is_err());
    }

    #[test]
    fn sharing_the_host_disables_labels() {
        let host = |privileged, ipc: &str, opt: &[&str]| HostConfig {
            privileged,
            ipc_mode: ipc.into(),
            security_opt: Some(opt.iter().map(|o| (*o).into()).collect()),
            ..HostConfig::default()
        };
        assert_eq!(generated(&host(true, "", &[])), ["label=disable"]);
        assert_eq!(generated(&host(false, "host", &["seccomp=unconfined"])), ["label=disable"]);
        assert!(generated(&host(true, "", &["label=type:x_t"])).is_empty());
        assert!(generated(&host(false, "private", &[])).is_empty());
    }

    #[test]
    fn info_lists_what_there_is() {
        let support = Support { apparmor: true, seccomp: Some(""), cgroup_namespaces: true, ..Support::default() };
        assert_eq!(info(support), ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"]);
    }
}
