//! Recycling: the replacement of single workers that have reached a limit. The new worker is up before the old one retires.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::{Effect, KillReason, Phase, Scheduler, Slot, SlotState, Up, WorkerKey, restart::MAX_REPLACED};

/// The shortest life of a worker that is recycled because of its memory. It prevents endless replacements if workers reach the
/// limit with their first calls.
pub(crate) const MIN_LIFE: Duration = Duration::from_secs(10);

/// A limit is reduced for each worker by a random share of up to one in this many, so that workers that start together are not
/// replaced together.
const JITTER: u32 = 10;

/// The limits at which a worker is replaced. `None` disables a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RecyclingLimits {
    /// The number of calls.
    pub(crate) calls: Option<u64>,
    /// The time since the worker came up.
    pub(crate) age: Option<Duration>,
    /// The time since the last call of a worker that has run calls.
    pub(crate) idle: Option<Duration>,
    /// The private memory, in bytes.
    pub(crate) memory: Option<u64>,
    /// The private memory at which the worker is killed, in bytes.
    pub(crate) hard_memory: Option<u64>,
}

/// The limits of one worker: those of the pool with their jitter.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerLimits {
    calls: u64,
    pub(super) age_ends: Option<Instant>,
}

/// The reason for replacing a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecycleReason {
    /// It has run this many calls.
    Calls(u64),
    /// It has been up for this long.
    Age(Duration),
    /// It has had no call for this long.
    Idle(Duration),
    /// Its private memory exceeds the limit. Both in bytes.
    Memory { used: u64, limit: u64 },
    /// A restart of this worker was requested.
    Requested,
}

impl fmt::Display for RecycleReason {
    /// Formats the reason as the end of a sentence, after "it was replaced because".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calls(calls) => write!(f, "it has run {calls} calls (`max_worker_calls`)"),
            Self::Age(age) => write!(f, "it is {age:?} old (`max_worker_age`)"),
            Self::Idle(idle) => write!(f, "it has been idle for {idle:?} (`max_worker_idle`)"),
            Self::Memory { used, limit } => {
                write!(f, "its private memory of {} exceeds {}", Mebibytes(*used), Mebibytes(*limit))?;
                write!(f, " by {} (`max_worker_memory`)", Mebibytes(used.saturating_sub(*limit)))
            }
            Self::Requested => f.write_str("its restart was requested"),
        }
    }
}

/// A number of bytes, formatted in MiB.
pub(super) struct Mebibytes(pub(super) u64);

impl fmt::Display for Mebibytes {
    #[allow(clippy::cast_precision_loss, reason = "the text has one decimal")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / (1024.0 * 1024.0))
    }
}

impl RecyclingLimits {
    pub(super) fn of_worker(&self, worker: WorkerKey, now: Instant) -> WorkerLimits {
        let jitter = Jitter::of(worker);
        WorkerLimits {
            calls: self.calls.map_or(u64::MAX, |calls| calls - jitter.share_of(calls / u64::from(JITTER))),
            age_ends: self.age.map(|age| {
                let reduction = jitter.share_of(u64::try_from((age / JITTER).as_nanos()).unwrap_or(u64::MAX));
                now + age.saturating_sub(Duration::from_nanos(reduction))
            }),
        }
    }
}

impl WorkerLimits {
    /// Whether a worker that has ended this many calls must be replaced.
    pub(super) const fn has_run_enough(&self, calls: u64) -> bool {
        calls >= self.calls
    }
}

/// A number that is evenly distributed over the workers, but the same for each run of the scheduler.
#[derive(Debug, Clone, Copy)]
struct Jitter(u32);

impl Jitter {
    fn of(worker: WorkerKey) -> Self {
        // The finalizer of splitmix64.
        let seed = u64::from(worker.slot) << 32 | u64::from(worker.generation);
        let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((bits >> 32) as u32)
    }

    /// A number from 0 to `range`.
    fn share_of(self, range: u64) -> u64 {
        ((u128::from(range) * u128::from(self.0)) >> 32) as u64
    }
}

/// The progress of the replacement of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replacement {
    Pending,
    /// Another worker serves in its slot.
    Up,
    /// The replacement did not start, and the worker remains in service.
    Failed,
}

impl Scheduler {
    /// Whether the worker is the current one of its slot, and takes calls.
    pub(crate) fn is_in_service(&self, worker: WorkerKey) -> bool {
        self.is_current(worker)
            && matches!(self.slot(worker).state, SlotState::Up(Up { is_retiring: false, .. }))
    }

    /// The progress of the replacement of a worker after [`Event::Recycle`](super::Event::Recycle).
    pub(crate) fn replacement_of(&self, worker: WorkerKey) -> Replacement {
        match self.slots.get(worker.index()) {
            Some(slot) if slot.key() != worker && matches!(slot.state, SlotState::Up(_)) => Replacement::Up,
            Some(Slot { state: SlotState::Up(Up { recycle: None, is_retiring: false, .. }), .. }) => {
                Replacement::Failed
            }
            _ => Replacement::Pending,
        }
    }

