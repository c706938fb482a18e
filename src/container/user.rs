//! Who a container's process runs as: "user:group" looked up in the image's own passwd and group files.
//!
//! The files belong to a stranger: they are opened inside the root without following anything out of it, must be regular
//! files, and are read to a bound. A number is digits only; whatever is not a number must be found by name.

use super::report::{Failure, Step};
use super::rootfs;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

/// Bytes of passwd or group that are read; what is behind them does not exist.
const FILE_MAX: usize = 1 << 20;
/// A longer line is skipped.
const LINE_MAX: usize = 4096;
/// The largest id that Docker accepts.
const ID_MAX: u64 = 0x7fff_ffff;

/// A user or group as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Id {
    Name(String),
    Number(u32),
}

impl Id {
    /// Digits are a number, which must be in range; everything else is a name.
    pub fn parse(text: &str) -> Result<Id, Failure> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Id::Name(text.to_owned()));
        }
        match text.parse::<u64>() {
            Ok(number) if number <= ID_MAX => Ok(Id::Number(u32::try_from(number).unwrap_or(u32::MAX))),
            _ => Err(Failure::new(Step::IdRange, text, 0)),
        }
    }

    fn is(&self, name: &str, number: u32) -> bool {
        match self {
            Id::Name(wanted) => wanted == name,
            Id::Number(wanted) => *wanted == number,
        }
    }

    fn text(&self) -> String {
        match self {
            Id::Name(name) => name.clone(),
            Id::Number(number) => number.to_string(),
        }
    }
}

/// `Config.User` and `HostConfig.GroupAdd`, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    pub user: Id,
    /// Given explicitly: then it is the only group.
    pub group: Option<Id>,
    pub extra_groups: Vec<Id>,
}

impl UserSpec {
    /// "", "user", "user:group", each part a name or a number. Empty means root.
    pub fn parse(user: &str, group_add: &[String]) -> Result<UserSpec, Failure> {
        let mut parts = user.split(':');
        let user = match parts.next() {
            None | Some("") => Id::Number(0),
            Some(user) => Id::parse(user)?,
        };
        let group = match parts.next() {
            None | Some("") => None,
            Some(group) => Some(Id::parse(group)?),
        };
        let extra_groups = group_add.iter().map(|group| Id::parse(group)).collect::<Result<_, _>>()?;
        Ok(UserSpec { user, group, extra_groups })
    }
}

/// The ids to run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    /// The home directory; "/" where passwd does not say.
    pub home: CString,
}

/// Looks the user up in the files under `root`.
pub fn resolve(root: BorrowedFd, spec: &UserSpec) -> Result<Identity, Failure> {
    let passwd = read(root, c"etc/passwd", "/etc/passwd")?;
    let group = read(root, c"etc/group", "/etc/group")?;
    resolve_in(spec, &passwd, &group)
}

fn read(root: BorrowedFd, path: &std::ffi::CStr, name: &str) -> Result<Vec<u8>, Failure> {
    match rootfs::read_regular(root, path, FILE_MAX) {
        Ok(content) => Ok(content),
        // An image without the file, or with a directory or device in its place, has no names.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EISDIR | libc::EINVAL | libc::ENXIO)) => {
            Ok(Vec::new())
        }
        Err(e) => Err(Failure::new(Step::UserFile, name, e.raw_os_error().unwrap_or(libc::EIO))),
    }
}

