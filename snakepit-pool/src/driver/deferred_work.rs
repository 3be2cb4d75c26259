//! Work that the driver does after it has released its lock.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Waker,
};

use snakepit_registry::CallId;

use super::{LiveWorker, lease::SharedChunks};
use crate::scheduler::KillReason;

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
    /// The killed workers, to log.
    pub(super) killed: Vec<(Arc<LiveWorker>, KillReason)>,
    /// The streams to drop.
    pub(super) streams: Vec<Arc<SharedChunks>>,
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
    pub(super) fn run(self) {
        if let Some(waker) = self.waker {
            waker.wake();
        }
        if let Some(rare) = self.rare {
            rare.run();
        }
    }
}

impl RareWork {
    fn run(self) {
        self.more_wakers.into_iter().for_each(Waker::wake);
        for chunks in &self.streams {
            catch_panic("dropping a stream", || {
                chunks.discard();
            });
        }
        for (live_worker, call) in &self.recalls {
            catch_panic("recalling a call", || live_worker.handle.handler().recall(*call));
        }
        for (live_worker, reason) in &self.killed {
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
