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

/// A struct timespec; what the target's `time_t` or `tv_nsec` can't hold becomes 0.
#[allow(clippy::useless_conversion)] // both fields are 32 bits wide on some targets
pub fn timespec(seconds: i64, nanoseconds: u32) -> libc::timespec {
    // SAFETY: a struct of integers and padding, for which zeroes are valid.
    let mut time: libc::timespec = unsafe { MaybeUninit::zeroed().assume_init() };
    time.tv_sec = seconds.try_into().unwrap_or(0);
    time.tv_nsec = nanoseconds.into();
    time
}

#[allow(clippy::useless_conversion)] // tv_nsec is 32 bits wide on some targets
fn nanoseconds(time: libc::timespec) -> i64 {
    i64::from(time.tv_sec) * 1_000_000_000 + i64::from(time.tv_nsec)
}
