//! Admits calls to the queue: the limits of the queue, and the calls that wait for room in it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Effect, Rejection, Scheduler, earlier, queue::QueuedCall};

impl Scheduler {
    /// Queues a call. If a limit is reached, the call waits for room for up to `wait_for_room`. Without a `wait_for_room`,
    /// rejects the call.
    pub(super) fn enqueue(&mut self, call: QueuedCall, wait_for_room: Option<Duration>, now: Instant) {
        // A new call must not overtake calls that wait for room.
        let rejection = match self.rejection_of(&call, now) {
            None if self.overflow.is_empty() => return self.push(call),
            None => self.overloaded(now),
            Some(rejection) => rejection,
        };
        let ticket = call.ticket;
        if wait_for_room.is_some_and(|wait| self.overflow.push(call, wait, now)) {
            self.next_tick = earlier(self.next_tick, self.overflow.next_end());
        } else {
            self.reject(ticket, rejection);
        }
    }

    fn push(&mut self, call: QueuedCall) {
        self.next_tick = earlier(self.next_tick, call.deadline);
        self.queue.push(call);
    }

    /// Returns the rejection of a call if the queue has no room for it.
    fn rejection_of(&self, call: &QueuedCall, now: Instant) -> Option<Rejection> {
        let (queued, used) = (self.queue.len(), self.queue.bytes());
        if queued >= self.limits.queue {
            return Some(self.overloaded(now));
        }
        let exceeds_bytes = queued > 0 && used.saturating_add(call.bytes) > self.limits.queue_bytes;
        exceeds_bytes.then(|| Rejection::TooManyBytes { used, oldest: self.queue.oldest(now) })
    }

    fn overloaded(&self, now: Instant) -> Rejection {
        Rejection::Overloaded { queued: self.queue.len(), oldest: self.queue.oldest(now) }
    }

    /// Moves calls that wait for room to a worker or to the queue, in order.
    pub(super) fn admit(&mut self, now: Instant) {
        while let Some(&call) = self.overflow.first() {
            if call.deadline.is_some_and(|at| at <= now) {
                self.overflow.take_first();
                self.effects.push(Effect::Expire(call.ticket));
                continue;
            }
            // With a `queue_limit` of 0, a waiting call can only go to an idle worker.
            let idle_slot = if self.queue.len() == 0 { self.slot_for(&call, now) } else { None };
            if idle_slot.is_none() && self.rejection_of(&call, now).is_some() {
                return;
            }
            self.overflow.take_first();
            match idle_slot {
                Some(slot) => self.assign(call.ticket, slot, call.load, now),
                None => self.push(QueuedCall { queued_at: now, ..call }),
            }
        }
    }

    /// Fails the calls whose wait for room has ended.
    pub(super) fn end_waits_for_room(&mut self, now: Instant) {
        while let Some(call) = self.overflow.take_ended(now) {
            if call.deadline.is_some_and(|at| at <= now) {
                self.effects.push(Effect::Expire(call.ticket));
            } else {
                let rejection = self.rejection_of(&call, now).unwrap_or_else(|| self.overloaded(now));
                self.reject(call.ticket, rejection);
            }
        }
    }

    /// Rejects all calls that wait for room.
    pub(super) fn reject_overflow(&mut self, rejection: Rejection) {
        while let Some(call) = self.overflow.take_first() {
            self.reject(call.ticket, rejection);
        }
    }
}
