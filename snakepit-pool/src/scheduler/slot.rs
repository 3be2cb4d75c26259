//! A slot of the pool: the state of its worker, and the backoff before the next one.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    MAX_AHEAD,
    event::WorkerKey,
    load::{Backlog, Load},
    recycling::{RecycleReason, WorkerLimits},
};

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A worker that has been up for this long counts as healthy even if it has answered no call.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// A busy worker that has not ended a call for this long counts as stalled. It runs a longer call than
/// expected, so no call may wait behind it.
pub(super) const STALLED_AFTER: Duration = Duration::from_millis(2);

/// The number of consecutive failures after which a slot counts as failing.
const FAILING_AFTER: u32 = 3;

/// A place in the pool for one worker at a time.
#[derive(Debug)]
pub(crate) struct Slot {
    index: u32,
    /// The generation of the current worker, or of the last one.
    generation: u32,
    /// The generation of the last worker that was launched, which may be the successor.
    last_generation: u32,
    /// The generation of the worker that is being launched to replace the current one, which is up or ending.
    pub(super) successor: Option<u32>,
    /// The number of consecutive workers that did not start or exited before they were healthy.
    failures: u32,
    /// The number of consecutive successors that did not start.
    successor_failures: u32,
    /// The earliest time of the next launch of a successor that recycles the worker.
    pub(super) retry_at: Option<Instant>,
    /// The number of calls that ended on workers of this slot, with or without an answer.
    pub(super) ended_calls: u64,
    pub(crate) state: SlotState,
}

/// The state of a slot's worker.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SlotState {
    /// The slot has no worker. The next launch is at this time.
    BackingOff { until: Instant },
    /// A worker is being launched.
    Launching,
    /// The worker is in service.
    Up(Up),
    /// The worker was killed or asked to stop, and has not exited yet.
    Ending { is_healthy: bool },
    /// The slot has no worker and gets none, because the pool is stopping.
    Closed,
}

/// The state of a worker in service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Up {
    backlog: Backlog,
    /// Whether the worker accepts calls ahead of their turn and returns them when they are recalled.
    pub(super) queues_calls: bool,
    /// The time at which the worker last ended a call, or began one while it was idle.
    last_progress: Instant,
    /// The number of calls that the worker runs concurrently.
    pub(crate) concurrency: u32,
    /// The number of abandoned calls that may still run. Each occupies the place of a running call, and the worker does not get
    /// calls ahead of time.
    pub(crate) cancelling: u32,
    /// Whether the worker rejects calls because it is stopping. The pool stops it when its other calls have ended.
    pub(crate) is_retiring: bool,
    /// The number of nested calls that wait because the worker cannot begin them. Meanwhile, it does not get calls.
    pub(crate) suspensions: u32,
    up_since: Instant,
    /// Whether a call has ended on the worker, so the worker counts as healthy.
    has_served: bool,
    /// The number of calls that have ended on the worker.
    calls: u64,
    limits: WorkerLimits,
    /// The reason why the worker must be replaced.
    pub(super) recycle: Option<RecycleReason>,
}

impl Up {
    pub(super) fn new(queues_calls: bool, concurrency: usize, limits: WorkerLimits, now: Instant) -> Self {
        Self {
            backlog: Backlog::default(),
            queues_calls,
            last_progress: now,
            concurrency: u32::try_from(concurrency).unwrap_or(u32::MAX),
            cancelling: 0,
            is_retiring: false,
            suspensions: 0,
            up_since: now,
            has_served: false,
            calls: 0,
            limits,
            recycle: None,
        }
    }

    /// The number of calls that the worker holds.
    pub(crate) const fn running(&self) -> u32 {
        self.backlog.calls()
    }

    /// The number of calls that the worker holds, including abandoned ones.
    pub(crate) const fn held(&self) -> u32 {
        self.running() + self.cancelling
    }

    /// Whether the worker cannot begin another call immediately.
    pub(super) const fn is_full(&self) -> bool {
        self.held() >= self.concurrency
    }

    /// The order in which workers get calls: first those that can begin one immediately, by the number of their calls, and then the
    /// others. `most_concurrent` is at least the concurrency of any worker.
    pub(super) fn rank(&self, most_concurrent: usize) -> usize {
        match self.held().checked_sub(self.concurrency) {
            Some(ahead) => most_concurrent + ahead as usize,
            None => self.held() as usize,
        }
    }

    /// Whether the worker may get another call, which it begins immediately or holds ahead of its turn.
    pub(super) fn has_room(&self) -> bool {
        let may_hold_more = self.cancelling == 0 && self.held() < self.concurrency + MAX_AHEAD as u32;
        !self.is_retiring
            && self.suspensions == 0
            && (!self.is_full() || (may_hold_more && self.takes_ahead()))
    }

    pub(super) fn add(&mut self, load: Load, now: Instant) {
        if self.backlog.calls() == 0 {
            self.last_progress = now;
        }
        self.backlog.add(load);
    }

    pub(super) fn remove_unbegun(&mut self, load: Load) {
        self.backlog.remove(load);
    }

    /// The time at which the worker counts as stalled.
    pub(super) fn stalls_at(&self) -> Instant {
        self.last_progress + STALLED_AFTER
    }

