//! The builtin profile, equal in effect to the reference's default (moby/profiles, seccomp/default.json) on the
//! architectures that we know; AF_ALG is refused besides AF_VSOCK.
//!
//! What is not listed gets EPERM: keyctl, io_uring, userfaultfd, kexec, swapon, pivot_root and the like. socketcall
//! of i386 hides its arguments behind a pointer, where no filter can look: there the socket domains are open.

use super::{Action, Arch, Architectures, Condition, Filter, Operator, Profile, Rule};
use crate::container::capabilities::bit;
use std::borrow::Cow;

/// seccomp(2): leave speculative store bypass as it is elsewhere; the reference's runtime does.
pub(super) const SPEC_ALLOW: u32 = 1 << 2;

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} (sched.h). A new time namespace shares its bit with the exit signal and
/// can't be asked of clone(2).
const CLONE_NEW: u64 = 0x7e02_0000;

/// Socket domains that reach around the sandbox: the kernel's ciphers, and the hypervisor's other guests.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// persona values that programs use: PER_LINUX, PER_LINUX32, both with UNAME26, and the query.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

pub(super) fn profile() -> Profile {
    let mut rules = vec![
        allow(ALWAYS),
        Rule { includes: Filter { min_kernel: Some((4, 8)), ..Filter::default() }, ..allow("process_vm_readv process_vm_writev ptrace") },
        on_argument("socket", Operator::Less, AF_ALG),
        on_argument("socket", Operator::Equal, AF_ALG + 1),
        on_argument("socket", Operator::Greater, AF_VSOCK),
        on_machine(&[Arch::Arm, Arch::Aarch64], "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"),
        on_machine(&[Arch::X86_64, Arch::X32], "arch_prctl"),
        on_machine(&[Arch::X86_64, Arch::X32, Arch::X86], "modify_ldt"),
        without_sys_admin(on_argument("clone", Operator::MaskedEqual { mask: CLONE_NEW }, 0)),
        // Its flags are in memory: ENOSYS makes libc fall back to clone, whose flags are not.
        without_sys_admin(Rule { action: Action::Errno(ENOSYS), ..allow("clone3") }),
    ];
    rules.extend(PERSONALITIES.map(|persona| on_argument("personality", Operator::Equal, persona)));
    rules.extend(
        BY_CAPABILITY
            .iter()
            .map(|&(capability, names)| Rule { includes: Filter { capabilities: bit(capability), ..Filter::default() }, ..allow(names) }),
    );
    Profile {
        identity: [0; 32],
        default_action: Action::Errno(EPERM),
        architectures: Architectures::Map(vec![(Some(Arch::X86_64), vec![Arch::X86, Arch::X32]), (Some(Arch::Aarch64), vec![Arch::Arm])]),
        rules,
        flags: SPEC_ALLOW,
    }
}

fn allow(names: &'static str) -> Rule {
    Rule {
        names: Cow::Borrowed(names),
        action: Action::Allow,
        conditions: Vec::new(),
        includes: Filter::default(),
        excludes: Filter::default(),
    }
}

/// Allowed when the first argument compares so.
fn on_argument(name: &'static str, operator: Operator, value: u64) -> Rule {
    Rule { conditions: vec![Condition { index: 0, operator, value }], ..allow(name) }
}

fn on_machine(machines: &[Arch], names: &'static str) -> Rule {
    let arches = machines.iter().map(|arch| Cow::Borrowed(arch.profile_name())).collect();
    Rule { includes: Filter { arches, ..Filter::default() }, ..allow(names) }
}

fn without_sys_admin(rule: Rule) -> Rule {
    Rule { excludes: Filter { capabilities: bit("CAP_SYS_ADMIN"), ..Filter::default() }, ..rule }
}

/// Allowed to who has the capability in the bounding set.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Allowed to everyone, whatever the arguments.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime clock_adjtime64 \
    clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate \
    fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork \
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 \
    futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 \
    getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid \
    getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 \
    getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents \
    io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek \
    lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat \
    mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 \
    mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc \
    pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 \
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg \
    remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler \
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
    seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid \
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid \
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address \
    setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn \
    socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo \
    tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit \
    umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

#[cfg(test)]
mod tests {
    use super::super::interpreter::{Call, run};
    use super::super::numbers::{ARM_PRIVATE, X32_BIT, calls};
    use super::*;
    use crate::container::capabilities;
    use crate::sys::security::BpfInstruction;
    use std::collections::{BTreeMap, BTreeSet};

    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;
    const EPERM: u32 = 0x0005_0001;
    const NOSYS: u32 = 0x0005_0026;

