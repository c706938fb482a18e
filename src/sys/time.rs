//! Clocks.

use std::mem::MaybeUninit;

fn clock_gettime(clock: libc::clockid_t) -> libc::timespec {
    let mut now = MaybeUninit::zeroed();
    // SAFETY: the kernel fills one struct timespec; the clocks used here always exist.
    unsafe { libc::clock_gettime(clock, now.as_mut_ptr()) };
    // SAFETY: filled by the call, and zeroed is a valid timespec in any case.
    unsafe { now.assume_init() }
}

/// Wall clock, nanoseconds since 1970.
pub fn realtime_ns() -> i64 {
    nanoseconds(clock_gettime(libc::CLOCK_REALTIME))
}

/// CLOCK_BOOTTIME in milliseconds: never steps, and counts suspend, so that timeouts mean what they say.
pub fn boottime_ms() -> u64 {
    u64::try_from(nanoseconds(clock_gettime(libc::CLOCK_BOOTTIME)) / 1_000_000).unwrap_or(0)
}

#[allow(clippy::useless_conversion)] // tv_nsec is 32 bits wide on some targets
fn nanoseconds(time: libc::timespec) -> i64 {
    i64::from(time.tv_sec) * 1_000_000_000 + i64::from(time.tv_nsec)
}