    /// Handles a measurement of a worker's private memory.
    pub(super) fn on_memory(&mut self, worker: WorkerKey, used: u64, now: Instant) {
        let limits = self.limits.recycling;
        if let Some(limit) = limits.hard_memory.filter(|limit| used > *limit) {
            return self.kill(worker, KillReason::MemoryExceeded { used, limit }, now);
        }
        let Some(limit) = limits.memory.filter(|limit| used > *limit) else { return };
        if self.is_current(worker)
            && let SlotState::Up(up) = self.slot(worker).state
            && up.calls() > 0
            && now.saturating_duration_since(up.up_since()) >= MIN_LIFE
        {
            self.recycle(worker, RecycleReason::Memory { used, limit });
        }
    }

    /// Schedules the replacement of a worker in service. Does nothing if it is scheduled already.
    pub(super) fn recycle(&mut self, worker: WorkerKey, reason: RecycleReason) {
        if !self.is_current(worker) {
            return;
        }
        if let Some(up) = self.slots[worker.index()].up()
            && !up.is_retiring
            && up.recycle.is_none()
        {
            up.recycle = Some(reason);
            self.due_for_recycling.push_back(worker);
            self.may_recycle = true;
        }
    }

    /// Schedules the replacement of the worker of a call that has ended, if it has run enough calls.
    pub(super) fn recycle_by_calls(&mut self, slot: u32) {
        let slot = &self.slots[slot as usize];
        if let SlotState::Up(up) = &slot.state
            && up.has_run_enough_calls()
        {
            let (worker, calls) = (slot.key(), up.calls());
            self.recycle(worker, RecycleReason::Calls(calls));
        }
    }

    /// Schedules the replacement of workers that are too old or have been idle for too long.
    pub(super) fn recycle_by_time(&mut self, now: Instant) {
        let limits = self.limits.recycling;
        if limits.age.is_none() && limits.idle.is_none() {
            return;
        }
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let (worker, SlotState::Up(up)) = (slot.key(), slot.state) else { continue };
            if up.recycle.is_some() || up.is_retiring {
                continue;
            }
            let idle_ends = limits.idle.map(|idle| match up.idle_since() {
                Some(since) => since + idle,
                // It cannot have been idle for long enough before.
                None => now + idle,
            });
            if up.limits().age_ends.is_some_and(|at| at <= now) {
                self.recycle(worker, RecycleReason::Age(now.saturating_duration_since(up.up_since())));
            } else if let Some(since) = up.idle_since().filter(|_| idle_ends.is_some_and(|at| at <= now)) {
                self.recycle(worker, RecycleReason::Idle(now.saturating_duration_since(since)));
            } else {
                [up.limits().age_ends, idle_ends].into_iter().flatten().for_each(|at| self.tick_at(at));
            }
        }
    }

    /// Sets the timers of a worker that has come up.
    pub(super) fn arm_recycling(&mut self, up: &Up, now: Instant) {
        let idle_ends = self.limits.recycling.idle.map(|idle| now + idle);
        [up.limits().age_ends, idle_ends].into_iter().flatten().for_each(|at| self.tick_at(at));
    }

    /// Launches the successors of workers that are due, but replaces at most a quarter of the workers, or one, at the same time.
    /// Waits for a restart, which replaces all workers anyway.
    pub(super) fn advance_recycling(&mut self, now: Instant) {
        if self.phase != Phase::Serving || self.restart.is_some() {
            return;
        }
        let is_launching =
            |slot: &&Slot| matches!(slot.state, SlotState::Launching) || slot.successor.is_some();
        let limit = (self.slots.len() / 4).max(1);
        let mut remaining = limit.saturating_sub(self.slots.iter().filter(is_launching).count());
        for _ in 0..self.due_for_recycling.len() {
            if remaining == 0 {
                return;
            }
            let Some(worker) = self.due_for_recycling.pop_front() else { return };
            let slot = &self.slots[worker.index()];
            let SlotState::Up(Up { recycle: Some(reason), is_retiring: false, .. }) = slot.state else {
                continue;
            };
            if slot.key() != worker {
                continue;
            }
            if let Some(retry_at) = slot.retry_at.filter(|at| *at > now) {
                self.tick_at(retry_at);
            } else if slot.successor.is_none() && self.retired.count_of(worker.slot) < MAX_REPLACED {
                let successor = self.slots[worker.index()].launch_successor();
                self.effects.push(Effect::Recycle { worker, reason });
                self.effects.push(Effect::Launch(successor));
                remaining -= 1;
            }
            // It remains due until its successor is up.
            self.due_for_recycling.push_back(worker);
        }
    }
}