    const MACHINES: [(Arch, &[Arch]); 4] = [
        (Arch::X86_64, &[Arch::X86_64, Arch::X86, Arch::X32]),
        (Arch::Aarch64, &[Arch::Aarch64, Arch::Arm]),
        (Arch::X86, &[Arch::X86]),
        (Arch::Arm, &[Arch::Arm]),
    ];

    fn filter(native: Arch, capabilities: u64) -> Vec<BpfInstruction> {
        Profile::builtin().compile(native, capabilities, (6, 1)).unwrap()
    }

    fn judged(program: &[BpfInstruction], arch: Arch, name: &str, args: &[u64]) -> u32 {
        let number = calls(arch).find(|(n, _)| *n == name).unwrap_or_else(|| panic!("{arch:?} has no {name}")).1;
        run(program, &Call::new(arch, number, args)).unwrap()
    }

    /// Names allowed whatever the arguments, from the list and the rules that count here.
    fn allowed(native: Arch, mask: u64) -> BTreeSet<&'static str> {
        let mut names: BTreeSet<&str> =
            ALWAYS.split_ascii_whitespace().chain(["process_vm_readv", "process_vm_writev", "ptrace"]).collect();
        match native {
            Arch::X86_64 | Arch::X32 => names.extend(["arch_prctl", "modify_ldt"]),
            Arch::X86 => names.extend(["modify_ldt"]),
            Arch::Aarch64 | Arch::Arm => {
                names.extend(["arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"]);
            }
        }
        let granted = BY_CAPABILITY.iter().filter(|(capability, _)| bit(capability) & mask != 0);
        names.extend(granted.flat_map(|(_, names)| names.split_ascii_whitespace()));
        names
    }

    #[test]
    fn every_number_of_every_architecture_as_the_list_says() {
        for mask in [capabilities::DEFAULT, 0, capabilities::up_to(40), bit("CAP_SYS_ADMIN"), bit("CAP_SYS_TIME") | bit("CAP_SYSLOG")] {
            for (native, arches) in MACHINES {
                let program = filter(native, mask);
                for &arch in arches {
                    let allowed = allowed(native, mask);
                    let mut named: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
                    for (name, number) in calls(arch) {
                        named.entry(number).or_default().push(name);
                    }
                    let bit_of = if arch == Arch::X32 { X32_BIT } else { 0 };
                    let rules_name = |name: &str| allowed.contains(name) || ["clone", "clone3", "personality", "socket"].contains(&name);
                    let newest =
                        calls(arch).filter(|&(n, at)| rules_name(n) && at & !X32_BIT < ARM_PRIVATE).map(|(_, at)| at).max().unwrap();
                    for number in (0..700).chain(ARM_PRIVATE - 1..ARM_PRIVATE + 9).map(|number| number | bit_of) {
                        let names = named.get(&number).map_or(&[][..], Vec::as_slice);
                        let got = run(&program, &Call::new(arch, number, &[u64::MAX; 6])).unwrap();
                        let want = match names {
                            // With all bits set: some new namespace, an unknown domain, the persona query.
                            names if names.iter().any(|name| allowed.contains(name)) => ALLOW,
                            ["clone"] => EPERM,
                            ["clone3"] => NOSYS,
                            ["socket" | "personality"] => ALLOW,
                            _ if number > newest => NOSYS,
                            _ => EPERM,
                        };
                        assert_eq!(got, want, "{native:?} {arch:?} {number:#x} {names:?} capabilities {mask:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_newest_known_call_is_the_profiles() {
        let program = filter(Arch::X86_64, capabilities::DEFAULT);
        assert_eq!(judged(&program, Arch::X86_64, "removexattrat", &[]), ALLOW);
        assert_eq!(judged(&program, Arch::X86_64, "open_tree_attr", &[]), NOSYS);
        assert_eq!(run(&program, &Call::new(Arch::X86_64, 1 << 29, &[])), Some(NOSYS));
    }

    #[test]
    fn never_allowed() {
        let never = "keyctl add_key request_key io_uring_setup io_uring_enter io_uring_register userfaultfd kexec_load kexec_file_load \
             swapon swapoff pivot_root move_pages migrate_pages";
        for (native, arches) in MACHINES {
            // Not even to a container with every capability.
            let program = filter(native, u64::MAX);
            for &arch in arches {
                for name in never.split_ascii_whitespace().filter(|name| calls(arch).any(|(n, _)| n == *name)) {
                    assert_eq!(judged(&program, arch, name, &[]), EPERM, "{arch:?} {name}");
                }
            }
        }
        let program = filter(Arch::X86_64, u64::MAX);
        for (arch, name) in [(Arch::X86_64, "nfsservctl"), (Arch::X86, "vm86"), (Arch::X86, "vm86old"), (Arch::X86_64, "create_module")] {
            assert_eq!(judged(&program, arch, name, &[]), EPERM, "{name}");
        }
    }

    #[test]
    fn new_namespaces_need_sys_admin() {
        let default = filter(Arch::X86_64, capabilities::DEFAULT);
        let admin = filter(Arch::X86_64, capabilities::DEFAULT | bit("CAP_SYS_ADMIN"));
        for arch in [Arch::X86_64, Arch::X86, Arch::X32] {
            for flag in [0x2_0000u64, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
                assert_eq!(judged(&default, arch, "clone", &[flag | 17]), EPERM, "{arch:?} {flag:#x}");
                assert_eq!(judged(&admin, arch, "clone", &[flag | 17]), ALLOW);
            }
            // fork() and pthread_create().
            for flags in [17, 0x3d_0f00, 0x0120_0011] {
                assert_eq!(judged(&default, arch, "clone", &[flags]), ALLOW, "{arch:?} {flags:#x}");
            }
            assert_eq!((judged(&default, arch, "clone3", &[]), judged(&admin, arch, "clone3", &[])), (NOSYS, ALLOW));
            for name in ["unshare", "setns", "mount", "open_tree", "fsopen", "bpf"] {
                assert_eq!((judged(&default, arch, name, &[]), judged(&admin, arch, name, &[])), (EPERM, ALLOW), "{arch:?} {name}");
            }
        }
    }

    #[test]
    fn socket_domains() {
        for (native, arches) in MACHINES {
            let program = filter(native, capabilities::DEFAULT);
            for &arch in arches {
                for domain in 0..64 {
                    let want = if domain == AF_ALG || domain == AF_VSOCK { EPERM } else { ALLOW };
                    assert_eq!(judged(&program, arch, "socket", &[domain, 1, 0]), want, "{arch:?} {domain}");
                    assert_eq!(judged(&program, arch, "socket", &[domain | 0xdead << 32, 1, 0]), want, "{arch:?} {domain}, high half");
                }
            }
        }
    }

    #[test]
    fn personalities() {
        for (native, arches) in MACHINES {
            let program = filter(native, capabilities::DEFAULT);
            for &arch in arches {
                for persona in PERSONALITIES {
                    assert_eq!(judged(&program, arch, "personality", &[persona]), ALLOW);
                }
                for persona in [1, 4, 0x4_0000, 0x2_0001, 0x10_0000] {
                    assert_eq!(judged(&program, arch, "personality", &[persona]), EPERM, "{arch:?} {persona:#x}");
                    assert_eq!(judged(&program, arch, "personality", &[persona | 1 << 32]), EPERM, "{arch:?} {persona:#x}");
                }
            }
        }
    }

    #[test]
    fn ptrace_is_for_everyone_since_4_8() {
        let at = |kernel| {
            let program = Profile::builtin().compile(Arch::X86_64, capabilities::DEFAULT, kernel).unwrap();
            judged(&program, Arch::X86_64, "ptrace", &[])
        };
        assert_eq!((at((4, 7)), at((4, 8)), at((6, 0))), (EPERM, ALLOW, ALLOW));
    }

    #[test]
    fn foreign_architectures_are_killed() {
        let program = filter(Arch::X86_64, capabilities::DEFAULT);
        for arch in [Arch::Aarch64, Arch::Arm] {
            assert_eq!(run(&program, &Call::new(arch, 63, &[])), Some(KILL));
        }
    }

    #[test]
    fn the_filter_is_short() {
        for (native, _) in MACHINES {
            for mask in [0, capabilities::DEFAULT, u64::MAX] {
                let length = filter(native, mask).len();
                assert!(length < 512, "{native:?} {mask:#x}: {length} instructions");
            }
        }
    }

    #[test]
    fn names_are_listed_once_and_exist_somewhere() {
        let names: Vec<&str> = ALWAYS.split_ascii_whitespace().collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        let known: BTreeSet<&str> =
            [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm].into_iter().flat_map(|arch| calls(arch).map(|(name, _)| name)).collect();
        let unknown: Vec<&&str> = names.iter().filter(|name| !known.contains(**name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
