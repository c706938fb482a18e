//! The filter on this machine's kernel, in forked children: what the interpreter says, the kernel does.

use super::interpreter::{Call, run};
use super::numbers::{X32_BIT, calls};
use super::program::{JMP_JEQ_K, LD_W_ABS, NUMBER_OFFSET, RET_K, plain};
use super::{Arch, Profile};
use crate::container::capabilities;
use crate::sys;
use crate::sys::probe;
use crate::sys::process::ExitStatus;
use crate::sys::security::BpfInstruction;
use std::ffi::c_int;
use std::os::fd::AsFd;

const ALLOW: u32 = 0x7fff_0000;

/// What the sweep's filter answers in place of permission, so that nothing is ever carried out.
const WOULD_ALLOW: u32 = 2000;

/// Runs the probes under the filter in a child. `None`: the child was killed by SIGSEGV, as `int 0x80` does it
/// where the kernel has no IA32 emulation.
fn under(filter: &[BpfInstruction], probes: usize, probe: impl Fn(usize) -> c_int) -> Option<Vec<c_int>> {
    let (reader, writer) = sys::fd::pipe2(libc::O_CLOEXEC).unwrap();
    sys::fd::set_pipe_size(writer.as_fd(), 1 << 16).unwrap();
    let mut results = vec![0u8; probes * 4];
    let Some(child) = sys::process::fork().unwrap() else {
        // The other threads of the test did not come along: no allocation, no panic from here.
        let loaded = sys::security::set_no_new_privs().and_then(|()| sys::security::seccomp_set_filter(filter, 0));
        if loaded.is_ok() {
            for (at, result) in results.chunks_exact_mut(4).enumerate() {
                result.copy_from_slice(&probe(at).to_ne_bytes());
            }
            let _ = sys::fd::write_all(writer.as_fd(), &results);
        }
        sys::process::exit(i32::from(loaded.is_err()));
    };
    drop(writer);
    let mut filled = 0;
    while let Ok(n @ 1..) = sys::fd::read(reader.as_fd(), &mut results[filled..]) {
        filled += n;
    }
    match sys::process::waitpid(child, 0).unwrap() {
        Some((_, ExitStatus::Signal(libc::SIGSEGV))) => None,
        Some((_, ExitStatus::Code(0))) if filled == results.len() => {
            Some(results.chunks_exact(4).map(|b| c_int::from_ne_bytes(b.try_into().unwrap())).collect())
        }
        other => panic!("probing child: {other:?}, {filled} bytes"),
    }
}

fn native_number(name: &str) -> u32 {
    calls(Arch::native()).find(|(n, _)| *n == name).unwrap().1
}

/// The filter with "allow" made an error, but for the two calls by which the child reports. Those are recognised by
/// their bare number: on another architecture the same number stays in the sweep's blind spot.
fn harmless(filter: &[BpfInstruction]) -> Vec<BpfInstruction> {
    let mut program = vec![plain(LD_W_ABS, NUMBER_OFFSET)];
    for name in ["write", "exit_group"] {
        program.push(BpfInstruction { code: JMP_JEQ_K, jt: 0, jf: 1, k: native_number(name) });
        program.push(plain(RET_K, ALLOW));
    }
    let rest = filter.iter().map(|i| if (i.code, i.k) == (RET_K, ALLOW) { plain(RET_K, 0x0005_0000 | WOULD_ALLOW) } else { *i });
    program.extend(rest);
    program
}

/// The errno that a call must end with under [`harmless`].
fn expected(filter: &[BpfInstruction], call: &Call) -> c_int {
    match run(filter, call).unwrap() {
        ALLOW => WOULD_ALLOW.cast_signed(),
        value => (value & 0xffff).cast_signed(),
    }
}

const SAMPLES: [u64; 6] = [0, 17, 38, 0x1_0000_0026, 0x7e02_0000, u64::MAX];

