//! System call numbers: the kernel's own tables (arch/x86/entry/syscalls/*.tbl, arch/arm/tools/syscall.tbl,
//! scripts/syscall.tbl) as runs of names, up to Linux 7.0. libc knows only the architecture it was built for; a
//! filter needs them all.

use super::Arch;

/// The bit that marks a call of the x32 ABI (asm/unistd.h, `__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Where ARM's private calls begin (`__ARM_NR_BASE`); they lie beyond every ordinary number.
pub(super) const ARM_PRIVATE: u32 = 0x000f_0000;

/// First number, and the names from there on; `-` is a number without a call.
type Run = (u32, &'static str);

/// Every call of `arch`, as name and number (for x32 with its bit). A number may come twice, under two names.
pub(super) fn calls(arch: Arch) -> impl Iterator<Item = (&'static str, u32)> {
    let (runs, absent, bit): (&[Run], &str, u32) = match arch {
        Arch::X86_64 => (&[(0, X86_64), (424, SINCE_424)], "", 0),
        Arch::X32 => (&[(0, X86_64), (424, SINCE_424), (512, X32_OWN)], NOT_IN_X32, X32_BIT),
        Arch::X86 => (&[(0, X86), (403, TIME64), (424, SINCE_424)], "", 0),
        Arch::Aarch64 => (&[(0, GENERIC), (424, SINCE_424)], "", 0),
        Arch::Arm => (&[(0, ARM), (403, TIME64), (424, SINCE_424), (ARM_PRIVATE, ARM_OWN), (341, "sync_file_range2")], "memfd_secret", 0),
    };
    let absent: Vec<&str> = absent.split_ascii_whitespace().collect();
    runs.iter()
        .flat_map(|&(first, names)| names.split_ascii_whitespace().zip(first..).map(move |(name, number)| (name, number, first)))
        // What x32 renumbered is absent under its old number only.
        .filter(move |&(name, _, first)| name != "-" && (first == 512 || !absent.contains(&name)))
        .map(move |(name, number, _)| (name, number | bit))
}

/// x86_64 from 0.
const X86_64: &str = "\
    read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn ioctl pread64 \
    pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep \
    getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg recvmsg shutdown bind listen getsockname \
    getpeername socketpair setsockopt getsockopt clone fork vfork execve exit wait4 kill uname semget semop semctl shmdt msgget \
    msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link \
    unlink symlink readlink chmod fchmod chown fchown lchown umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid \
    syslog getgid setuid setgid geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid \
    getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo \
    rt_sigsuspend sigaltstack utime mknod uselib personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam \
    sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock \
    munlock mlockall munlockall vhangup modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex setrlimit chroot sync acct \
    settimeofday mount umount2 swapon swapoff reboot sethostname setdomainname iopl ioperm create_module init_module delete_module \
    get_kernel_syms query_module quotactl nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid readahead setxattr lsetxattr \
    fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr tkill time futex \
    sched_setaffinity sched_getaffinity set_thread_area io_setup io_destroy io_getevents io_submit io_cancel get_thread_area \
    lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old remap_file_pages getdents64 set_tid_address restart_syscall semtimedop \
    fadvise64 timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres \
    clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink \
    mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl ioprio_set ioprio_get \
    inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat mknodat fchownat futimesat newfstatat unlinkat \
    renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice tee \
    sync_file_range vmsplice move_pages utimensat epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime \
    timerfd_gettime accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo \
    perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg \
    setns getcpu process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom \
    memfd_create kexec_file_load bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc \
    pkey_free statx io_pgetevents rseq uretprobe uprobe";

/// Names of [`X86_64`] that x32 has not, or has under a number of its own.
const NOT_IN_X32: &str = "\
    rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg setsockopt getsockopt execve ptrace rt_sigpending \
    rt_sigtimedwait rt_sigqueueinfo sigaltstack uselib _sysctl create_module get_kernel_syms query_module nfsservctl set_thread_area \
    io_setup io_submit get_thread_area epoll_ctl_old epoll_wait_old timer_create vserver mq_notify kexec_load waitid set_robust_list \
    get_robust_list vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev \
    execveat preadv2 pwritev2 uretprobe uprobe";

/// x32's own, from 512.
const X32_OWN: &str = "\
    rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace rt_sigpending rt_sigtimedwait rt_sigqueueinfo \
    sigaltstack timer_create mq_notify kexec_load waitid set_robust_list get_robust_list vmsplice move_pages preadv pwritev \
    rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev setsockopt getsockopt io_setup io_submit execveat preadv2 \
    pwritev2";

/// i386 from 0.
const X86: &str = "\
    restart_syscall exit fork read write open close waitpid creat link unlink execve chdir time mknod chmod lchown break oldstat \
    lseek getpid mount umount setuid getuid stime ptrace alarm oldfstat pause utime stty gtty access nice ftime sync kill rename \
    mkdir rmdir dup pipe times prof brk setgid getgid signal geteuid getegid acct umount2 lock ioctl fcntl mpx setpgid ulimit \
    oldolduname umask chroot ustat dup2 getppid getpgrp setsid sigaction sgetmask ssetmask setreuid setregid sigsuspend sigpending \
    sethostname setrlimit getrlimit getrusage gettimeofday settimeofday getgroups setgroups select symlink oldlstat readlink uselib \
    swapon reboot readdir mmap munmap truncate ftruncate fchmod fchown getpriority setpriority profil statfs fstatfs ioperm \
    socketcall syslog setitimer getitimer stat lstat fstat olduname iopl vhangup idle vm86old wait4 swapoff sysinfo ipc fsync \
    sigreturn clone setdomainname uname modify_ldt adjtimex mprotect sigprocmask create_module init_module delete_module \
    get_kernel_syms quotactl getpgid fchdir bdflush sysfs personality afs_syscall setfsuid setfsgid _llseek getdents _newselect flock \
    msync readv writev getsid fdatasync _sysctl mlock munlock mlockall munlockall sched_setparam sched_getparam sched_setscheduler \
    sched_getscheduler sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval nanosleep mremap setresuid \
    getresuid vm86 query_module poll nfsservctl setresgid getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending \
    rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 chown getcwd capget capset sigaltstack sendfile getpmsg putpmsg \
    vfork ugetrlimit mmap2 truncate64 ftruncate64 stat64 lstat64 fstat64 lchown32 getuid32 getgid32 geteuid32 getegid32 setreuid32 \
    setregid32 getgroups32 setgroups32 fchown32 setresuid32 getresuid32 setresgid32 getresgid32 chown32 setuid32 setgid32 setfsuid32 \
    setfsgid32 pivot_root mincore madvise getdents64 fcntl64 - - gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr \
    fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr tkill sendfile64 futex sched_setaffinity \
    sched_getaffinity set_thread_area get_thread_area io_setup io_destroy io_getevents io_submit io_cancel fadvise64 - exit_group \
    lookup_dcookie epoll_create epoll_ctl epoll_wait remap_file_pages set_tid_address timer_create timer_settime timer_gettime \
    timer_getoverrun timer_delete clock_settime clock_gettime clock_getres clock_nanosleep statfs64 fstatfs64 tgkill utimes \
    fadvise64_64 vserver mbind get_mempolicy set_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr \
    kexec_load waitid - add_key request_key keyctl ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch \
    migrate_pages openat mkdirat mknodat fchownat futimesat fstatat64 unlinkat renameat linkat symlinkat readlinkat fchmodat \
    faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice sync_file_range tee vmsplice move_pages getcpu \
    epoll_pwait utimensat signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime signalfd4 eventfd2 epoll_create1 \
    dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64 \
    name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns process_vm_readv process_vm_writev kcmp finit_module \
    sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat socket socketpair bind connect listen accept4 \
    getsockopt setsockopt getsockname getpeername sendto sendmsg recvfrom recvmsg shutdown userfaultfd membarrier mlock2 \
    copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx arch_prctl io_pgetevents rseq - - - - - - semget semctl \
    shmget shmctl shmat shmdt msgget msgsnd msgrcv msgctl";

/// 32-bit architectures from 403: the calls with 64-bit times.
const TIME64: &str = "\
    clock_gettime64 clock_settime64 clock_adjtime64 clock_getres_time64 clock_nanosleep_time64 timer_gettime64 timer_settime64 \
    timerfd_gettime64 timerfd_settime64 utimensat_time64 pselect6_time64 ppoll_time64 - io_pgetevents_time64 recvmmsg_time64 \
    mq_timedsend_time64 mq_timedreceive_time64 semtimedop_time64 rt_sigtimedwait_time64 futex_time64 sched_rr_get_interval_time64";

/// Every architecture from 424: since Linux 5.1 a call has one number everywhere.
const SINCE_424: &str = "\
    pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount fspick pidfd_open \
    clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset \
    landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2 \
    map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules \
    mseal setxattrat getxattrat listxattrat removexattrat open_tree_attr file_getattr file_setattr listns rseq_slice_yield";

/// aarch64, which uses the generic table, from 0.
const GENERIC: &str = "\
    io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr \
    llistxattr flistxattr removexattr lremovexattr fremovexattr getcwd lookup_dcookie eventfd2 epoll_create1 epoll_ctl epoll_pwait \
    dup dup3 fcntl inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get flock mknodat mkdirat unlinkat \
    symlinkat linkat renameat umount2 mount pivot_root nfsservctl statfs fstatfs truncate ftruncate fallocate faccessat chdir fchdir \
    chroot fchmod fchmodat fchownat fchown openat close vhangup pipe2 quotactl getdents64 lseek read write readv writev pread64 \
    pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4 vmsplice splice tee readlinkat newfstatat fstat sync fsync fdatasync \
    sync_file_range timerfd_create timerfd_settime timerfd_gettime utimensat acct capget capset personality exit exit_group waitid \
    set_tid_address unshare futex set_robust_list get_robust_list nanosleep getitimer setitimer kexec_load init_module delete_module \
    timer_create timer_gettime timer_getoverrun timer_settime timer_delete clock_settime clock_gettime clock_getres clock_nanosleep \
    syslog ptrace sched_setparam sched_setscheduler sched_getscheduler sched_getparam sched_setaffinity sched_getaffinity sched_yield \
    sched_get_priority_max sched_get_priority_min sched_rr_get_interval restart_syscall kill tkill tgkill sigaltstack rt_sigsuspend \
    rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn setpriority getpriority reboot setregid \
    setgid setreuid setuid setresuid getresuid setresgid getresgid setfsuid setfsgid times setpgid getpgid getsid setsid getgroups \
    setgroups uname sethostname setdomainname getrlimit setrlimit getrusage umask prctl getcpu gettimeofday settimeofday adjtimex \
    getpid getppid getuid geteuid getgid getegid gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify \
    mq_getsetattr msgget msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl shmat shmdt socket socketpair bind listen \
    accept connect getsockname getpeername sendto recvfrom setsockopt getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap \
    add_key request_key keyctl clone execve mmap fadvise64 swapon swapoff mprotect msync mlock munlock mlockall munlockall mincore \
    madvise remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages rt_tgsigqueueinfo perf_event_open accept4 \
    recvmmsg - - - - - - - - - - - - - - - - wait4 prlimit64 fanotify_init fanotify_mark - - clock_adjtime syncfs setns sendmmsg \
    process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf \
    execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx io_pgetevents \
    rseq kexec_file_load";

/// arm (EABI) from 0.
const ARM: &str = "\
    restart_syscall exit fork read write open close - creat link unlink execve chdir - mknod chmod lchown - - lseek getpid mount - \
    setuid getuid - ptrace - - pause - - - access nice - sync kill rename mkdir rmdir dup pipe times - brk setgid getgid - geteuid \
    getegid acct umount2 - ioctl fcntl - setpgid - - umask chroot ustat dup2 getppid getpgrp setsid sigaction - - setreuid setregid \
    sigsuspend sigpending sethostname setrlimit - getrusage gettimeofday settimeofday getgroups setgroups - symlink - readlink uselib \
    swapon reboot - - munmap truncate ftruncate fchmod fchown getpriority setpriority - statfs fstatfs - - syslog setitimer getitimer \
    stat lstat fstat - - vhangup - - wait4 swapoff sysinfo - fsync sigreturn clone setdomainname uname - adjtimex mprotect \
    sigprocmask - init_module delete_module - quotactl getpgid fchdir bdflush sysfs personality - setfsuid setfsgid _llseek getdents \
    _newselect flock msync readv writev getsid fdatasync _sysctl mlock munlock mlockall munlockall sched_setparam sched_getparam \
    sched_setscheduler sched_getscheduler sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval nanosleep \
    mremap setresuid getresuid - - poll nfsservctl setresgid getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending \
    rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 chown getcwd capget capset sigaltstack sendfile - - vfork \
    ugetrlimit mmap2 truncate64 ftruncate64 stat64 lstat64 fstat64 lchown32 getuid32 getgid32 geteuid32 getegid32 setreuid32 \
    setregid32 getgroups32 setgroups32 fchown32 setresuid32 getresuid32 setresgid32 getresgid32 chown32 setuid32 setgid32 setfsuid32 \
    setfsgid32 getdents64 pivot_root mincore madvise fcntl64 - - gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr \
    fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr tkill sendfile64 futex sched_setaffinity \
    sched_getaffinity io_setup io_destroy io_getevents io_submit io_cancel exit_group lookup_dcookie epoll_create epoll_ctl \
    epoll_wait remap_file_pages - - set_tid_address timer_create timer_settime timer_gettime timer_getoverrun timer_delete \
    clock_settime clock_gettime clock_getres clock_nanosleep statfs64 fstatfs64 tgkill utimes arm_fadvise64_64 pciconfig_iobase \
    pciconfig_read pciconfig_write mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr waitid socket bind connect \
    listen accept getsockname getpeername socketpair send sendto recv recvfrom shutdown setsockopt getsockopt sendmsg recvmsg semop \
    semget semctl msgsnd msgrcv msgget msgctl shmat shmdt shmget shmctl add_key request_key keyctl semtimedop vserver ioprio_set \
    ioprio_get inotify_init inotify_add_watch inotify_rm_watch mbind get_mempolicy set_mempolicy openat mkdirat mknodat fchownat \
    futimesat fstatat64 unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list \
    get_robust_list splice arm_sync_file_range tee vmsplice move_pages getcpu epoll_pwait kexec_load utimensat signalfd \
    timerfd_create eventfd fallocate timerfd_settime timerfd_gettime signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv \
    pwritev rt_tgsigqueueinfo perf_event_open recvmmsg accept4 fanotify_init fanotify_mark prlimit64 name_to_handle_at \
    open_by_handle_at clock_adjtime syncfs sendmmsg setns process_vm_readv process_vm_writev kcmp finit_module sched_setattr \
    sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 \
    pwritev2 pkey_mprotect pkey_alloc pkey_free statx rseq io_pgetevents migrate_pages kexec_file_load";

/// ARM's private calls from [`ARM_PRIVATE`].
const ARM_OWN: &str = "- breakpoint cacheflush usr26 usr32 set_tls get_tls";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn number(arch: Arch, name: &str) -> Option<u32> {
        calls(arch).find(|(n, _)| *n == name).map(|(_, number)| number)
    }

    #[test]
    fn known_numbers() {
        let cases = [
            (Arch::X86_64, "read", Some(0)),
            (Arch::X86_64, "clone", Some(56)),
            (Arch::X86_64, "rseq", Some(334)),
            (Arch::X86_64, "listns", Some(470)),
            (Arch::X86_64, "umount", None),
            (Arch::X86_64, "clock_gettime64", None),
            (Arch::X32, "read", Some(X32_BIT)),
            (Arch::X32, "ioctl", Some(X32_BIT + 514)),
            (Arch::X32, "pwritev2", Some(X32_BIT + 547)),
            (Arch::X32, "uselib", None),
            (Arch::X86, "socketcall", Some(102)),
            (Arch::X86, "socket", Some(359)),
            (Arch::X86, "clock_gettime64", Some(403)),
            (Arch::X86, "clone3", Some(435)),
            (Arch::Aarch64, "clone", Some(220)),
            (Arch::Aarch64, "newfstatat", Some(79)),
            (Arch::Aarch64, "open", None),
            (Arch::Aarch64, "seccomp", Some(277)),
            (Arch::Aarch64, "statx", Some(291)),
            (Arch::Arm, "clone", Some(120)),
            (Arch::Arm, "socket", Some(281)),
            (Arch::Arm, "sync_file_range2", Some(341)),
            (Arch::Arm, "seccomp", Some(383)),
            (Arch::Arm, "futex_time64", Some(422)),
            (Arch::Arm, "set_tls", Some(ARM_PRIVATE + 5)),
            (Arch::Arm, "memfd_secret", None),
        ];
        for (arch, name, want) in cases {
            assert_eq!(number(arch, name), want, "{arch:?} {name}");
        }
    }

    #[test]
    fn no_name_has_two_numbers() {
        for arch in [Arch::X86_64, Arch::X32, Arch::X86, Arch::Aarch64, Arch::Arm] {
            let mut seen = BTreeMap::new();
            for (name, number) in calls(arch) {
                assert_eq!(seen.insert(name, number), None, "{arch:?} {name}");
            }
        }
    }

    #[test]
    fn libc_agrees_where_it_was_built_for() {
        let own = |name| number(Arch::native(), name).map(libc::c_long::from);
        let pairs = [
            ("read", libc::SYS_read),
            ("execve", libc::SYS_execve),
            ("clone", libc::SYS_clone),
            ("unshare", libc::SYS_unshare),
            ("seccomp", libc::SYS_seccomp),
            ("keyctl", libc::SYS_keyctl),
            ("statx", libc::SYS_statx),
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
            ("mount_setattr", libc::SYS_mount_setattr),
        ];
        for (name, libc_number) in pairs {
            assert_eq!(own(name), Some(libc_number), "{name}");
        }
    }

    /// Compares with the headers of linux-libc-dev, both ways up to the header's last number. Where they are not
    /// installed the fixed cases above must do.
    #[test]
    fn kernel_headers_agree() {
        for (arch, file) in [(Arch::X86_64, "unistd_64.h"), (Arch::X32, "unistd_x32.h"), (Arch::X86, "unistd_32.h")] {
            let Ok(text) = std::fs::read_to_string(format!("/usr/include/x86_64-linux-gnu/asm/{file}")) else { continue };
            let header: BTreeMap<String, u32> = text.lines().filter_map(|line| defined(line, arch)).collect();
            let last = header.values().copied().max().unwrap();
            assert!(header.len() > 300);
            let ours: BTreeMap<String, u32> = calls(arch)
                .filter(|&(_, number)| number <= last || number & !X32_BIT < 424)
                .map(|(name, n)| (name.to_owned(), n))
                .collect();
            for (name, number) in &header {
                assert_eq!(ours.get(name), Some(number), "{arch:?} {name}");
            }
            for (name, number) in &ours {
                // Linux 6.11 and 6.18 filled two holes below 424.
                let newer = ["uretprobe", "uprobe"].contains(&name.as_str()) || (451..512).contains(&(number & !X32_BIT));
                assert!(newer || header.get(name) == Some(number), "{arch:?} {name} {number}");
            }
        }
    }

    fn defined(line: &str, arch: Arch) -> Option<(String, u32)> {
        let (name, value) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
        let number: u32 = value.trim_end_matches(')').rsplit(' ').next()?.parse().ok()?;
        Some((name.to_owned(), number | if arch == Arch::X32 { X32_BIT } else { 0 }))
    }
}
