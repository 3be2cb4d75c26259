//! The expected execution time of a call, and of all calls that a worker holds. It decides whether a worker gets calls
//! ahead of their turn.

use std::time::Duration;

/// The maximum work that a worker may hold ahead. This amount keeps the worker busy until the next call can reach it.
pub(super) const MAX_BACKLOG: Duration = Duration::from_millis(1);

/// The time that it takes to wake an idle worker. A call with a shorter expected time waits for a busy worker instead.
pub(super) const WAKE_COST: Duration = Duration::from_micros(10);

/// The maximum backlog of a busy worker to which the pool adds calls shorter than [`WAKE_COST`]. Above it, the pool wakes an idle
/// worker. About 64 calls of the shortest tools fit, so that their messages share one write and one wake-up.
pub(super) const MAX_SHORT_BACKLOG: Duration = Duration::from_micros(150);

/// The longest expected time of a brief call. Longer calls are never handed over ahead, and no call waits behind them
/// on a worker.
const MAX_BRIEF: Duration = Duration::from_micros(500);

/// The expected time for which a call occupies its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load(Option<Duration>);

impl Load {
    /// Longer than [`MAX_BRIEF`], or unknown.
    pub(crate) const LONG: Self = Self(None);

    /// The load of a call that is expected to take this long.
    pub(crate) fn of(time: Duration) -> Self {
        Self((time <= MAX_BRIEF).then_some(time))
    }

    /// The expected time; zero for a long call.
    #[cfg(test)]
    pub(super) fn time(self) -> Duration {
        self.0.unwrap_or_default()
    }

    /// Whether other calls may wait behind this one on a worker.
    pub(crate) const fn is_brief(self) -> bool {
        self.0.is_some()
    }
}

/// The calls that a worker holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backlog {
    calls: u32,
    /// The number of calls that are not brief.
    long_calls: u32,
    /// The total expected time of the brief calls.
    brief_time: Duration,
}

impl Backlog {
    /// The number of calls.
    pub(super) const fn calls(&self) -> u32 {
        self.calls
    }

    pub(super) fn add(&mut self, Load(time): Load) {
        self.calls += 1;
        match time {
            Some(time) => self.brief_time += time,
            None => self.long_calls += 1,
        }
    }

    pub(super) fn remove(&mut self, Load(time): Load) {
        self.calls -= 1;
        match time {
            Some(time) => self.brief_time -= time,
            None => self.long_calls -= 1,
        }
    }

    /// Whether a call should wait behind this backlog instead of waking an idle worker.
    pub(super) fn should_wait_behind(&self, Load(time): Load) -> bool {
        let is_short = time.is_some_and(|time| time < WAKE_COST);
        is_short && self.long_calls == 0 && self.brief_time < MAX_SHORT_BACKLOG
    }

    /// Whether a brief call may wait behind this backlog.
    pub(super) fn is_brief(&self) -> bool {
        self.long_calls == 0 && self.brief_time < MAX_BACKLOG
    }
}
