//! SELinux labels of containers: what the options say, and the labels that result.
//!
//! The labels themselves are applied by the container's child (the process's own before execve, the files' as mount
//! options). Nothing here writes.

use crate::error::{Error, Result};
use crate::sys;
use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

/// `statfs(2)`, f_type of selinuxfs (linux/magic.h).
const SELINUX_MAGIC: i64 = 0xf97c_ff8c;

/// Categories are c0 to c1023 in every policy that has them.
const CATEGORIES: u16 = 1024;

/// One `label=` option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelOption {
    Disable,
    User(String),
    Role(String),
    Type(String),
    Level(String),
    FileType(String),
}

impl LabelOption {
    /// # Errors
    /// InvalidParameter, `bad label option "…"`; also for characters that no label has, as labels end up in mount
    /// options.
    pub fn parse(text: &str) -> Result<LabelOption> {
        if text == "disable" {
            return Ok(LabelOption::Disable);
        }
        let bad = |words: &str| Error::invalid(format!("bad label option {text:?}, {words}"));
        let (key, value) = text
            .split_once(':')
            .ok_or_else(|| bad("valid options 'disable' or \n'user, role, level, type, filetype' followed by ':' and a value"))?;
        if value.is_empty() || value.len() > 255 || value.contains(|c: char| !c.is_ascii_alphanumeric() && !"_.:,-".contains(c)) {
            return Err(bad("the value is not a part of a label"));
        }
        let value = value.to_owned();
        match key {
            "user" => Ok(LabelOption::User(value)),
            "role" => Ok(LabelOption::Role(value)),
            "type" => Ok(LabelOption::Type(value)),
            "level" => Ok(LabelOption::Level(value)),
            "filetype" => Ok(LabelOption::FileType(value)),
            _ => Err(Error::invalid(format!("bad label option {key:?}, valid options 'disable, user, role, level, type, filetype'"))),
        }
    }
}

/// The labels that the host's policy gives to containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    process: Label,
    file: Label,
}

/// user:role:type:level.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    /// Empty in a policy without levels.
    level: String,
}

impl Label {
    fn parse(text: &str) -> Option<Label> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        Some(Label { user: parts.next()?, role: parts.next()?, kind: parts.next()?, level: parts.next().unwrap_or_default() })
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        if self.level.is_empty() { Ok(()) } else { write!(f, ":{}", self.level) }
    }
}

/// The labels of one container. Empty: none is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    pub process: String,
    /// For the `context=` option of its own mounts.
    pub mount: String,
}

/// Whether the kernel enforces or at least knows a policy: selinuxfs is mounted at its place.
pub fn is_enabled() -> bool {
    let open = || sys::fd::open(c"/sys/fs/selinux", libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC, 0);
    let kind = open().and_then(|dir| sys::fs::fstatfs(dir.as_fd())).map(|fs| fs.f_type);
    #[allow(clippy::useless_conversion)] // its width and sign differ by architecture
    kind.is_ok_and(|kind| i64::from(kind) & 0xffff_ffff == SELINUX_MAGIC)
}

impl Policy {
    /// Reads the policy's `lxc_contexts` below `root` (`/etc/selinux`). `None`: it has no labels for containers.
    pub fn read(root: &Path) -> Option<Policy> {
        let config = read_small(&root.join("config"))?;
        let kind = value_of(&config, "SELINUXTYPE")?;
        if kind.contains('/') || kind.starts_with('.') {
            return None;
        }
        Policy::from_contexts(&read_small(&root.join(kind).join("contexts/lxc_contexts"))?)
    }

    fn from_contexts(text: &str) -> Option<Policy> {
        Some(Policy { process: Label::parse(&value_of(text, "process")?)?, file: Label::parse(&value_of(text, "file")?)? })
    }

