//! One slot: the life of the worker in it, and how soon a lost one is replaced.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    event::WorkerKey,
    load::{Backlog, Load},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// A worker that lived this long is healthy even if nobody called it.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// A worker with calls that has ended none for so long runs a long one, whatever was expected: nothing may wait behind it.
pub(super) const STALLED_AFTER: Duration = Duration::from_millis(2);

/// After so many failures in a row, the slot counts as failing.
const FAILING_AFTER: u32 = 3;

#[derive(Debug)]
pub(crate) struct Slot {
    index: u32,
    generation: u32,
    /// Workers in a row that did not start, or died before they were healthy.
    failures: u32,
    /// Calls that ended on any of its workers, however they ended.
    pub(super) served: u64,
    pub(crate) state: SlotState,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum SlotState {
    /// No worker; the next one is launched at this time.
    BackingOff { until: Instant },
    /// A launch is under way.
    Launching,
    /// A worker takes calls, or would if it had room.
    Up(Up),
    /// A worker was killed or asked to stop; its exit is awaited.
    Ending { healthy: bool },
    /// No worker, and none will come.
    Gone,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Up {
    backlog: Backlog,
    /// Whether it keeps calls that it is handed ahead, and gives them back when asked.
    pub(super) keeps_calls: bool,
    /// When it last ended a call, or began one with none before it.
    moved: Instant,
    /// Abandoned calls that may still run on it. While there are any, it gets no calls.
    pub(crate) settling: u32,
    /// When the abandoned calls must have ended.
    pub(super) settle_by: Instant,
    since: Instant,
    served: bool,
}

impl Up {
    pub(super) fn new(keeps_calls: bool, now: Instant) -> Self {
        Self {
            backlog: Backlog::default(),
            keeps_calls,
            moved: now,
            settling: 0,
            settle_by: now,
            since: now,
            served: false,
        }
    }

    /// How many calls it was handed and has not ended.
    pub(crate) const fn running(&self) -> u32 {
        self.backlog.calls()
    }

    pub(super) fn add(&mut self, load: Load, now: Instant) {
        if self.backlog.calls() == 0 {
            self.moved = now;
        }
        self.backlog.add(load);
    }

    pub(super) fn take_back(&mut self, load: Load) {
        self.backlog.remove(load);
    }

    /// When it will have sat on its calls for too long.
    pub(super) fn stalls_at(&self) -> Instant {
        self.moved + STALLED_AFTER
    }

    pub(super) fn remove(&mut self, load: Load, now: Instant) {
        self.backlog.remove(load);
        self.moved = now;
    }

    /// Whether another call may be handed over although as many run as may.
    pub(super) fn takes_ahead(&self) -> bool {
        self.keeps_calls && self.backlog.is_brief()
    }

    /// Whether a call had better be handed to this worker than to an idle one.
    pub(super) fn gathers(&self, load: Load) -> bool {
        self.keeps_calls && self.backlog.gathers(load)
    }

    /// It proved that a call of it has ended.
    pub(super) const fn answered(&mut self) {
        self.served = true;
    }

    pub(super) fn is_healthy(&self, now: Instant) -> bool {
        self.served || now.saturating_duration_since(self.since) >= HEALTHY_AFTER
    }
}

impl Slot {
    pub(super) const fn new(index: u32, now: Instant) -> Self {
        Self { index, generation: 0, failures: 0, served: 0, state: SlotState::BackingOff { until: now } }
    }

    /// Names the current worker: the one that lives, or else the last one.
    pub(crate) const fn key(&self) -> WorkerKey {
        WorkerKey { slot: self.index, generation: self.generation }
    }

    /// How many workers were launched after the first.
    pub(crate) fn restarts(&self) -> u64 {
        u64::from(self.generation.saturating_sub(1))
    }

    /// How many calls ended on its workers.
    pub(crate) const fn served(&self) -> u64 {
        self.served
    }

    pub(crate) const fn is_failing(&self) -> bool {
        self.failures >= FAILING_AFTER
    }

    pub(super) const fn up(&mut self) -> Option<&mut Up> {
        match &mut self.state {
            SlotState::Up(up) => Some(up),
            _ => None,
        }
    }

    pub(super) const fn launch(&mut self) -> WorkerKey {
        self.generation += 1;
        self.state = SlotState::Launching;
        self.key()
    }

    /// Counts a call that the current worker answered.
    pub(super) const fn serve(&mut self) {
        self.served += 1;
        self.failures = 0;
        if let SlotState::Up(up) = &mut self.state {
            up.served = true;
        }
    }

    /// The worker is gone: says when the next one is due. A healthy worker is replaced at once.
    pub(super) fn vacate(&mut self, healthy: bool, now: Instant) -> Instant {
        self.failures = if healthy { 0 } else { self.failures.saturating_add(1) };
        let until = now + backoff(self.failures);
        self.state = SlotState::BackingOff { until };
        until
    }
}

/// Doubles with every failure in a row.
fn backoff(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => FIRST_BACKOFF.saturating_mul(1 << (n - 1).min(16)).min(LONGEST_BACKOFF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let millis = [0, 1, 2, 3, 9, 10, u32::MAX].map(|n| backoff(n).as_millis());
        assert_eq!(millis, [0, 100, 200, 400, 25_600, 30_000, 30_000]);
    }
}
