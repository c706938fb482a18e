//! Crash points: with the `crash-points` feature and CORACLE_CRASH_AT=n, the daemon aborts at its n-th
//! state-changing system call. Without the feature every call here compiles to nothing.

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::atomic::{AtomicI64, Ordering};

    /// Calls left before the abort; negative when disarmed.
    static LEFT: AtomicI64 = AtomicI64::new(-1);

    pub fn arm_from_environment() {
        if let Some(n) = std::env::var("CORACLE_CRASH_AT").ok().and_then(|n| n.parse().ok()) {
            LEFT.store(n, Ordering::Relaxed);
        }
    }

    pub fn disarm() {
        LEFT.store(-1, Ordering::Relaxed);
    }

    pub fn point() {
        let left = LEFT.load(Ordering::Relaxed);
        if left < 0 {
            return;
        }
        if left <= 1 {
            std::process::abort();
        }
        LEFT.store(left - 1, Ordering::Relaxed);
    }
}

/// Reads CORACLE_CRASH_AT; called once by the daemon after its start.
pub fn arm_from_environment() {
    #[cfg(feature = "crash-points")]
    armed::arm_from_environment();
}

/// For forked children: only the daemon itself counts.
pub fn disarm() {
    #[cfg(feature = "crash-points")]
    armed::disarm();
}

/// Stands before every system call that changes state outside this process.
pub(crate) fn point() {
    #[cfg(feature = "crash-points")]
    armed::point();
}
