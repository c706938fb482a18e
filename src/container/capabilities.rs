//! Capabilities: names and bits, the default set, and what CapAdd and CapDrop make of it.

use crate::error::{Error, Result};

/// Names in the order of their bits (linux/capability.h), without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container gets for which nothing else was asked: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID
/// SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP.
pub const DEFAULT: u64 = 0xa804_25fb;

const ALL: &str = "ALL";

/// The mask of one capability by its full, upper-case name ("CAP_CHOWN"); 0 for a name that does not exist.
pub fn bit(name: &str) -> u64 {
    let Some(name) = name.strip_prefix("CAP_") else { return 0 };
    NAMES.iter().position(|n| *n == name).map_or(0, |at| 1 << at)
}

/// The full names in a mask, in the order of their bits; bits without a name are left out.
pub fn names(mask: u64) -> impl Iterator<Item = String> {
    NAMES.iter().enumerate().filter(move |(at, _)| mask & 1 << at != 0).map(|(_, name)| format!("CAP_{name}"))
}

/// All capabilities up to the kernel's last (`/proc/sys/kernel/cap_last_cap`).
pub fn up_to(last: u8) -> u64 {
    if last >= 63 { u64::MAX } else { (1 << (last + 1)) - 1 }
}

/// The list as it is stored and inspected: upper case, with `CAP_`, `ALL` as it is, in the order given. `known` are
/// the capabilities of this kernel.
///
/// # Errors
/// InvalidParameter, `unknown capability: "CAP_X"`.
pub fn normalize(list: &[String], known: u64) -> Result<Vec<String>> {
    list.iter()
        .map(|given| {
            let upper = given.to_uppercase();
            if upper == ALL {
                return Ok(upper);
            }
            let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
            if bit(&full) & known == 0 { Err(Error::invalid(format!("unknown capability: {full:?}"))) } else { Ok(full) }
        })
        .collect()
}

/// CapAdd and CapDrop of a create request, normalised.
///
/// # Errors
/// InvalidParameter, `invalid CapAdd: unknown capability: "CAP_X"`.
pub fn normalize_pair(add: &[String], drop: &[String], known: u64) -> Result<(Vec<String>, Vec<String>)> {
    let within = |field: &'static str| move |e: Error| Error::new(e.kind, format!("invalid {field}: {}", e.message));
    Ok((normalize(add, known).map_err(within("CapAdd"))?, normalize(drop, known).map_err(within("CapDrop"))?))
}

/// The container's bounding set. `daemon_bounding` is what we can give at all: asking for more than that does not
/// fail the start, neither for a privileged container nor by name or `ALL`.
///
/// # Errors
/// InvalidParameter for a name that does not exist.
pub fn tweak(add: &[String], drop: &[String], privileged: bool, daemon_bounding: u64) -> Result<u64> {
    let known = up_to(40);
    let (add, drop) = normalize_pair(add, drop, known)?;
    if privileged {
        return Ok(daemon_bounding & known);
    }
    let is_all = |list: &[String]| list.iter().any(|name| name == ALL);
    let mask = |list: &[String]| list.iter().fold(0, |mask, name| mask | bit(name));
    // The order of the reference: adding ALL wins over dropping ALL; single names dropped win over ALL added, and
    // single names added win over everything dropped.
    let wanted = match (is_all(&add), is_all(&drop)) {
        (true, _) => known & !mask(&drop),
        (false, true) => mask(&add),
        (false, false) => DEFAULT & !mask(&drop) | mask(&add),
    };
    Ok(wanted & daemon_bounding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn tweaked(add: &[&str], drop: &[&str]) -> u64 {
        tweak(&list(add), &list(drop), false, up_to(40)).unwrap()
    }

    #[test]
    fn default_mask_is_the_documented_list() {
        let expected = [
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_NET_RAW",
            "CAP_SYS_CHROOT",
            "CAP_MKNOD",
            "CAP_AUDIT_WRITE",
            "CAP_SETFCAP",
        ];
        assert_eq!(names(DEFAULT).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn bits_are_the_kernels() {
        for (name, at) in [("CAP_CHOWN", 0), ("CAP_SYS_ADMIN", 21), ("CAP_SETFCAP", 31), ("CAP_BPF", 39), ("CAP_CHECKPOINT_RESTORE", 40)] {
            assert_eq!(bit(name), 1 << at, "{name}");
        }
        assert_eq!((bit("CHOWN"), bit("CAP_X"), bit("ALL")), (0, 0, 0));
    }

    #[test]
    fn up_to_the_last() {
        assert_eq!((up_to(0), up_to(40), up_to(63), up_to(255)), (1, 0x1ff_ffff_ffff, u64::MAX, u64::MAX));
    }

    #[test]
    fn tweak_knows_all_in_both_lists() {
        let all = up_to(40);
        let admin = bit("CAP_SYS_ADMIN");
        let cases: [(&[&str], &[&str], u64); 9] = [
            (&[], &[], DEFAULT),
            (&["SYS_ADMIN"], &[], DEFAULT | admin),
            (&["cap_sys_admin"], &[], DEFAULT | admin),
            (&[], &["CHOWN"], DEFAULT & !1),
            (&[], &["all"], 0),
            (&["CHOWN"], &["ALL"], 1),
            (&["ALL"], &[], all),
            (&["ALL"], &["SYS_ADMIN"], all & !admin),
            (&["ALL"], &["ALL"], all),
        ];
        for (add, drop, mask) in cases {
            assert_eq!(tweaked(add, drop), mask, "{add:?} {drop:?}");
        }
        // Named in both lists: added after dropped.
        assert_eq!(tweaked(&["CHOWN"], &["CHOWN"]), DEFAULT);
    }

    #[test]
    fn nothing_beyond_the_daemons_own_bounding_set() {
        let daemon = DEFAULT;
        assert_eq!(tweak(&[], &[], true, daemon).unwrap(), daemon);
        assert_eq!(tweak(&list(&["ALL"]), &[], false, daemon).unwrap(), daemon);
        assert_eq!(tweak(&list(&["SYS_ADMIN"]), &[], false, daemon).unwrap(), daemon);
    }

    #[test]
    fn unknown_names_are_refused_in_the_references_words() {
        for bad in ["X", "CAP_X", "x", "CAP_", "", "CAP_CAP_CHOWN", "CHOWN "] {
            let error = tweak(&list(&[bad]), &[], false, u64::MAX).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidParameter);
            assert!(error.message.starts_with("invalid CapAdd: unknown capability: \"CAP_"), "{}", error.message);
        }
        let error = tweak(&[], &list(&["nope"]), true, u64::MAX).unwrap_err();
        assert_eq!(error.message, "invalid CapDrop: unknown capability: \"CAP_NOPE\"");
    }

    #[test]
    fn a_capability_newer_than_the_kernel_is_unknown() {
        assert!(normalize(&list(&["CHECKPOINT_RESTORE"]), up_to(37)).is_err());
        assert_eq!(normalize(&list(&["chown", "CAP_KILL", "all"]), up_to(37)).unwrap(), ["CAP_CHOWN", "CAP_KILL", "ALL"]);
    }
}
