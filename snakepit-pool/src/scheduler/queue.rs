//! The calls that wait for a worker, first come first served but for a bounded favour to affinity.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{
    Load,
    event::{Ticket, WorkerKey},
};
use crate::visits::visit;

/// How far from the head a call may be picked because it prefers the worker that became free.
const WINDOW: usize = 8;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) ticket: Ticket,
    pub(super) preferred: Option<WorkerKey>,
    pub(super) deadline: Option<Instant>,
    pub(super) since: Instant,
    pub(super) load: Load,
    pub(super) bytes: usize,
}

/// Entries stand in the order of their ticket numbers, so that one in the middle is found by bisection. What leaves
/// from the middle stays behind as a gap (`None` in `entry`); the head is never a gap.
#[derive(Debug, Default)]
pub(super) struct Queue {
    places: VecDeque<Place>,
    waiting: usize,
    preferring: usize,
    /// What all entries hold.
    bytes: usize,
    /// Whether the last call taken overtook others. The next one then may not, so a call at position `p` leaves
    /// within `2p + 1` takes.
    overtook: bool,
    /// No deadline in the queue is earlier. May be too early after entries left; [`Queue::expired`] corrects it.
    earliest: Option<Instant>,
}

#[derive(Debug)]
struct Place {
    number: u64,
    entry: Option<Entry>,
}

impl Queue {
    pub(super) const fn len(&self) -> usize {
        self.waiting
    }

    /// What all calls in the queue hold, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// When [`expired`](Self::expired) should be called next.
    pub(super) const fn earliest_deadline(&self) -> Option<Instant> {
        self.earliest
    }

    /// How long the first in the queue has waited.
    pub(super) fn oldest(&self, now: Instant) -> Duration {
        let head = self.places.front().and_then(|place| place.entry.as_ref());
        head.map_or(Duration::ZERO, |entry| now.saturating_duration_since(entry.since))
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.waiting += 1;
        self.bytes += entry.bytes;
        self.preferring += usize::from(entry.preferred.is_some());
        self.earliest = earlier(self.earliest, entry.deadline);
        let place = Place { number: entry.ticket.number, entry: Some(entry) };
        if self.places.back().is_none_or(|last| last.number < place.number) {
            return self.places.push_back(place);
        }
        // It was given back, and stands again where it would if it had never left: nearly always at the head.
        let index = self.places.partition_point(|other| other.number < place.number);
        match self.places.get_mut(index) {
            Some(gap) if gap.number == place.number => *gap = place,
            _ => self.places.insert(index, place),
        }
    }

    /// The load of the first call in the queue.
    pub(super) fn head_load(&self) -> Option<Load> {
        let head = self.places.front().and_then(|place| place.entry.as_ref());
        head.map(|entry| entry.load)
    }

    /// Takes the call that should run on this worker next.
    pub(super) fn take_for(&mut self, worker: WorkerKey) -> Option<Entry> {
        let favoured = if self.preferring > 0 && !self.overtook { self.favoured(worker) } else { 0 };
        self.overtook = favoured > 0;
        self.take_at(favoured)
    }

    fn favoured(&self, worker: WorkerKey) -> usize {
        let prefers = |place: &Place| {
            visit();
            place.entry.as_ref().is_some_and(|entry| entry.preferred == Some(worker))
        };
        self.places.iter().take(WINDOW).position(prefers).unwrap_or(0)
    }

    pub(super) fn take_first(&mut self) -> Option<Entry> {
        self.take_at(0)
    }

    /// Takes a call out of turn; `None` when it is not queued.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        let index = self
            .places
            .binary_search_by_key(&ticket.number, |place| {
                visit();
                place.number
            })
            .ok()?;
        self.take_at(index)
    }

    /// Takes all calls whose deadline has passed.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Ticket> {
        if self.earliest.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut expired = Vec::new();
        self.earliest = None;
        for place in &mut self.places {
            visit();
            match place.entry.as_ref().map(|entry| entry.deadline) {
                Some(Some(deadline)) if deadline <= now => {
                    if let Some(entry) = place.entry.take() {
                        self.waiting -= 1;
                        self.bytes -= entry.bytes;
                        self.preferring -= usize::from(entry.preferred.is_some());
                        expired.push(entry.ticket);
                    }
                }
                Some(deadline) => self.earliest = earlier(self.earliest, deadline),
                None => {}
            }
        }
        self.close_gaps();
        expired
    }

    fn take_at(&mut self, index: usize) -> Option<Entry> {
        let entry = self.places.get_mut(index)?.entry.take()?;
        self.waiting -= 1;
        self.bytes -= entry.bytes;
        self.preferring -= usize::from(entry.preferred.is_some());
        self.close_gaps();
        Some(entry)
    }

    fn close_gaps(&mut self) {
        while self.places.front().is_some_and(|place| place.entry.is_none()) {
            visit();
            self.places.pop_front();
        }
        // Gaps behind a patient head must not pile up. Closing them when they are the majority costs O(1) per call.
        if self.places.len() > 2 * self.waiting + WINDOW {
            self.places.retain(|place| {
                visit();
                place.entry.is_some()
            });
        }
        if self.waiting == 0 {
            self.earliest = None;
        }
    }
}

/// The earlier of two times, where there are any.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
