//! How much a call, and all that a worker was handed, is expected to occupy the worker: what decides whether calls may be
//! handed over ahead of their turn.

use std::time::Duration;

/// A worker that has this much to do needs nothing more to stay busy until the next call reaches it.
const HORIZON: Duration = Duration::from_millis(1);

/// An idle worker is not worth waking for a call that takes less: waking takes as long.
const WORTH_WAKING: Duration = Duration::from_micros(10);

/// How much of such calls one worker gathers before the next is woken.
const GATHERED: Duration = Duration::from_micros(100);

/// Calls that are expected to take longer are never handed over ahead, nor is anything behind them.
const LONGEST_BRIEF: Duration = Duration::from_micros(500);

/// How long a call is expected to occupy a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load(Option<Duration>);

impl Load {
    /// Long, or not known.
    pub(crate) const LONG: Self = Self(None);

    /// Expected to take this long.
    pub(crate) fn of(time: Duration) -> Self {
        Self((time <= LONGEST_BRIEF).then_some(time))
    }

    /// The time; zero when it is long.
    #[cfg(test)]
    pub(super) fn time(self) -> Duration {
        self.0.unwrap_or_default()
    }

    /// Whether it is so short that others may as well wait behind it.
    pub(crate) const fn is_brief(self) -> bool {
        self.0.is_some()
    }
}

/// What a worker was handed and has not finished.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backlog {
    calls: u32,
    /// How many of them are not brief.
    long: u32,
    brief: Duration,
}

impl Backlog {
    /// How many calls.
    pub(super) const fn calls(&self) -> u32 {
        self.calls
    }

    pub(super) fn add(&mut self, Load(time): Load) {
        self.calls += 1;
        match time {
            Some(time) => self.brief += time,
            None => self.long += 1,
        }
    }

    pub(super) fn remove(&mut self, Load(time): Load) {
        self.calls -= 1;
        match time {
            Some(time) => self.brief -= time,
            None => self.long -= 1,
        }
    }

    /// Whether a call had better be handed over behind all this than to an idle worker.
    pub(super) fn gathers(&self, Load(time): Load) -> bool {
        let is_short = time.is_some_and(|time| time < WORTH_WAKING);
        is_short && self.long == 0 && self.brief < GATHERED
    }

    /// Whether a brief call may be handed over behind all this.
    pub(super) fn is_brief(&self) -> bool {
        self.long == 0 && self.brief < HORIZON
    }
}
