//! Work that the driver does after it has released its lock.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Waker,
};

use snakepit_registry::CallId;

use super::{Driver, LiveWorker, lease::SharedChunks, restart::FinishedRestart, supervisor::Command};
use crate::scheduler::{KillReason, RecycleReason};

/// The maximum number of calls of a worker that one line of the log names.
const MAX_LOGGED_CALLS: usize = 10;

/// Work that runs foreign code and therefore waits until the lock is released.
#[derive(Default)]
pub(super) struct DeferredWork {
    /// The tasks to wake, usually only one.
    waker: Option<Waker>,
    /// All other work. Boxed to keep this value small, because every event creates one, and almost none needs this part.
    rare: Option<Box<RareWork>>,
}

/// The parts of [`DeferredWork`] that most events do not need.
#[derive(Default)]
pub(super) struct RareWork {
    more_wakers: Vec<Waker>,
    /// The calls to recall.
    pub(super) recalls: Vec<(Arc<LiveWorker>, CallId)>,
    /// The workers to kill.
    pub(super) kills: Vec<(Arc<LiveWorker>, KillReason)>,
    /// The workers to stop.
    pub(super) stops: Vec<Arc<LiveWorker>>,
    /// The workers whose successors are being launched, to log.
    pub(super) recycled: Vec<(Arc<LiveWorker>, RecycleReason)>,
    /// The streams to drop.
    pub(super) streams: Vec<Arc<SharedChunks>>,
    /// The replaced workers with their calls, for which a restart waits, to log.
    pub(super) awaited_workers: Vec<(Arc<LiveWorker>, Vec<CallId>)>,
    /// The restart that has ended, to report.
    pub(super) ended_restart: Option<FinishedRestart>,
    /// Whether to report that all workers have exited after a shutdown.
    pub(super) has_stopped: bool,
    /// Whether a cancelled or lost call may have ended.
    pub(super) has_ended_call: bool,
}

impl DeferredWork {
    /// Adds a task to wake.
    pub(super) fn wake(&mut self, waker: Option<Waker>) {
        match (waker, &self.waker) {
            (Some(waker), None) => self.waker = Some(waker),
            (Some(waker), Some(_)) => self.rare().more_wakers.push(waker),
            (None, _) => {}
        }
    }

    /// Returns the rare parts. Allocates them at the first call.
    pub(super) fn rare(&mut self) -> &mut RareWork {
        self.rare.get_or_insert_default()
    }

    /// Does the work. Call this without the lock.
    pub(super) fn run(self, driver: &Driver) {
        match (self.rare, self.waker) {
            (Some(rare), waker) => rare.run(waker, driver),
            (None, Some(waker)) => waker.wake(),
            (None, None) => {}
        }
    }
}

impl RareWork {
    fn run(self, waker: Option<Waker>, driver: &Driver) {
        for (live_worker, reason) in &self.kills {
            catch_panic("killing a worker", || live_worker.handle.kill(reason.to_string()));
        }
        for live_worker in &self.stops {
            catch_panic("stopping a worker", || live_worker.handle.stop(driver.config.stop_grace));
        }
        for waker in waker.into_iter().chain(self.more_wakers) {
            catch_panic("waking a task", || waker.wake());
        }
        if let Some(ended) = self.ended_restart {
            catch_panic("reporting a restart", || driver.report_restart(ended));
        }
        if self.has_stopped {
            catch_panic("reporting the end of the pool", || {
                driver.stopped.send_replace(true);
            });
            driver.send_command(Command::Rearm);
        }
        if self.has_ended_call {
            catch_panic("reporting the end of a call", || driver.call_ended.notify_waiters());
        }
        for chunks in &self.streams {
            catch_panic("dropping a stream", || {
                chunks.discard();
            });
        }
        for (live_worker, call) in &self.recalls {
            catch_panic("recalling a call", || live_worker.handle.handler().recall(*call));
        }
        for (live_worker, calls) in &self.awaited_workers {
            let (worker, count) = (live_worker.handle.id(), calls.len());
            let calls: Vec<_> = calls.iter().take(MAX_LOGGED_CALLS).map(CallId::to_string).collect();
            let calls = calls.join(" ");
            catch_panic(
                "logging",
                || tracing::warn!(%worker, count, calls, "the restart waits for calls of a worker that an earlier one has replaced"),
            );
        }
        for (live_worker, reason) in &self.recycled {
            let worker = live_worker.handle.id();
            catch_panic("logging", || tracing::info!(%worker, %reason, "recycling worker"));
        }
        for (live_worker, reason) in &self.kills {
            catch_panic(
                "logging",
                || tracing::warn!(worker = %live_worker.handle.id(), %reason, "killing worker"),
            );
        }
    }
}

/// Runs foreign code, which includes logging, because a log subscriber may panic. Logs a panic and returns `false`.
pub(super) fn catch_panic(step: &str, run: impl FnOnce()) -> bool {
    let has_completed = catch_unwind(AssertUnwindSafe(run)).is_ok();
    if !has_completed {
        let report = || tracing::error!(step, "a step of the pool panicked; the pool continues");
        // If the log subscriber panicked, it may panic here too.
        let _ = catch_unwind(AssertUnwindSafe(report));
    }
    has_completed
}
