//! prctl, capabilities, seccomp, keyring.

use super::{check, check_long};
use std::ffi::{CStr, c_int, c_ulong};
use std::io;

fn prctl(option: c_int, a: c_ulong, b: c_ulong) -> io::Result<c_int> {
    // SAFETY: only options that take plain numbers are passed by the callers in this file.
    check(unsafe { libc::prctl(option, a, b, 0 as c_ulong, 0 as c_ulong) })
}

/// PR_SET_NAME: at most 15 bytes are kept.
pub fn set_name(name: &CStr) {
    // SAFETY: `name` is NUL-terminated; the kernel reads at most 16 bytes up to the NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// PR_SET_PDEATHSIG.
pub fn set_pdeathsig(signal: c_int) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, c_ulong::from(signal.cast_unsigned()), 0).map(drop)
}

/// PR_SET_DUMPABLE.
pub fn set_dumpable(on: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, c_ulong::from(on), 0).map(drop)
}

/// PR_SET_CHILD_SUBREAPER.
pub fn set_child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// PR_SET_NO_NEW_PRIVS.
pub fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// PR_SET_KEEPCAPS.
pub fn set_keepcaps(on: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, c_ulong::from(on), 0).map(drop)
}

/// PR_CAPBSET_READ: whether `capability` is in the bounding set; EINVAL beyond the kernel's last.
pub fn capbset_read(capability: u8) -> io::Result<bool> {
    prctl(libc::PR_CAPBSET_READ, c_ulong::from(capability), 0).map(|set| set == 1)
}

/// PR_CAPBSET_DROP.
pub fn capbset_drop(capability: u8) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, c_ulong::from(capability), 0).map(drop)
}

/// PR_CAP_AMBIENT_CLEAR_ALL.
pub fn clear_ambient() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, c_ulong::from(libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned()), 0).map(drop)
}

/// The three sets of capabilities of this thread, as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// _LINUX_CAPABILITY_VERSION_3 of linux/capability.h.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// `capset(2)` of this thread.
pub fn capset(sets: Capabilities) -> io::Result<()> {
    #[allow(clippy::cast_possible_truncation)] // split into halves on purpose
    let half = |shift: u32| CapData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two data structs, which are live.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// `capget(2)` of this thread.
pub fn capget() -> io::Result<Capabilities> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads one header and writes two data structs.
    check_long(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Capabilities {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// One instruction of classic BPF (struct sock_filter).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BpfInstruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

#[repr(C)]
struct BpfProgram {
    length: u16,
    filter: *const BpfInstruction,
}

/// `seccomp(SECCOMP_SET_MODE_FILTER)`; needs CAP_SYS_ADMIN or no_new_privs.
pub fn seccomp_set_filter(filter: &[BpfInstruction], flags: libc::c_ulong) -> io::Result<()> {
    let length = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = BpfProgram { length, filter: filter.as_ptr() };
    // SAFETY: the program points at `length` live instructions; the kernel copies them.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }).map(drop)
}

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING)`: a new session keyring of this name.
pub fn keyctl_join_session_keyring(name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is NUL-terminated and only read.
    check_long(unsafe { libc::syscall(libc::SYS_keyctl, 1, name.as_ptr()) }).map(drop)
}

/// `getrandom(2)`: fills the buffer.
pub fn getrandom(buf: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buf.len() {
        let rest = &mut buf[filled..];
        // SAFETY: the kernel writes at most `rest.len()` bytes into `rest`.
        filled += super::retry(|| super::check_size(unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) }))?;
    }
    Ok(())
}
