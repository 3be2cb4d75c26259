//! [`CallState`]: the state of one call inside the worker, shared by the threads that handle it.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use snakepit_registry::{CallId, ToolCall};
use snakepit_wire::mux::CallOrigin;
use tokio::{sync::Notify, time::Instant};

use crate::{
    reports::{ReportRequest, Reports},
    sink::Sink,
};

/// The stage of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// In the queue of the executor.
    Queued,
    /// Running on the executor.
    Running,
    /// Ended, or cancelled before it began.
    Ended,
}

/// The place at which an exception was raised to interrupt a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Interruption {
    /// No exception was raised.
    None,
    /// In code of the adapter.
    Own,
    /// In code of a library, which may not be safe to interrupt.
    Library,
}

/// The state of one call. The executor, the gRPC service and the interrupt thread share it.
#[derive(Debug)]
pub(crate) struct CallState {
    pub(crate) id: CallId,
    pub(crate) deadline: Option<Instant>,
    tool: OnceLock<Arc<str>>,
    /// The host's id of the call.
    request_id: u64,
    /// The reports that the caller receives, if there are any.
    reports: Option<Box<Reports>>,
    lifecycle: Mutex<Lifecycle>,
    is_cancelled: AtomicBool,
    /// Whether the call runs on the event loop, which can cancel it without raising an exception at an arbitrary point.
    is_on_loop: AtomicBool,
    /// Whether the call blocks the event loop of a worker that runs several calls, while it waits for the host.
    is_blocking: AtomicBool,
    /// Whether the last interruption was deferred and must be repeated soon.
    is_deferred: AtomicBool,
    /// An [`Interruption`] as a number.
    interrupted: AtomicU8,
    cancel_notify: Notify,
    ended_notify: Notify,
    ended: Condvar,
}

#[derive(Debug)]
struct Lifecycle {
    stage: Stage,
    /// Whether a thread is blocked in `wait_ended`.
    has_waiter: bool,
    /// The sink of a streaming call. Cancellation closes it, so that the executor stops waiting for space.
    sink: Option<Sink>,
}

impl CallState {
    pub(crate) fn of(call: &ToolCall) -> Self {
        let request = call.extensions.get::<ReportRequest>();
        Self {
            id: call.id,
            deadline: call.deadline,
            tool: Arc::clone(&call.tool).into(),
            request_id: request.map_or(call.id.as_u64(), |request| request.request_id),
            reports: request.and_then(|request| request.wanted).map(|wanted| Box::new(Reports::new(wanted))),
            lifecycle: Mutex::new(Lifecycle { stage: Stage::Queued, has_waiter: false, sink: None }),
            is_cancelled: AtomicBool::new(false),
            is_on_loop: AtomicBool::new(false),
            is_blocking: AtomicBool::new(false),
            is_deferred: AtomicBool::new(false),
            interrupted: AtomicU8::new(Interruption::None as u8),
            cancel_notify: Notify::new(),
            ended_notify: Notify::new(),
            ended: Condvar::new(),
        }
    }

    /// Creates the state of a call whose tool is not known yet.
    pub(crate) fn unnamed(deadline: Option<Instant>) -> Self {
        let mut call = ToolCall::new("");
        call.deadline = deadline;
        Self { tool: OnceLock::new(), ..Self::of(&call) }
    }

    /// Sets the tool of a call that was created without one.
    pub(crate) fn set_tool(&self, tool: &str) {
        let _ = self.tool.set(tool.into());
    }

    /// Sets the host's id of the call, unless it is 0, and the reports that its caller receives.
    pub(crate) fn with_origin(mut self, origin: &CallOrigin) -> Self {
        if origin.request_id != 0 {
            self.request_id = origin.request_id;
        }
        self.reports = origin.reports.map(|wanted| Box::new(Reports::new(wanted)));
        self
    }

    /// The reports that the caller receives, if there are any.
    pub(crate) fn reports(&self) -> Option<&Reports> {
        self.reports.as_deref()
    }

    /// Ends the reports of the call. Called before its answer.
    pub(crate) fn end_reports(&self) {
        if let Some(reports) = &self.reports {
            reports.end(self.request_id);
        }
    }

    /// The host's id of the call.
    pub(crate) const fn request_id(&self) -> u64 {
        self.request_id
    }

    /// The name of the tool.
    pub(crate) fn tool(&self) -> &str {
        self.tool.get().map_or("", |tool| tool)
    }

    /// Changes the stage from queued to running. Returns `false` if the call was cancelled and must not run.
    pub(crate) fn start(&self) -> bool {
        let mut lifecycle = self.lifecycle();
        let may_run = lifecycle.stage == Stage::Queued;
        if may_run {
            lifecycle.stage = Stage::Running;
        }
        may_run
    }