    pub(super) fn remove(&mut self, load: Load, now: Instant) {
        self.backlog.remove(load);
        self.last_progress = now;
    }

    /// Whether the worker may get a brief call ahead of its turn.
    pub(super) fn takes_ahead(&self) -> bool {
        self.queues_calls && self.backlog.is_brief()
    }

    /// Whether a call should wait for this worker instead of waking an idle one.
    pub(super) fn should_wait_behind(&self, load: Load) -> bool {
        self.queues_calls && self.backlog.should_wait_behind(load)
    }

    /// The number of calls that have ended on the worker.
    pub(super) const fn calls(&self) -> u64 {
        self.calls
    }

    /// Whether the worker has run as many calls as it may.
    pub(super) const fn has_run_enough_calls(&self) -> bool {
        self.limits.has_run_enough(self.calls)
    }

    pub(super) const fn limits(&self) -> &WorkerLimits {
        &self.limits
    }

    pub(super) const fn up_since(&self) -> Instant {
        self.up_since
    }

    /// The time at which the last call ended, if the worker has run calls and runs none now.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.calls > 0 && self.held() == 0).then_some(self.last_progress)
    }

    /// Records that the worker confirmed the end of a call.
    pub(super) const fn mark_served(&mut self) {
        self.has_served = true;
    }

    pub(super) fn is_healthy(&self, now: Instant) -> bool {
        self.has_served || now.saturating_duration_since(self.up_since) >= HEALTHY_AFTER
    }
}

impl Slot {
    pub(super) const fn new(index: u32, now: Instant) -> Self {
        Self {
            index,
            generation: 0,
            last_generation: 0,
            successor: None,
            failures: 0,
            successor_failures: 0,
            retry_at: None,
            ended_calls: 0,
            state: SlotState::BackingOff { until: now },
        }
    }

    /// The key of the current worker, or of the last one.
    pub(crate) const fn key(&self) -> WorkerKey {
        WorkerKey { slot: self.index, generation: self.generation }
    }

    /// The key of the worker that is being launched to replace the current one.
    pub(super) fn successor(&self) -> Option<WorkerKey> {
        self.successor.map(|generation| WorkerKey { slot: self.index, generation })
    }

    /// The generation of the last worker that was launched.
    pub(super) const fn last_generation(&self) -> u32 {
        self.last_generation
    }

    /// The number of workers that were launched after the first.
    pub(crate) fn restarts(&self) -> u64 {
        u64::from(self.generation.saturating_sub(1))
    }

    /// The number of calls that ended on workers of this slot.
    pub(crate) const fn ended_calls(&self) -> u64 {
        self.ended_calls
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
        self.last_generation += 1;
        self.generation = self.last_generation;
        self.state = SlotState::Launching;
        self.key()
    }

    /// Begins the launch of a worker that replaces the current one when it is up.
    pub(super) const fn launch_successor(&mut self) -> WorkerKey {
        self.last_generation += 1;
        self.successor = Some(self.last_generation);
        WorkerKey { slot: self.index, generation: self.last_generation }
    }

    /// Makes the successor, whose launch has not ended, the current worker. Returns `false` without a successor.
    pub(super) fn promote_successor(&mut self) -> bool {
        let Some(generation) = self.successor.take() else { return false };
        self.generation = generation;
        self.state = SlotState::Launching;
        self.successor_failures = 0;
        self.retry_at = None;
        true
    }

    /// Counts a call that ended with an answer of the current worker.
    pub(super) const fn record_finished(&mut self) {
        self.ended_calls += 1;
        self.failures = 0;
        if let SlotState::Up(up) = &mut self.state {
            up.has_served = true;
            up.calls += 1;
        }
    }

    /// Counts a call that ended without an answer of the current worker.
    pub(super) const fn count_call(&mut self) {
        if let SlotState::Up(up) = &mut self.state {
            up.calls += 1;
        }
    }

    /// Records that a successor did not start. Returns the earliest time of the next launch of a successor.
    pub(super) fn record_failed_successor(&mut self, now: Instant) -> Instant {
        self.successor = None;
        self.successor_failures = self.successor_failures.saturating_add(1);
        let retry_at = now + backoff(self.successor_failures);
        self.retry_at = Some(retry_at);
        retry_at
    }

    /// Schedules the next launch after the worker has ended, and returns its time. A healthy worker is replaced
    /// immediately.
    pub(super) fn vacate(&mut self, is_healthy: bool, now: Instant) -> Instant {
        self.failures = if is_healthy { 0 } else { self.failures.saturating_add(1) };
        let until = now + backoff(self.failures);
        self.state = SlotState::BackingOff { until };
        until
    }
}

/// The pause before the next launch. Doubles with every consecutive failure.
fn backoff(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => MIN_BACKOFF.saturating_mul(1 << (n - 1).min(16)).min(MAX_BACKOFF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_bound() {
        let millis = [0, 1, 2, 3, 9, 10, u32::MAX].map(|n| backoff(n).as_millis());
        assert_eq!(millis, [0, 100, 200, 400, 25_600, 30_000, 30_000]);
    }
}