    /// A container's labels with its options; `level` as [`Levels::take`] gives it.
    pub fn labels(&self, options: &[LabelOption], level: &str) -> Labels {
        let (mut process, mut mount) = (self.process.clone(), self.file.clone());
        if !process.level.is_empty() {
            level.clone_into(&mut process.level);
            level.clone_into(&mut mount.level);
        }
        for option in options {
            match option {
                // The files get a level that no confined container has.
                LabelOption::Disable => {
                    mount.level = format!("s0:c{},c{}", CATEGORIES - 2, CATEGORIES - 1);
                    return Labels { process: String::new(), mount: mount.to_string() };
                }
                LabelOption::FileType(kind) => mount.kind.clone_from(kind),
                LabelOption::Role(role) => process.role.clone_from(role),
                LabelOption::Type(kind) => process.kind.clone_from(kind),
                LabelOption::User(user) => {
                    process.user.clone_from(user);
                    mount.user.clone_from(user);
                }
                LabelOption::Level(level) => {
                    process.level.clone_from(level);
                    mount.level.clone_from(level);
                }
            }
        }
        Labels { process: process.to_string(), mount: mount.to_string() }
    }
}

/// The level of a label, as [`Levels::reserve`] takes it.
pub fn level_of(label: &str) -> Option<String> {
    Label::parse(label).map(|label| label.level).filter(|level| !level.is_empty())
}

/// The levels in use, so that each container has two categories of its own.
#[derive(Debug, Default)]
pub struct Levels {
    taken: BTreeSet<String>,
}

impl Levels {
    /// A level that no container has. `random` gives numbers.
    pub fn take(&mut self, mut random: impl FnMut() -> u16) -> String {
        // Half a million pairs; the containers of a host are far fewer. One pair twice would only part two less.
        for _ in 0..1000 {
            let (a, b) = (random() % (CATEGORIES - 2), random() % (CATEGORIES - 2));
            let level = format!("s0:c{},c{}", a.min(b), a.max(b));
            if a != b && self.taken.insert(level.clone()) {
                return level;
            }
        }
        "s0:c0,c1".to_owned()
    }

    /// A level that a container has already, after a restart of the daemon or by its own option.
    pub fn reserve(&mut self, level: &str) {
        self.taken.insert(level.to_owned());
    }

    pub fn release(&mut self, level: &str) {
        self.taken.remove(level);
    }
}

/// `key = "value"` of a policy's file.
fn value_of(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn read_small(path: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(1 << 16).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"system_u:object_r:virt_var_lib_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\n";

    fn labels(options: &[&str]) -> Labels {
        let options: Vec<LabelOption> = options.iter().map(|o| LabelOption::parse(o).unwrap()).collect();
        Policy::from_contexts(CONTEXTS).unwrap().labels(&options, "s0:c1,c2")
    }

    #[test]
    fn labels_follow_the_options() {
        let cases: [(&[&str], &str, &str); 5] = [
            (&[], "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"),
            (&["type:spc_t"], "system_u:system_r:spc_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"),
            (&["level:s0:c7"], "system_u:system_r:container_t:s0:c7", "system_u:object_r:container_file_t:s0:c7"),
            (&["user:u", "role:r", "filetype:f_t"], "u:r:container_t:s0:c1,c2", "u:object_r:f_t:s0:c1,c2"),
            (&["disable"], "", "system_u:object_r:container_file_t:s0:c1022,c1023"),
        ];
        for (options, process, mount) in cases {
            let got = labels(options);
            assert_eq!((got.process.as_str(), got.mount.as_str()), (process, mount), "{options:?}");
        }
    }

    #[test]
    fn bad_options_are_refused() {
        for bad in ["", "enable", "type", "type:", "colour:red", "type:a b", "type:a\"b", "level:s0\n"] {
            let error = LabelOption::parse(bad).unwrap_err();
            assert!(error.message.starts_with("bad label option"), "{}", error.message);
        }
    }

    #[test]
    fn levels_are_unique() {
        let mut levels = Levels::default();
        let mut state = 1u16;
        let mut random = || {
            state = state.wrapping_mul(25173).wrapping_add(13849);
            state
        };
        let taken: BTreeSet<String> = (0..500).map(|_| levels.take(&mut random)).collect();
        assert_eq!(taken.len(), 500);
        let one = taken.first().unwrap();
        levels.release(one);
        assert!(!levels.taken.contains(one));
        assert_eq!(level_of("a:b:c:s0:c1,c2").as_deref(), Some("s0:c1,c2"));
    }

    #[test]
    fn a_policy_without_levels_gets_none() {
        let policy = Policy::from_contexts("process = u:r:t\nfile = u:r:f\n").unwrap();
        assert_eq!(policy.labels(&[], "s0:c1,c2"), Labels { process: "u:r:t".into(), mount: "u:r:f".into() });
        assert_eq!(Policy::from_contexts("process = x\n"), None);
    }
}
