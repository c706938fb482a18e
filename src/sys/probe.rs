//! System calls by bare number, for tests that ask what a filter lets through.

use std::ffi::{c_int, c_long};
use std::io;

/// `syscall(2)` with any number and arguments: 0 for success of any kind, else the errno.
///
/// Only for calls that a filter refuses, or whose arguments point nowhere and so change nothing.
pub fn errno_of(number: u32, args: [u64; 6]) -> c_int {
    // The kernel takes registers: bits are what counts, also above 32 and of negative numbers.
    let [a, b, c, d, e, f] = args.map(u64::cast_signed);
    // SAFETY: by the function's contract no argument that is taken for an address points into this process.
    let result = unsafe { libc::syscall(c_long::from(number), a, b, c, d, e, f) };
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

/// As [`errno_of`], through the i386 door `int 0x80`; five arguments, with their high halves as they are. A kernel
/// without IA32 emulation answers with SIGSEGV.
#[cfg(target_arch = "x86_64")]
pub fn errno_of_i386(number: u32, args: [u64; 5]) -> c_int {
    let result: i32;
    // SAFETY: as in `errno_of`; rbx, which the compiler keeps for itself, is exchanged and put back; the kernel may
    // clear r8 to r11, which are declared lost.
    unsafe {
        std::arch::asm!(
            "xchg {first}, rbx",
            "int 0x80",
            "xchg {first}, rbx",
            first = inout(reg) args[0] => _,
            inlateout("eax") number => result,
            in("rcx") args[1],
            in("rdx") args[2],
            in("rsi") args[3],
            in("rdi") args[4],
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
        );
    }
    if result < 0 { -result } else { 0 }
}
