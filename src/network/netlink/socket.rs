//! A netlink socket: send a request, read its acknowledgement or dump, with the kernel's own explanation.
//!
//! rtnetlink and nf_tables work inside `sendmsg`: the answer is in the receive queue when the call returns,
//! so that the daemon's loop waits for nothing here.

use super::message::{self, Message};
use crate::error::{Error, Kind};
use crate::sys;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Largest datagram the kernel makes for a dump (NLMSG_GOODSIZE is at most 32 KiB for dumps).
const RECEIVE: usize = 64 * 1024;
const SOL_NETLINK: libc::c_int = 270;

/// The kernel refused a request.
#[derive(Debug)]
pub struct Failure {
    /// What was asked, for the sentence ("create veth1234").
    pub what: String,
    pub cause: io::Error,
    /// The kernel's extended acknowledgement, if it gave one.
    pub detail: String,
}

impl Failure {
    pub fn errno(&self) -> i32 {
        self.cause.raw_os_error().unwrap_or(0)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, crate::error::strerror(&self.cause))?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::new(Kind::System, failure.to_string())
    }
}

/// A message that came back: its type and what follows its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub kind: u16,
    pub payload: Vec<u8>,
}

/// A socket in the network namespace where it was opened, wherever the process goes afterwards.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl Socket {
    /// NETLINK_ROUTE, in the calling thread's network namespace.
    pub fn route() -> io::Result<Socket> {
        Socket::open(libc::NETLINK_ROUTE)
    }

    /// NETLINK_NETFILTER, in the calling thread's network namespace.
    pub fn netfilter() -> io::Result<Socket> {
        Socket::open(libc::NETLINK_NETFILTER)
    }

    fn open(protocol: libc::c_int) -> io::Result<Socket> {
        let fd = sys::socket::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol)?;
        // Explanations in acknowledgements (4.12), without a copy of the request (4.3): only nicer, so their absence is no error.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let _ = sys::socket::setsockopt_int(fd.as_fd(), SOL_NETLINK, option, 1);
        }
        Ok(Socket { fd, sequence: Cell::new(1) })
    }

    /// Sends one request and waits for its acknowledgement; replies that came before it (NLM_F_ECHO, GET) are returned.
    pub fn execute(&self, what: impl Into<String>, message: &[u8]) -> Result<Vec<Reply>, Failure> {
        let mut message = message.to_vec();
        if let Some(flags) = message.get_mut(6..8) {
            let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | message::flag(libc::NLM_F_ACK);
            flags.copy_from_slice(&with_ack.to_ne_bytes());
        }
        self.exchange(what.into(), message)
    }

    /// Sends a dump request and collects every answer.
    pub fn dump(&self, what: impl Into<String>, message: Message) -> Result<Vec<Reply>, Failure> {
        let mut message = message.finish();
        if let Some(flags) = message.get_mut(6..8) {
            let dump = u16::from_ne_bytes([flags[0], flags[1]]) | message::flag(libc::NLM_F_DUMP);
            flags.copy_from_slice(&dump.to_ne_bytes());
        }
        self.exchange(what.into(), message)
    }

    /// Sends finished messages in one datagram (an nf_tables batch) and reads `acks` acknowledgements; the first refusal is returned.
    pub fn batch(&self, what: impl Into<String>, messages: &[Vec<u8>]) -> Result<(), Failure> {
        let what = what.into();
        let first = self.sequence.get();
        let mut datagram = Vec::new();
        let mut acks = 0;
        for (message, sequence) in messages.iter().zip(first..) {
            let mut message = message.clone();
            message::set_sequence(&mut message, sequence);
            if message::u16_at(&message, 6).unwrap_or(0) & message::flag(libc::NLM_F_ACK) != 0 {
                acks += 1;
            }
            datagram.extend_from_slice(&message);
        }
        self.sequence.set(first.wrapping_add(u32::try_from(messages.len()).unwrap_or(1)));
        let fail = |cause: io::Error, detail: String| Failure { what: what.clone(), cause, detail };
        sys::socket::send(self.fd.as_fd(), &datagram, 0).map_err(|e| fail(e, String::new()))?;
        let mut buffer = vec![0; RECEIVE];
        while acks > 0 {
            let n = self.receive(&mut buffer).map_err(|e| fail(e, String::new()))?;
            for received in message::messages(&buffer[..n]) {
                if i32::from(received.kind) == libc::NLMSG_ERROR && received.sequence >= first {
                    let (errno, detail) = error_of(received.payload, received.flags);
                    if errno != 0 {
                        self.drain();
                        return Err(fail(io::Error::from_raw_os_error(errno), detail));
                    }
                    acks -= 1;
                }
            }
        }
        Ok(())
    }

    fn exchange(&self, what: String, mut message: Vec<u8>) -> Result<Vec<Reply>, Failure> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1));
        message::set_sequence(&mut message, sequence);
        let fail = |cause: io::Error, detail: String| Failure { what: what.clone(), cause, detail };
        sys::socket::send(self.fd.as_fd(), &message, 0).map_err(|e| fail(e, String::new()))?;
        let mut replies = Vec::new();
        let mut buffer = vec![0; RECEIVE];
        loop {
            let n = self.receive(&mut buffer).map_err(|e| fail(e, String::new()))?;
            for received in message::messages(&buffer[..n]) {
                // An answer to an earlier request that was given up on.
                if received.sequence != sequence {
                    continue;
                }
                match i32::from(received.kind) {
                    libc::NLMSG_DONE => return Ok(replies),
                    libc::NLMSG_ERROR => {
                        let (errno, detail) = error_of(received.payload, received.flags);
                        return if errno == 0 { Ok(replies) } else { Err(fail(io::Error::from_raw_os_error(errno), detail)) };
                    }
                    libc::NLMSG_NOOP => {}
                    _ => replies.push(Reply { kind: received.kind, payload: received.payload.to_vec() }),
                }
            }
        }
    }

    /// The answer is there already; the second's patience is for a kernel that surprises us.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match sys::socket::recv(self.fd.as_fd(), buffer, 0) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut poll = [libc::pollfd { fd: raw(self.fd.as_fd()), events: libc::POLLIN, revents: 0 }];
                    if sys::poll::poll(&mut poll, 1000)? == 0 {
                        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
                    }
                }
                done => return done,
            }
        }
    }

    /// Drops what is still queued, so that the next exchange starts clean.
    fn drain(&self) {
        let mut buffer = vec![0; RECEIVE];
        while sys::socket::recv(self.fd.as_fd(), &mut buffer, 0).is_ok() {}
    }
}

fn raw(fd: BorrowedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd)
}

/// Errno (positive) and NLMSGERR_ATTR_MSG of an NLMSG_ERROR payload.
fn error_of(payload: &[u8], flags: u16) -> (i32, String) {
    let errno = -message::u32_at(payload, 0).unwrap_or(0).cast_signed();
    let mut detail = String::new();
    if flags & message::flag(libc::NLM_F_ACK_TLVS) != 0 {
        // The request's header follows, and its body too unless the answer is capped.
        let capped = flags & message::flag(libc::NLM_F_CAPPED) != 0;
        let body = usize::try_from(message::u32_at(payload, 4).unwrap_or(0)).unwrap_or(0);
        let skip = 4 + if capped { message::HEADER } else { body.next_multiple_of(4) };
        if let Some(text) = payload.get(skip..).and_then(|tlvs| message::attribute(tlvs, 1)) {
            detail = message::text_of(text).to_string();
        }
    }
    (errno, detail)
}
