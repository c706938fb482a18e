//! bpf(2), for the one program type that cgroups v2 need: device access.

use super::{check_long, owned_long};
use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// One instruction of extended BPF (struct bpf_insn).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u8,
    /// Destination in the low four bits, source in the high four (as on every little-endian target; see [`Instruction::new`]).
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

impl Instruction {
    /// The two register fields are C bit fields, whose order follows the target's byte order.
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
        let registers = if cfg!(target_endian = "little") { destination | source << 4 } else { destination << 4 | source };
        Instruction { code, registers, offset, immediate }
    }
}

/// The commands and types of linux/bpf.h that are used here.
const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_ATTACH: c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Other programs on this cgroup and its ancestors are asked too; all must allow.
pub const BPF_F_ALLOW_MULTI: u32 = 2;

/// The head of union bpf_attr for BPF_PROG_LOAD, up to `prog_flags`; the kernel takes the rest as zero.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of union bpf_attr for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// BPF_PROG_LOAD of a device program: the kernel's verifier has accepted it when this returns a descriptor.
pub fn prog_load_device(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        insns: program.as_ptr().addr() as u64,
        // No helper function is called that asks for the GPL.
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let size = c_uint::try_from(size_of::<LoadAttr>()).unwrap_or(0);
    // SAFETY: `attr` is a live, fully initialised prefix of union bpf_attr of the size given; `insns` points at `insn_cnt`
    // live instructions and `license` at a NUL-terminated constant. The kernel only reads.
    check_long(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size) }).and_then(owned_long)
}

/// BPF_PROG_ATTACH of a device program to a v2 cgroup directory. It stays attached when both descriptors are closed.
pub fn prog_attach_device(cgroup: BorrowedFd, program: BorrowedFd, flags: u32) -> io::Result<()> {
    let attr = AttachAttr {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: flags,
    };
    let size = c_uint::try_from(size_of::<AttachAttr>()).unwrap_or(0);
    // SAFETY: `attr` is a live, fully initialised prefix of union bpf_attr of the size given; the kernel only reads.
    check_long(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size) }).map(drop)
}
