//! The loop's descriptors: who is watched, for what, and what became ready. Knows nothing of what they mean.
//!
//! Sockets and other lively descriptors stand in the `poll(2)` array. What is many and mostly idle (container
//! pipes, ptys) stands in one nested epoll set, so that a turn's cost does not grow with it.

pub mod timer;

use crate::sys;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What a descriptor is watched for. Errors and hang-up are always reported, as readable and writable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const NONE: Interest = Interest { read: false, write: false };
    pub const READ: Interest = Interest { read: true, write: false };
    pub const WRITE: Interest = Interest { read: false, write: true };
    pub const BOTH: Interest = Interest { read: true, write: true };

    fn poll_events(self) -> i16 {
        (if self.read { libc::POLLIN } else { 0 }) | (if self.write { libc::POLLOUT } else { 0 })
    }

    fn epoll_events(self) -> u32 {
        let events = (if self.read { libc::EPOLLIN } else { 0 }) | (if self.write { libc::EPOLLOUT } else { 0 });
        events.cast_unsigned()
    }
}

/// What became ready. `hangup`: the peer is gone in both directions, or the descriptor failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    pub read: bool,
    pub write: bool,
    pub hangup: bool,
}

/// A watched descriptor's handle; never reused while its slot lives, so that a stale one is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    index: u32,
    generation: u32,
}

enum Place {
    /// Position in the poll array.
    Poll(usize),
    /// In the epoll set.
    Epoll(RawFd),
}

struct Slot<S> {
    generation: u32,
    watched: Option<(S, Place)>,
}

/// The set of watched descriptors; `S` says what each one means to the owner.
pub struct Poller<S> {
    slots: Vec<Slot<S>>,
    free: Vec<u32>,
    fds: Vec<libc::pollfd>,
    /// The slot of each poll entry; entry 0 is the epoll set itself and has none.
    owners: Vec<u32>,
    epoll: OwnedFd,
    epoll_ready: Vec<(u64, u32)>,
}

