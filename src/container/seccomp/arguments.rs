//! What the kernel does with arguments, where a filter has to know it.

use super::{Condition, Operator};

/// Whether the kernel takes argument `index` of this call as an `int` or `unsigned int` (its SYSCALL_DEFINE), and so
/// drops the register's high half. A filter that compared all 64 bits could be passed with garbage there:
/// `socket(1 << 32 | AF_ALG, …)` is a socket of AF_ALG. Only what profiles set conditions on is listed.
pub(super) fn is_int(name: &str, index: u8) -> bool {
    let indices: &[u8] = match name {
        "arch_prctl" | "inotify_init1" | "io_uring_setup" | "keyctl" | "memfd_secret" | "mlockall" | "personality" | "prctl" | "syslog" => {
            &[0]
        }
        "clock_adjtime" | "clock_adjtime64" | "clock_settime" | "clock_settime64" => &[0],
        "delete_module" | "memfd_create" | "mq_open" | "open" | "pipe2" | "swapon" | "umount2" => &[1],
        "fanotify_init" | "fcntl" | "fcntl64" | "ioctl" | "kill" | "pidfd_open" | "sched_setscheduler" | "seccomp" | "setns" => &[0, 1],
        "eventfd2" | "getpriority" | "msgctl" | "shmctl" | "timerfd_create" | "tkill" => &[0, 1],
        "madvise" => &[2],
        "bpf" | "finit_module" | "openat" | "quotactl" | "shmat" | "shmget" | "unlinkat" | "wait4" => &[0, 2],
        "futex" => &[1, 2],
        "close_range" | "dup3" | "getsockopt" | "ioprio_set" | "membarrier" | "pidfd_getfd" | "reboot" | "semctl" | "semget" => &[0, 1, 2],
        "setpriority" | "setsockopt" | "socket" | "socketpair" | "tgkill" => &[0, 1, 2],
        "accept4" | "signalfd4" => &[0, 3],
        "pidfd_send_signal" | "waitid" => &[0, 1, 3],
        "perf_event_open" => &[1, 2, 3],
        _ => &[],
    };
    indices.contains(&index)
}

/// On i386 a socket or System V IPC call has a second door: socketcall or ipc, with the call's number as the first
/// argument (linux/net.h, linux/ipc.h). The door's name, and the condition by which it is this call.
pub(super) fn multiplexed(name: &str) -> Option<(&'static str, Condition)> {
    const SOCKETCALL: &str = "socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom \
         shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg";
    const IPC: &str = "semop semget semctl semtimedop - - - - - - msgsnd msgrcv msgget msgctl - - - - - - shmat shmdt shmget shmctl";
    let place = |names: &str| names.split_ascii_whitespace().zip(1..).find(|(n, _)| *n == name).map(|(_, place)| place);
    let (door, mask, value) = match (place(SOCKETCALL), place(IPC)) {
        (Some(value), _) => ("socketcall", u64::from(u32::MAX), value),
        // The upper half of ipc's first argument is a version.
        (None, Some(value)) => ("ipc", 0xffff, value),
        (None, None) => return None,
    };
    Some((door, Condition { index: 0, operator: Operator::MaskedEqual { mask }, value }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_of_i386() {
        let at = |name| multiplexed(name).map(|(door, condition)| (door, condition.value));
        assert_eq!(at("socket"), Some(("socketcall", 1)));
        assert_eq!(at("sendmmsg"), Some(("socketcall", 20)));
        assert_eq!(at("semtimedop"), Some(("ipc", 4)));
        assert_eq!(at("msgctl"), Some(("ipc", 14)));
        assert_eq!(at("shmctl"), Some(("ipc", 24)));
        assert_eq!((at("read"), at("-x")), (None, None));
    }
}
