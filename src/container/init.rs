//! `docker-init`: pid 1 of a container with `--init`. Starts the program as its child, hands every signal on, reaps what is orphaned, and
//! ends as its child ends. The same binary as the daemon, bound read-only at /sbin/docker-init.

use crate::error::strerror;
use crate::sys;
use crate::sys::process::{ExitStatus, Pid, Pointers};
use std::ffi::{CString, OsString, c_int};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Signals that tell of a fault of this process itself; blocking them would hide it.
const OWN_FAULTS: [c_int; 7] = [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

/// The face of the binary when it is called `docker-init`: `docker-init [--] program [argument…]`. Returns the exit status.
pub fn main(args: &[OsString]) -> i32 {
    let program = match args {
        [dashes, rest @ ..] if dashes == "--" => rest,
        [version] if version == "--version" => {
            println!("docker-init (coracle) version {}", env!("CARGO_PKG_VERSION"));
            return 0;
        }
        rest => rest,
    };
    if program.is_empty() || program.first().is_some_and(|word| word.as_bytes().starts_with(b"-")) {
        eprintln!("Usage: docker-init [--] PROGRAM [ARGUMENT...]");
        return 1;
    }
    match supervise(program) {
        Ok(status) => status.code(),
        Err(cause) => {
            eprintln!("docker-init: {}", strerror(&cause));
            1
        }
    }
}

fn supervise(program: &[OsString]) -> io::Result<ExitStatus> {
    let forwarded = sys::poll::all_signals_but(&OWN_FAULTS);
    // Blocked before the fork, so that none is lost between it and the loop.
    let original = sys::poll::sigprocmask(&forwarded)?;
    let signals = sys::poll::signalfd(&forwarded)?;
    let Some(child) = sys::process::fork()? else {
        let group = become_foreground_group();
        let failed = group.and_then(|()| sys::poll::sigprocmask(&original).map(drop)).err();
        let (code, cause) = match failed {
            Some(cause) => (1, cause),
            None => execute(program),
        };
        eprintln!("docker-init: exec {} failed: {}", program[0].to_string_lossy(), strerror(&cause));
        sys::process::exit(code);
    };
    loop {
        let mut fds = [libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&signals), events: libc::POLLIN, revents: 0 }];
        sys::poll::poll(&mut fds, -1)?;
        while let Some(signal) = sys::poll::read_signal(signals.as_fd())? {
            if signal != libc::SIGCHLD {
                // Gone already: its status comes with the next SIGCHLD.
                drop(sys::process::kill(child, signal));
            }
        }
        if let Some(status) = reap(child)? {
            return Ok(status);
        }
    }
}

/// The child leads a group of its own, which has the terminal where there is one: Ctrl-C reaches the program, not us twice.
fn become_foreground_group() -> io::Result<()> {
    sys::process::setpgid(0, 0)?;
    sys::process::ignore_signal(libc::SIGTTOU);
    match sys::tty::tcsetpgrp(io::stdin().as_fd(), sys::process::getpid()) {
        // Not a terminal, or not ours.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::ENXIO | libc::EBADF)) => {}
        done => done?,
    }
    sys::process::reset_signals();
    Ok(())
}

/// Collects everything that has ended; the child's status when it is among them.
fn reap(child: Pid) -> io::Result<Option<ExitStatus>> {
    let mut ended = None;
    loop {
        match sys::process::waitpid(-1, libc::WNOHANG) {
            Ok(None) => return Ok(ended),
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(ended),
            Ok(Some((pid, status))) if pid == child => ended = Some(status),
            Ok(Some(_)) => {}
            Err(e) => return Err(e),
        }
    }
}

/// As `execvp(3)`; returns the exit status for its failure, and the cause.
fn execute(program: &[OsString]) -> (i32, io::Error) {
    let strings = |list: Vec<Vec<u8>>| list.into_iter().filter_map(|text| CString::new(text).ok()).collect::<Vec<_>>();
    let argv = strings(program.iter().map(|word| word.as_bytes().to_vec()).collect());
    let environment = strings(std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()).collect());
    let (arguments, variables) = (Pointers::new(&argv), Pointers::new(&environment));
    let name = program[0].as_bytes();
    let candidates = if name.contains(&b'/') {
        vec![name.to_vec()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default().into_vec();
        path.split(|b| *b == b':').map(|dir| [dir, b"/", name].concat()).collect()
    };
    let mut worst = io::Error::from_raw_os_error(libc::ENOENT);
    for path in strings(candidates) {
        let cause = sys::process::execve(&path, &arguments, &variables);
        if cause.raw_os_error() == Some(libc::ENOEXEC) {
            let mut script = vec![c"sh".to_owned(), path];
            script.extend(argv.into_iter().skip(1));
            let cause = sys::process::execve(c"/bin/sh", &Pointers::new(&script), &variables);
            return (126, cause);
        }
        if !matches!(cause.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) {
            worst = cause;
        }
    }
    (if worst.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 }, worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a forked child: libtest's threads must not get its signals, nor lose their children to it.
    fn status_of(script: &str) -> ExitStatus {
        let Some(pid) = sys::process::fork().expect("fork") else {
            let words = ["--", "/bin/sh", "-c", script].map(OsString::from);
            sys::process::exit(main(&words));
        };
        sys::process::waitpid(pid, 0).expect("our child").expect("waited").1
    }

    #[test]
    fn ends_as_its_child_ends() {
        assert_eq!(status_of("exit 7"), ExitStatus::Code(7));
        assert_eq!(status_of("kill -9 $$"), ExitStatus::Code(137));
    }

    #[test]
    fn hands_signals_on() {
        // The child asks its parent, the init, to be terminated.
        assert_eq!(status_of("trap 'exit 5' TERM; kill -TERM $PPID; while :; do sleep 0.01; done"), ExitStatus::Code(5));
    }

    #[test]
    fn a_missing_program_is_127() {
        let Some(pid) = sys::process::fork().expect("fork") else {
            let words = ["/no/such/program"].map(OsString::from);
            sys::process::exit(main(&words));
        };
        assert_eq!(sys::process::waitpid(pid, 0).expect("our child").expect("waited").1, ExitStatus::Code(127));
    }
}
