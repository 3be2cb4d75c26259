//! One call's life inside the worker: queued, running, ended; and whether somebody cancelled it.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use snakepit_registry::CallId;
use tokio::{sync::Notify, time::Instant};

use crate::sink::Sink;

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It waits for the executor.
    Queued,
    /// The executor runs it.
    Running,
    /// It ended, or was cancelled before it began: nothing of it runs any more.
    Ended,
}

/// Where an exception was raised in a call from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    /// Nowhere.
    None,
    /// In code of the adapter.
    Own,
    /// In code that the adapter called, which may not be made for that.
    Library,
}

/// What the executor, the gRPC side and the interrupter share about one call.
#[derive(Debug)]
pub(crate) struct CallState {
    pub(crate) id: CallId,
    pub(crate) deadline: Option<Instant>,
    progress: Mutex<Progress>,
    cancelled: AtomicBool,
    /// Whether the call runs on the event loop, where it can be cancelled without an exception out of the blue.
    on_loop: AtomicBool,
    /// Whether the interruption had to wait, and should be tried again soon.
    deferred: AtomicBool,
    /// Whether, and where, an exception was raised in it from outside: a [`Cut`].
    cut: AtomicU8,
    cancel_notify: Notify,
    ended_notify: Notify,
    ended: Condvar,
}

#[derive(Debug)]
struct Progress {
    stage: Stage,
    /// Whether a thread waits for the end.
    awaited: bool,
    /// Where a streaming call puts its chunks; closed by a cancellation so that the executor stops waiting for space.
    sink: Option<Sink>,
}

impl CallState {
    pub(crate) fn new(id: CallId, deadline: Option<Instant>) -> Self {
        Self {
            id,
            deadline,
            progress: Mutex::new(Progress { stage: Stage::Queued, awaited: false, sink: None }),
            cancelled: AtomicBool::new(false),
            on_loop: AtomicBool::new(false),
            deferred: AtomicBool::new(false),
            cut: AtomicU8::new(Cut::None as u8),
            cancel_notify: Notify::new(),
            ended_notify: Notify::new(),
            ended: Condvar::new(),
        }
    }

    /// Queued becomes running; `false` when the call was cancelled meanwhile and must not run.
    pub(crate) fn start(&self) -> bool {
        let mut progress = self.progress();
        let may_run = progress.stage == Stage::Queued;
        if may_run {
            progress.stage = Stage::Running;
        }
        may_run
    }

    /// Says where the chunks of this call go. `false` when the call was cancelled already.
    pub(crate) fn attach(&self, sink: Sink) -> bool {
        let mut progress = self.progress();
        // Under the lock, so that a cancellation either sees the sink or is seen here.
        let live = !self.is_cancelled();
        progress.sink = Some(sink);
        live
    }

    /// The call is over, whatever its outcome.
    pub(crate) fn end(&self) {
        let (sink, awaited) = {
            let mut progress = self.progress();
            progress.stage = Stage::Ended;
            (progress.sink.take(), progress.awaited)
        };
        drop(sink);
        // It costs a system call, even if nobody hears it.
        if awaited {
            self.ended.notify_all();
        }
        self.ended_notify.notify_waiters();
    }

    /// Marks the call as cancelled and returns the stage it was in. A queued one thereby ends.
    pub(crate) fn cancel(&self) -> Stage {
        let (stage, sink) = {
            let mut progress = self.progress();
            let stage = progress.stage;
            if stage != Stage::Ended {
                self.cancelled.store(true, Ordering::Release);
            }
            if stage == Stage::Queued {
                progress.stage = Stage::Ended;
            }
            (stage, progress.sink.clone())
        };
        if let Some(sink) = sink {
            sink.close();
        }
        self.cancel_notify.notify_waiters();
        if stage == Stage::Queued {
            self.ended.notify_all();
            self.ended_notify.notify_waiters();
        }
        stage
    }

    /// Whether somebody cancelled the call before it ended.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Whether the call's deadline has passed.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether the call runs on the event loop now.
    pub(crate) fn is_async(&self) -> bool {
        self.on_loop.load(Ordering::Acquire)
    }

    /// The call goes to the event loop, or comes back from it.
    pub(crate) fn set_async(&self, on_loop: bool) {
        self.on_loop.store(on_loop, Ordering::Release);
    }

    /// The interruption must wait, for instance for an import to end.
    pub(crate) fn defer(&self) {
        self.deferred.store(true, Ordering::Release);
    }

    /// Whether the last interruption was deferred. Asking makes it forgotten.
    pub(crate) fn take_deferred(&self) -> bool {
        self.deferred.swap(false, Ordering::AcqRel)
    }

    /// Notes that an exception is raised in the call.
    pub(crate) fn note_cut(&self, cut: Cut) {
        self.cut.fetch_max(cut as u8, Ordering::AcqRel);
    }

    /// Where an exception was raised in the call, the worst place if in several.
    pub(crate) fn cut(&self) -> Cut {
        match self.cut.load(Ordering::Acquire) {
            0 => Cut::None,
            1 => Cut::Own,
            _ => Cut::Library,
        }
    }

    /// Waits until the call is cancelled. Cancel safe.
    pub(crate) async fn cancelled(&self) {
        loop {
            let notified = self.cancel_notify.notified();
            if self.is_cancelled() {
                return;
            }
            notified.await;
        }
    }

    /// Waits until nothing of the call runs any more. Cancel safe.
    pub(crate) async fn ended(&self) {
        loop {
            let notified = self.ended_notify.notified();
            if self.stage() == Stage::Ended {
                return;
            }
            notified.await;
        }
    }

    /// Blocks until the call ended, at most for `bound`. Says whether it has.
    pub(crate) fn wait_ended(&self, bound: Duration) -> bool {
        let mut progress = self.progress();
        progress.awaited = true;
        let waited = self.ended.wait_timeout_while(progress, bound, |p| p.stage != Stage::Ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.stage == Stage::Ended
    }

    pub(crate) fn stage(&self) -> Stage {
        self.progress().stage
    }

    /// No code that could panic runs under the lock, so a poisoned one still holds sound data.
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> CallState {
        CallState::new(CallId::from_u64(1), None)
    }

    #[test]
    fn a_queued_call_that_is_cancelled_never_starts() {
        let state = state();
        assert_eq!(state.cancel(), Stage::Queued);
        assert!(!state.start());
        assert_eq!(state.stage(), Stage::Ended);
        assert!(state.wait_ended(Duration::ZERO));
    }

    #[test]
    fn a_running_call_ends_only_when_the_executor_says_so() {
        let state = state();
        assert!(state.start());
        assert_eq!(state.cancel(), Stage::Running);
        assert!(state.is_cancelled());
        assert!(!state.wait_ended(Duration::from_millis(1)));
        state.end();
        assert!(state.wait_ended(Duration::ZERO));
    }

    #[test]
    fn cancelling_what_has_ended_changes_nothing() {
        let state = state();
        state.start();
        state.end();
        assert_eq!(state.cancel(), Stage::Ended);
        assert!(!state.is_cancelled());
    }

    #[tokio::test]
    async fn waiting_for_the_end_returns_at_the_end() {
        let state = std::sync::Arc::new(state());
        state.start();
        let other = std::sync::Arc::clone(&state);
        let waiter = async move { other.ended().await };
        let ender = async { state.end() };
        tokio::join!(waiter, ender);
    }
}
