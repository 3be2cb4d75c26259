//! The calls that wait for room in the full queue, in submission order.
//!
//! They do not count towards the limits of the queue. Each entry holds a few numbers; the arguments stay with the caller.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    event::Ticket,
    queue::{QueuedCall, earlier},
};

/// The maximum number of calls that wait for room. Bounds the memory of the entries, about 100 bytes each.
const MAX_CALLS: usize = 100_000;

/// The longest wait. Longer waits are shortened to it, so that their end does not overflow the clock.
const MAX_WAIT: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

#[derive(Debug, Default)]
pub(super) struct Overflow {
    /// The calls by the number of their ticket, each with the end of its wait.
    calls: BTreeMap<u64, (QueuedCall, Instant)>,
    /// The same calls, ordered by the ends of their waits.
    ends: BTreeSet<(Instant, u64)>,
}

impl Overflow {
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    /// The time at which [`take_ended`](Self::take_ended) is due.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Adds a call that waits for this time. Returns `false` if too many calls wait, or there is no time to wait.
    pub(super) fn push(&mut self, call: QueuedCall, wait: Duration, now: Instant) -> bool {
        if wait.is_zero() || self.calls.len() >= MAX_CALLS {
            return false;
        }
        let end = now.checked_add(wait.min(MAX_WAIT));
        let Some(end) = earlier(end, call.deadline) else { return false };
        self.ends.insert((end, call.ticket.number));
        self.calls.insert(call.ticket.number, (call, end));
        true
    }

    /// The call that has waited longest.
    pub(super) fn first(&self) -> Option<&QueuedCall> {
        self.calls.first_key_value().map(|(_, (call, _))| call)
    }

    pub(super) fn take_first(&mut self) -> Option<QueuedCall> {
        let (number, (call, end)) = self.calls.pop_first()?;
        self.ends.remove(&(end, number));
        Some(call)
    }

    pub(super) fn remove(&mut self, ticket: Ticket) {
        if let Some((_, end)) = self.calls.remove(&ticket.number) {
            self.ends.remove(&(end, ticket.number));
        }
    }

    /// Removes and returns the call whose wait ended first, if it has ended.
    pub(super) fn take_ended(&mut self, now: Instant) -> Option<QueuedCall> {
        if self.next_end()? > now {
            return None;
        }
        let (_, number) = self.ends.pop_first()?;
        self.calls.remove(&number).map(|(call, _)| call)
    }
}