    /// Attaches the sink for the call's chunks. Returns `false` if the call was cancelled before.
    pub(crate) fn attach(&self, sink: Sink) -> bool {
        let mut lifecycle = self.lifecycle();
        // Checked under the lock, so either this sees the cancellation or the cancellation sees the sink.
        let live = !self.is_cancelled();
        lifecycle.sink = Some(sink);
        live
    }

    /// Marks the call as ended.
    pub(crate) fn end(&self) {
        let (sink, has_waiter) = {
            let mut lifecycle = self.lifecycle();
            lifecycle.stage = Stage::Ended;
            (lifecycle.sink.take(), lifecycle.has_waiter)
        };
        drop(sink);
        // `notify_all` costs a system call even without waiters.
        if has_waiter {
            self.ended.notify_all();
        }
        self.ended_notify.notify_waiters();
    }

    /// Marks the call as cancelled and returns its previous stage. A queued call ends.
    pub(crate) fn cancel(&self) -> Stage {
        let (stage, sink) = {
            let mut lifecycle = self.lifecycle();
            let stage = lifecycle.stage;
            if stage != Stage::Ended {
                self.is_cancelled.store(true, Ordering::Release);
            }
            if stage == Stage::Queued {
                lifecycle.stage = Stage::Ended;
            }
            (stage, lifecycle.sink.clone())
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

    /// Returns whether the call was cancelled before it ended.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    /// Returns whether the call's deadline has passed.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Returns whether the call runs on the event loop.
    pub(crate) fn is_async(&self) -> bool {
        self.is_on_loop.load(Ordering::Acquire)
    }

    /// Records that the call enters or leaves the event loop.
    pub(crate) fn set_async(&self, is_on_loop: bool) {
        self.is_on_loop.store(is_on_loop, Ordering::Release);
    }

    /// Returns whether the call blocks the event loop while it waits for the host.
    pub(crate) fn is_blocking(&self) -> bool {
        self.is_blocking.load(Ordering::Acquire)
    }

    /// Records that the call begins or ends to block the event loop.
    pub(crate) fn set_blocking(&self, is_blocking: bool) {
        self.is_blocking.store(is_blocking, Ordering::Release);
    }

    /// Records that the interruption had to be deferred, for example until an import ends.
    pub(crate) fn defer(&self) {
        self.is_deferred.store(true, Ordering::Release);
    }

    /// Returns whether the last interruption was deferred, and resets it.
    pub(crate) fn take_deferred(&self) -> bool {
        self.is_deferred.swap(false, Ordering::AcqRel)
    }

    /// Records that an exception was raised in the call.
    pub(crate) fn note_interruption(&self, place: Interruption) {
        self.interrupted.fetch_max(place as u8, Ordering::AcqRel);
    }

    /// Returns where exceptions were raised in the call. Code of a library takes precedence.
    pub(crate) fn interruption(&self) -> Interruption {
        match self.interrupted.load(Ordering::Acquire) {
            0 => Interruption::None,
            1 => Interruption::Own,
            _ => Interruption::Library,
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

    /// Waits until the call has ended. Cancel safe.
    pub(crate) async fn ended(&self) {
        loop {
            let notified = self.ended_notify.notified();
            if self.stage() == Stage::Ended {
                return;
            }
            notified.await;
        }
    }

    /// Blocks until the call has ended, for at most `bound`. Returns whether it has.
    pub(crate) fn wait_ended(&self, bound: Duration) -> bool {
        let mut lifecycle = self.lifecycle();
        lifecycle.has_waiter = true;
        let waited =
            self.ended.wait_timeout_while(lifecycle, bound, |lifecycle| lifecycle.stage != Stage::Ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.stage == Stage::Ended
    }

    pub(crate) fn stage(&self) -> Stage {
        self.lifecycle().stage
    }

    /// Code under this lock does not panic, so a poisoned lock still holds consistent data.
    fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> CallState {
        CallState::of(&ToolCall::new("tool"))
    }

    #[test]
    fn a_cancelled_queued_call_never_starts() {
        let state = state();
        assert_eq!(state.cancel(), Stage::Queued);
        assert!(!state.start());
        assert_eq!(state.stage(), Stage::Ended);
        assert!(state.wait_ended(Duration::ZERO));
    }

    #[test]
    fn a_cancelled_running_call_ends_when_the_executor_ends_it() {
        let state = state();
        assert!(state.start());
        assert_eq!(state.cancel(), Stage::Running);
        assert!(state.is_cancelled());
        assert!(!state.wait_ended(Duration::from_millis(1)));
        state.end();
        assert!(state.wait_ended(Duration::ZERO));
    }

    #[test]
    fn cancelling_an_ended_call_changes_nothing() {
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