impl<S: Copy> Poller<S> {
    pub fn new() -> io::Result<Poller<S>> {
        let epoll = sys::poll::epoll_create1()?;
        let fds = vec![libc::pollfd { fd: epoll.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        Ok(Poller { slots: Vec::new(), free: Vec::new(), fds, owners: vec![u32::MAX], epoll, epoll_ready: Vec::new() })
    }

    fn claim_slot(&mut self, watched: (S, Place)) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, watched: None });
            u32::try_from(self.slots.len() - 1).expect("descriptor numbers fit 32 bits, and slots are no more than descriptors")
        });
        let slot = &mut self.slots[index as usize];
        slot.watched = Some(watched);
        Token { index, generation: slot.generation }
    }

    /// Watches `fd` in the poll array. The caller removes the token before it closes the descriptor.
    pub fn add(&mut self, fd: BorrowedFd, source: S, interest: Interest) -> Token {
        let token = self.claim_slot((source, Place::Poll(self.fds.len())));
        self.fds.push(libc::pollfd { fd: fd.as_raw_fd(), events: interest.poll_events(), revents: 0 });
        self.owners.push(token.index);
        token
    }

    /// Watches `fd` in the epoll set: for pipes and ptys. Never for a descriptor that a child will inherit.
    pub fn add_idle(&mut self, fd: BorrowedFd, source: S, interest: Interest) -> io::Result<Token> {
        let token = self.claim_slot((source, Place::Epoll(fd.as_raw_fd())));
        let data = u64::from(token.generation) << 32 | u64::from(token.index);
        if let Err(e) = sys::poll::epoll_ctl(self.epoll.as_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), interest.epoll_events(), data) {
            self.release(token);
            return Err(e);
        }
        Ok(token)
    }

    fn live(&self, token: Token) -> Option<&(S, Place)> {
        let slot = self.slots.get(token.index as usize)?;
        if slot.generation == token.generation { slot.watched.as_ref() } else { None }
    }

    /// What a token stands for; `None` when it was removed meanwhile.
    pub fn source(&self, token: Token) -> Option<S> {
        self.live(token).map(|(source, _)| *source)
    }

    /// Changes what a descriptor is watched for. An epoll descriptor watched for nothing leaves the set, as hang-up
    /// would be reported for ever.
    pub fn set_interest(&mut self, token: Token, interest: Interest) {
        let Some((_, place)) = self.live(token) else { return };
        match *place {
            Place::Poll(position) => self.fds[position].events = interest.poll_events(),
            Place::Epoll(fd) => {
                let data = u64::from(token.generation) << 32 | u64::from(token.index);
                if interest == Interest::NONE {
                    let _ = sys::poll::epoll_ctl(self.epoll.as_fd(), libc::EPOLL_CTL_DEL, fd, 0, 0);
                } else if sys::poll::epoll_ctl(self.epoll.as_fd(), libc::EPOLL_CTL_MOD, fd, interest.epoll_events(), data).is_err() {
                    // Not in the set: it was watched for nothing.
                    let _ = sys::poll::epoll_ctl(self.epoll.as_fd(), libc::EPOLL_CTL_ADD, fd, interest.epoll_events(), data);
                }
            }
        }
    }

    /// Forgets a descriptor. Call before closing it: an epoll entry outlives the descriptor while a copy is open.
    pub fn remove(&mut self, token: Token) {
        let Some((_, place)) = self.live(token) else { return };
        match *place {
            Place::Poll(position) => {
                self.fds.swap_remove(position);
                self.owners.swap_remove(position);
                if let Some(moved) = self.owners.get(position)
                    && let Some((_, place)) = &mut self.slots[*moved as usize].watched
                {
                    *place = Place::Poll(position);
                }
            }
            Place::Epoll(fd) => {
                let _ = sys::poll::epoll_ctl(self.epoll.as_fd(), libc::EPOLL_CTL_DEL, fd, 0, 0);
            }
        }
        self.release(token);
    }

    fn release(&mut self, token: Token) {
        let slot = &mut self.slots[token.index as usize];
        slot.watched = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(token.index);
    }

    /// Waits until something is ready or `timeout_ms` has passed (`None`: for ever) and appends what is ready.
    /// A handler may remove others' tokens: re-check each with [`Poller::source`] before serving it.
    pub fn wait(&mut self, timeout_ms: Option<u64>, ready: &mut Vec<(Token, Ready)>) -> io::Result<()> {
        // Beyond 24 days poll's int overflows; the loop just comes round once more.
        let timeout = timeout_ms.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX));
        if sys::poll::poll(&mut self.fds, timeout)? == 0 {
            return Ok(());
        }
        for (entry, owner) in self.fds.iter().zip(&self.owners).skip(1) {
            if entry.revents != 0 {
                let bad = entry.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
                let state =
                    Ready { read: bad || entry.revents & libc::POLLIN != 0, write: bad || entry.revents & libc::POLLOUT != 0, hangup: bad };
                let generation = self.slots[*owner as usize].generation;
                ready.push((Token { index: *owner, generation }, state));
            }
        }
        if self.fds[0].revents != 0 {
            self.epoll_ready.clear();
            sys::poll::epoll_ready(self.epoll.as_fd(), &mut self.epoll_ready)?;
            for (data, events) in &self.epoll_ready {
                let events = events.cast_signed();
                let bad = events & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
                let state = Ready { read: bad || events & libc::EPOLLIN != 0, write: bad || events & libc::EPOLLOUT != 0, hangup: bad };
                let [index, generation] = [data & 0xffff_ffff, data >> 32].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
                ready.push((Token { index, generation }, state));
            }
        }
        Ok(())
    }

    /// The number of watched descriptors.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_token_is_harmless_and_positions_survive_removal() {
        let mut poller = Poller::new().unwrap();
        let (r1, w1) = sys::fd::pipe2(libc::O_NONBLOCK).unwrap();
        let (r2, w2) = sys::fd::pipe2(libc::O_NONBLOCK).unwrap();
        let first = poller.add(r1.as_fd(), 1, Interest::READ);
        let second = poller.add(r2.as_fd(), 2, Interest::READ);
        poller.remove(first);
        sys::fd::write(w1.as_fd(), b"x").unwrap();
        sys::fd::write(w2.as_fd(), b"x").unwrap();
        let mut ready = Vec::new();
        poller.wait(Some(0), &mut ready).unwrap();
        assert_eq!(ready.iter().map(|(token, _)| poller.source(*token)).collect::<Vec<_>>(), [Some(2)]);
        assert_eq!(poller.source(first), None);
        poller.remove(second);
        assert!(poller.is_empty());
    }

    #[test]
    fn idle_descriptors_report_through_the_nested_set() {
        let mut poller = Poller::new().unwrap();
        let (r, w) = sys::fd::pipe2(libc::O_NONBLOCK).unwrap();
        let token = poller.add_idle(r.as_fd(), 7, Interest::READ).unwrap();
        drop(w);
        let mut ready = Vec::new();
        poller.wait(Some(0), &mut ready).unwrap();
        assert!(ready[0].0 == token && ready[0].1.hangup && ready[0].1.read);
        poller.set_interest(token, Interest::NONE);
        ready.clear();
        poller.wait(Some(0), &mut ready).unwrap();
        assert!(ready.is_empty());
        poller.set_interest(token, Interest::READ);
        poller.wait(Some(0), &mut ready).unwrap();
        assert_eq!(ready.len(), 1);
        poller.remove(token);
    }
}
