//! The queue of waiting calls: first in, first out, except for a bounded preference for affinity.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Load,
    event::{Ticket, WorkerKey},
};
use crate::collections::VecDeque;

/// The number of entries at the head that are searched for a call that prefers the free worker.
const AFFINITY_WINDOW: usize = 8;

#[derive(Debug, Clone, Copy)]
pub(super) struct QueuedCall {
    pub(super) ticket: Ticket,
    pub(super) preferred: Option<WorkerKey>,
    pub(super) deadline: Option<Instant>,
    pub(super) queued_at: Instant,
    pub(super) load: Load,
    pub(super) bytes: usize,
}

/// The queued calls, sorted by ticket number, so that a binary search finds one in the middle. A call that leaves from the
/// middle leaves a gap, which is an entry without a call. The head is never a gap.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    /// The number of queued calls.
    waiting: usize,
    /// The number of queued calls that prefer a worker.
    preferring: usize,
    /// The bytes of all queued calls.
    bytes: usize,
    /// Whether the last taken call overtook others. The next one then must not overtake, so a call at position `p` leaves
    /// within `2p + 1` takes.
    has_overtaken: bool,
    /// A lower bound of all deadlines in the queue. [`Queue::take_expired`] makes it exact.
    earliest_deadline: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    call: Option<QueuedCall>,
}

impl Queue {
    pub(super) const fn len(&self) -> usize {
        self.waiting
    }

    /// The bytes of all queued calls.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The time at which [`take_expired`](Self::take_expired) is due.
    pub(super) const fn earliest_deadline(&self) -> Option<Instant> {
        self.earliest_deadline
    }

    /// The time that the first call has waited.
    pub(super) fn oldest(&self, now: Instant) -> Duration {
        let head = self.entries.front().and_then(|entry| entry.call.as_ref());
        head.map_or(Duration::ZERO, |call| now.saturating_duration_since(call.queued_at))
    }

    pub(super) fn push(&mut self, call: QueuedCall) {
        self.waiting += 1;
        self.bytes += call.bytes;
        self.preferring += usize::from(call.preferred.is_some());
        self.earliest_deadline = earlier(self.earliest_deadline, call.deadline);
        let entry = Entry { number: call.ticket.number, call: Some(call) };
        if self.entries.back().is_none_or(|last| last.number < entry.number) {
            return self.entries.push_back(entry);
        }
        // A returned call gets its old place, which is nearly always the head.
        let index = self.entries.partition_point(|other| other.number < entry.number);
        match self.entries.get_mut(index) {
            Some(gap) if gap.number == entry.number => *gap = entry,
            _ => self.entries.insert(index, entry),
        }
    }

    /// The load of the first call.
    pub(super) fn head_load(&self) -> Option<Load> {
        let head = self.entries.front().and_then(|entry| entry.call.as_ref());
        head.map(|call| call.load)
    }

    /// Takes the next call for this worker: the first one, or one near the head that prefers the worker.
    pub(super) fn take_for(&mut self, worker: WorkerKey) -> Option<QueuedCall> {
        let index =
            if self.preferring > 0 && !self.has_overtaken { self.preferring_index(worker) } else { 0 };
        self.has_overtaken = index > 0;
        self.take_at(index)
    }

    /// The index of the first call near the head that prefers this worker, or 0.
    fn preferring_index(&self, worker: WorkerKey) -> usize {
        let prefers = |entry: &Entry| entry.call.as_ref().is_some_and(|call| call.preferred == Some(worker));
        self.entries.iter().take(AFFINITY_WINDOW).position(prefers).unwrap_or(0)
    }

    pub(super) fn take_first(&mut self) -> Option<QueuedCall> {
        self.take_at(0)
    }

    /// Takes a specific call. Returns `None` if it is not queued.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<QueuedCall> {
        let index = self.entries.binary_search_by_key(&ticket.number, |entry| entry.number).ok()?;
        self.take_at(index)
    }

    /// Takes all calls whose deadline has passed.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Ticket> {
        if self.earliest_deadline.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut expired = Vec::new();
        self.earliest_deadline = None;
        for entry in &mut self.entries {
            match entry.call.as_ref().map(|call| call.deadline) {
                Some(Some(deadline)) if deadline <= now => {
                    if let Some(call) = entry.call.take() {
                        self.waiting -= 1;
                        self.bytes -= call.bytes;
                        self.preferring -= usize::from(call.preferred.is_some());
                        expired.push(call.ticket);
                    }
                }
                Some(deadline) => self.earliest_deadline = earlier(self.earliest_deadline, deadline),
                None => {}
            }
        }
        self.close_gaps();
        expired
    }

    fn take_at(&mut self, index: usize) -> Option<QueuedCall> {
        let call = self.entries.get_mut(index)?.call.take()?;
        self.waiting -= 1;
        self.bytes -= call.bytes;
        self.preferring -= usize::from(call.preferred.is_some());
        self.close_gaps();
        Some(call)
    }

    fn close_gaps(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.call.is_none()) {
            self.entries.pop_front();
        }
        // Gaps behind a head that waits long must not accumulate. Removing them once they are the majority is amortized
        // O(1).
        if self.entries.len() > 2 * self.waiting + AFFINITY_WINDOW {
            self.entries.retain(|entry| entry.call.is_some());
        }
        if self.waiting == 0 {
            self.earliest_deadline = None;
        }
    }
}

/// The earlier of two optional times.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
