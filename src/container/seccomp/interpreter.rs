//! Classic BPF as the kernel runs it for seccomp, for tests: a filter for a machine that is not here can be judged
//! call by call.

use super::Arch;
use crate::sys::security::BpfInstruction;

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Call {
    pub number: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Call {
    pub(super) fn new(arch: Arch, number: u32, args: &[u64]) -> Call {
        let mut call = Call { number, arch: arch.audit(), args: [0; 6] };
        call.args[..args.len()].copy_from_slice(args);
        call
    }

    /// The 32-bit word at `offset`, on the machine that runs the test.
    fn word(&self, offset: u32) -> Option<u32> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(self.number.to_ne_bytes());
        bytes.extend(self.arch.to_ne_bytes());
        bytes.extend([0; 8]); // instruction pointer
        bytes.extend(self.args.iter().flat_map(|arg| arg.to_ne_bytes()));
        let at = usize::try_from(offset).ok()?;
        if at % 4 != 0 {
            return None;
        }
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    }
}

/// Runs the filter; `None` where the kernel would refuse to load it: a jump or load out of bounds, an instruction
/// that seccomp does not take, or no return.
pub(super) fn run(program: &[BpfInstruction], call: &Call) -> Option<u32> {
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let BpfInstruction { code, jt, jf, k } = *program.get(at)?;
        at += 1;
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            0x20 => accumulator = call.word(k)?,
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).ok()?,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return Some(k),
            _ => return None,
        }
    }
}