#[test]
fn every_native_number_ends_as_the_interpreter_says() {
    for mask in [capabilities::DEFAULT, capabilities::up_to(40)] {
        let filter = Profile::builtin().compile(Arch::native(), mask, (6, 1)).unwrap();
        let mut skip = vec![native_number("write"), native_number("exit_group")];
        if Arch::native() == Arch::X86_64 {
            // Since 6.14 the kernel asks no filter about its own trampolines, and a call from elsewhere is SIGILL.
            skip.extend(["uretprobe", "uprobe"].map(native_number));
        }
        let bits = if Arch::native() == Arch::X86_64 { vec![0, X32_BIT] } else { vec![0] };
        let numbers: Vec<u32> = bits.iter().flat_map(|bit| (0..600).map(move |n| n | bit)).filter(|n| !skip.contains(n)).collect();
        let probe = |at: usize| (numbers[at / SAMPLES.len()], SAMPLES[at % SAMPLES.len()]);
        let probes = numbers.len() * SAMPLES.len();
        let results = under(&harmless(&filter), probes, |at| {
            let (number, argument) = probe(at);
            probe::errno_of(number, [argument, 0, 0, 0, 0, 0])
        });
        for (at, got) in results.unwrap().into_iter().enumerate() {
            let (number, argument) = probe(at);
            let call = Call::new(Arch::native(), number, &[argument]);
            assert_eq!(got, expected(&filter, &call), "call {number:#x} with {argument:#x}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn every_i386_number_through_int_0x80_too() {
    let filter = Profile::builtin().compile(Arch::native(), capabilities::DEFAULT, (6, 1)).unwrap();
    let skip = [native_number("write"), native_number("exit_group")];
    let numbers: Vec<u32> = (0..600).filter(|n| !skip.contains(n)).collect();
    let probe = |at: usize| (numbers[at / SAMPLES.len()], SAMPLES[at % SAMPLES.len()]);
    let results = under(&harmless(&filter), numbers.len() * SAMPLES.len(), |at| {
        let (number, argument) = probe(at);
        probe::errno_of_i386(number, [argument, 0, 0, 0, 0])
    });
    // A kernel without IA32 emulation has no such door.
    for (at, got) in results.into_iter().flatten().enumerate() {
        let (number, argument) = probe(at);
        let call = Call::new(Arch::X86, number, &[argument]);
        assert_eq!(got, expected(&filter, &call), "call {number} with {argument:#x}");
    }
}

/// The real filter. Arguments are such that the kernel would answer differently without it.
#[test]
fn the_default_filter_denies_and_allows() {
    let filter = Profile::builtin().compile(Arch::native(), capabilities::DEFAULT, (6, 1)).unwrap();
    let bad = u64::MAX;
    let cases: [(&str, [u64; 3], c_int); 19] = [
        ("getpid", [0; 3], 0),
        ("personality", [0xffff_ffff, 0, 0], 0),
        ("personality", [4, 0, 0], libc::EPERM),
        ("close", [bad, 0, 0], libc::EBADF),
        ("unshare", [0; 3], libc::EPERM),
        ("setns", [bad, 0, 0], libc::EPERM),
        ("keyctl", [bad, 0, 0], libc::EPERM),
        ("add_key", [0; 3], libc::EPERM),
        ("request_key", [0; 3], libc::EPERM),
        ("userfaultfd", [bad, 0, 0], libc::EPERM),
        ("bpf", [bad, 0, 0], libc::EPERM),
        ("mount", [0; 3], libc::EPERM),
        ("fsopen", [0; 3], libc::EPERM),
        ("io_uring_enter", [bad, 0, 0], libc::EPERM),
        ("clone3", [0; 3], libc::ENOSYS),
        ("open_tree_attr", [bad, 0, 0], libc::ENOSYS),
        ("socket", [bad, 0, 0], libc::EAFNOSUPPORT),
        ("socket", [38, 5, 0], libc::EPERM),
        ("socket", [38 | 1 << 32, 5, 0], libc::EPERM),
    ];
    let numbered = cases.map(|(name, args, _)| (native_number(name), args));
    let results = under(&filter, cases.len(), |at| {
        let (number, [a, b, c]) = numbered[at];
        probe::errno_of(number, [a, b, c, 0, 0, 0])
    });
    for ((name, args, want), got) in cases.into_iter().zip(results.unwrap()) {
        assert_eq!(got, want, "{name} {args:x?}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_default_filter_guards_int_0x80() {
    let filter = Profile::builtin().compile(Arch::native(), capabilities::DEFAULT, (6, 1)).unwrap();
    // getpid, close, unshare, keyctl, clone3, socket of AF_ALG plain and with the high half filled.
    let cases: [(u32, [u64; 3], c_int); 7] = [
        (20, [0; 3], 0),
        (6, [u64::MAX, 0, 0], libc::EBADF),
        (310, [0; 3], libc::EPERM),
        (288, [u64::MAX, 0, 0], libc::EPERM),
        (435, [0; 3], libc::ENOSYS),
        (359, [38, 5, 0], libc::EPERM),
        (359, [38 | 1 << 32, 5, 0], libc::EPERM),
    ];
    let results = under(&filter, cases.len(), |at| {
        let (number, [a, b, c], _) = cases[at];
        probe::errno_of_i386(number, [a, b, c, 0, 0])
    });
    for ((number, args, want), got) in cases.into_iter().zip(results.into_iter().flatten()) {
        assert_eq!(got, want, "{number} {args:x?}");
    }
}

#[test]
fn an_unlisted_architecture_kills() {
    let json = br#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[]}"#;
    let filter = Profile::from_json(json).unwrap().compile(Arch::native(), 0, (6, 1)).unwrap();
    let Some(child) = sys::process::fork().unwrap() else {
        let loaded = sys::security::set_no_new_privs().and_then(|()| sys::security::seccomp_set_filter(&filter, 0));
        if loaded.is_ok() && Arch::native() == Arch::X86_64 {
            probe::errno_of(X32_BIT | 39, [0; 6]);
        }
        sys::process::exit(i32::from(loaded.is_err()));
    };
    let status = sys::process::waitpid(child, 0).unwrap().unwrap().1;
    let want = if Arch::native() == Arch::X86_64 { ExitStatus::Signal(libc::SIGSYS) } else { ExitStatus::Code(0) };
    assert_eq!(status, want);
}
