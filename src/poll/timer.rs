//! Timers: an ordered set of deadlines. Milliseconds of CLOCK_BOOTTIME throughout.

use std::collections::BTreeMap;

/// A timer's handle, for cancelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerId {
    deadline_ms: u64,
    sequence: u64,
}

/// Pending timers; `T` says what is due.
pub struct Timers<T> {
    pending: BTreeMap<TimerId, T>,
    sequence: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Timers<T> {
        Timers { pending: BTreeMap::new(), sequence: 0 }
    }
}

impl<T> Timers<T> {
    /// Arms a timer for the absolute `deadline_ms`.
    pub fn arm(&mut self, deadline_ms: u64, what: T) -> TimerId {
        self.sequence += 1;
        let id = TimerId { deadline_ms, sequence: self.sequence };
        self.pending.insert(id, what);
        id
    }

    /// Disarms a timer; `None` when it has fired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        self.pending.remove(&id)
    }

    /// Milliseconds until the next deadline, rounded up; 0 when one is due; `None` without timers.
    pub fn next_in_ms(&self, now_ms: u64) -> Option<u64> {
        self.pending.keys().next().map(|id| id.deadline_ms.saturating_sub(now_ms))
    }

    /// Takes one due timer. Timers made by a handler in this turn wait for the next: pass the turn's first `limit`.
    pub fn pop_due(&mut self, now_ms: u64, limit: u64) -> Option<T> {
        let id = *self.pending.keys().find(|id| id.sequence <= limit)?;
        if id.deadline_ms > now_ms {
            return None;
        }
        self.pending.remove(&id)
    }

    /// The newest timer's sequence number: the `limit` for [`Timers::pop_due`].
    pub fn newest(&self) -> u64 {
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_and_not_the_ones_made_meanwhile() {
        let mut timers = Timers::default();
        timers.arm(20, "b");
        let a = timers.arm(10, "a");
        let cancelled = timers.arm(15, "x");
        assert_eq!(timers.next_in_ms(4), Some(6));
        assert_eq!(timers.cancel(cancelled), Some("x"));
        let limit = timers.newest();
        assert_eq!(timers.pop_due(20, limit), Some("a"));
        timers.arm(1, "new");
        assert_eq!(timers.pop_due(20, limit), Some("b"));
        assert_eq!(timers.pop_due(20, limit), None);
        assert_eq!(timers.cancel(a), None);
    }
}