/// The fields of each well-formed line; comments and blank lines are left out.
fn records(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    file.split(|b| *b == b'\n')
        .filter(|line| line.len() <= LINE_MAX)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

/// A number in passwd or group; a field that is none makes its line invisible.
fn field(fields: &[&str], at: usize) -> Option<u32> {
    let text = fields.get(at)?;
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn resolve_in(spec: &UserSpec, passwd: &[u8], group: &[u8]) -> Result<Identity, Failure> {
    let entry = records(passwd).find_map(|fields| {
        let (uid, gid) = (field(&fields, 2)?, field(&fields, 3)?);
        spec.user.is(fields.first()?, uid).then(|| (fields[0].to_owned(), uid, gid, fields.get(5).copied().unwrap_or("").to_owned()))
    });
    let (name, uid, mut gid, home) = match (entry, &spec.user) {
        (Some((name, uid, gid, home)), _) => (Some(name), uid, gid, home),
        (None, Id::Number(uid)) => (None, *uid, 0, String::new()),
        (None, Id::Name(name)) => return Err(Failure::new(Step::UserUnknown, name.clone(), 0)),
    };
    let mut groups = Vec::new();
    match (&spec.group, name) {
        (Some(wanted), _) => gid = find_group(group, wanted).ok_or_else(|| Failure::new(Step::GroupUnknown, wanted.text(), 0))?,
        (None, Some(name)) => groups.extend(records(group).filter_map(|fields| {
            let members = fields.get(3)?;
            if members.split(',').any(|member| member == name) { field(&fields, 2) } else { None }
        })),
        (None, None) => {}
    }
    for extra in &spec.extra_groups {
        groups.push(find_group(group, extra).ok_or_else(|| Failure::new(Step::ExtraGroupUnknown, extra.text(), 0))?);
    }
    let mut all = vec![gid];
    for group in groups {
        if !all.contains(&group) {
            all.push(group);
        }
    }
    let home = if home.is_empty() { "/".to_owned() } else { home };
    let home = CString::new(home).map_err(|_| Failure::new(Step::UserFile, "/etc/passwd", libc::EINVAL))?;
    Ok(Identity { uid, gid, groups: all, home })
}

/// The id of a group: found by name, or the number itself.
fn find_group(group: &[u8], wanted: &Id) -> Option<u32> {
    match wanted {
        Id::Number(gid) => Some(*gid),
        Id::Name(name) => records(group).find_map(|fields| if fields.first()? == name { field(&fields, 2) } else { None }),
    }
}

/// Kept here so that callers need not know which errno a missing name has.
pub fn is_unknown(failure: &Failure) -> bool {
    matches!(failure.step, Step::UserUnknown | Step::GroupUnknown | Step::ExtraGroupUnknown)
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        io::Error::from_raw_os_error(if failure.errno == 0 { libc::EINVAL } else { failure.errno })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# note\nbad:x:one:1::/:\nbob:x:1000:1001:Bob:/home/bob:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,bob\nusers:x:100:bob\nbob:x:1001:\n";

    fn resolve(user: &str, extra: &[&str]) -> Result<Identity, Failure> {
        let extra: Vec<String> = extra.iter().map(|group| (*group).to_owned()).collect();
        resolve_in(&UserSpec::parse(user, &extra)?, PASSWD, GROUP)
    }

    fn identity(user: &str) -> (u32, u32, Vec<u32>, String) {
        let found = resolve(user, &[]).unwrap();
        (found.uid, found.gid, found.groups, found.home.into_string().unwrap())
    }

    #[test]
    fn names_and_numbers_resolve_as_in_the_reference() {
        assert_eq!(identity(""), (0, 0, vec![0, 10], "/root".into()));
        assert_eq!(identity("bob"), (1000, 1001, vec![1001, 10, 100], "/home/bob".into()));
        assert_eq!(identity("1000"), (1000, 1001, vec![1001, 10, 100], "/home/bob".into()));
        assert_eq!(identity("1000:"), (1000, 1001, vec![1001, 10, 100], "/home/bob".into()));
        assert_eq!(identity("bob:wheel"), (1000, 10, vec![10], "/home/bob".into()));
        assert_eq!(identity("77:88"), (77, 88, vec![88], "/".into()));
        assert_eq!(identity("77"), (77, 0, vec![0], "/".into()));
    }

    #[test]
    fn extra_groups_come_after_the_user_s_own() {
        assert_eq!(resolve("77:88", &["wheel", "5", "88"]).unwrap().groups, [88, 10, 5]);
        assert_eq!(resolve("77", &["nosuch"]).unwrap_err().step, Step::ExtraGroupUnknown);
    }

    #[test]
    fn lenient_numbers_never_become_root() {
        for user in ["-1", "0x0", "+0", " 0", "bad", "nobody"] {
            assert_eq!(resolve(user, &[]).unwrap_err().step, Step::UserUnknown, "{user}");
        }
        for user in ["4294967296", "2147483648", "99999999999999999999"] {
            assert_eq!(UserSpec::parse(user, &[]).unwrap_err().step, Step::IdRange, "{user}");
        }
        assert_eq!(resolve("bob:nosuch", &[]).unwrap_err().step, Step::GroupUnknown);
    }

    #[test]
    fn a_long_line_is_not_a_user() {
        let mut passwd = b"long:x:5:5:".to_vec();
        passwd.extend(std::iter::repeat_n(b'a', 5000));
        let spec = UserSpec::parse("long", &[]).unwrap();
        assert_eq!(resolve_in(&spec, &passwd, b"").unwrap_err().step, Step::UserUnknown);
    }
}
