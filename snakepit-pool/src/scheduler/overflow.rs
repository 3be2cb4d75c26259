//! The calls that wait for room in the full queue, in the order of their submission.
//!
//! They do not count towards the limits of the queue. Each entry holds a few numbers; the arguments stay with the caller.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    event::Ticket,
    queue::{QueuedCall, earlier},
};

/// The most calls that wait for room. Bounds the memory of the entries, about 100 bytes each.
const MAX_CALLS: usize = 100_000;

/// The longest wait. Longer waits are shortened to it, so that their end does not overflow the clock.
const MAX_WAIT: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

#[derive(Debug, Default)]
pub(super) struct Overflow {
    /// The calls by the number of their ticket, each with the end of its wait.
    calls: BTreeMap<u64, (QueuedCall, Instant)>,
    /// A lower bound of the times at which a call leaves without room. [`Overflow::take_ended`] makes it exact.
    next_end: Option<Instant>,
}

impl Overflow {
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The time at which [`take_ended`](Self::take_ended) is due.
    pub(super) const fn next_end(&self) -> Option<Instant> {
        self.next_end
    }

    /// Adds a call that waits for this time. Returns `false` if too many calls wait, or there is no time to wait.
    pub(super) fn push(&mut self, call: QueuedCall, wait: Duration, now: Instant) -> bool {
        if wait.is_zero() || self.calls.len() >= MAX_CALLS {
            return false;
        }
        let end = now.checked_add(wait.min(MAX_WAIT));
        let Some(end) = earlier(end, call.deadline) else { return false };
        self.next_end = earlier(self.next_end, Some(end));
        self.calls.insert(call.ticket.number, (call, end));
        true
    }

    /// The call that has waited longest.
    pub(super) fn first(&self) -> Option<&QueuedCall> {
        self.calls.first_key_value().map(|(_, (call, _))| call)
    }

    pub(super) fn take_first(&mut self) -> Option<QueuedCall> {
        self.calls.pop_first().map(|(_, (call, _))| call)
    }

    pub(super) fn remove(&mut self, ticket: Ticket) {
        self.calls.remove(&ticket.number);
    }

    /// Takes all calls whose wait has ended.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<QueuedCall> {
        if self.next_end.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let ended: Vec<u64> =
            self.calls.iter().filter(|(_, (_, end))| *end <= now).map(|(number, _)| *number).collect();
        let taken =
            ended.iter().filter_map(|number| self.calls.remove(number)).map(|(call, _)| call).collect();
        self.next_end = self.calls.values().map(|(_, end)| *end).min();
        taken
    }
}
