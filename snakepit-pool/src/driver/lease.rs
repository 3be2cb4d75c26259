//! The right of one call to run on one worker. It lasts as long as the call.

mod record;
mod stream;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use snakepit_registry::{CallId, CallStage, ChunkStream, ToolError};
use tokio::time::{Instant, Sleep, sleep};

use self::stream::LeasedStream;
pub(super) use self::{
    record::{LeaseRecord, LeaseSignal},
    stream::SharedChunks,
};
use super::{Acquire, Ancestry, Driver, Event, LastFailure, LiveWorker, State};
use crate::{
    attempt::AttemptError,
    chunks::wrap,
    scheduler::{Load, WorkerKey},
};

/// The time that a call waits for its handler's error after its worker has exited. The handler usually reports the loss
/// itself, and only the handler knows whether the call may have run.
const HANDLER_GRACE: Duration = Duration::from_millis(50);

/// Holds a worker for one call. Dropping a lease before [`finish`](Self::finish) abandons the call. The worker then
/// does not get calls until the abandoned one has provably ended. Without that proof, the pool replaces the worker.
#[derive(Debug)]
pub(crate) struct Lease {
    driver: Arc<Driver>,
    live_worker: Arc<LiveWorker>,
    call: CallId,
    tool: Arc<str>,
    load: Load,
    deadline: Option<Instant>,
    /// The key of the lease's record.
    key: usize,
    /// The event to report on drop.
    end: LeaseEnd,
    /// Whether the reply is a stream, which may always have a chunk ready.
    is_stream: bool,
    /// Whether the call was polled before and was pending.
    has_waited: bool,
    /// The record of a nested call, which lasts to the end of its stream.
    ancestry: Option<Box<Ancestry>>,
    /// The timer of [`HANDLER_GRACE`], which starts when the worker has exited.
    handler_grace: Option<Pin<Box<Sleep>>>,
}

/// The end of a lease, which becomes an event of the scheduler.
#[derive(Debug, Clone, Copy)]
enum LeaseEnd {
    Abandoned,
    /// The call was queued again, which is already reported.
    Requeued,
    /// The call ended. Has the execution time of the tool, if known.
    Finished(Option<Duration>),
    Retired,
    Lost,
}

impl Lease {
    pub(super) const fn new(
        driver: Arc<Driver>,
        live_worker: Arc<LiveWorker>,
        call: CallId,
        tool: Arc<str>,
        load: Load,
        deadline: Option<Instant>,
        key: usize,
    ) -> Self {
        Self {
            driver,
            live_worker,
            call,
            tool,
            load,
            deadline,
            key,
            end: LeaseEnd::Abandoned,
            is_stream: false,
            has_waited: false,
            ancestry: None,
            handler_grace: None,
        }
    }

    pub(crate) const fn live_worker(&self) -> &Arc<LiveWorker> {
        &self.live_worker
    }

    /// Polls the call unless its lease was revoked. Fails when the worker has exited and the call does not end within
    /// [`HANDLER_GRACE`].
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        call: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, ToolError>> {
        match self.signal(cx) {
            None if self.is_stream && self.is_overdue() => return Poll::Ready(Err(self.deadline_exceeded())),
            None => {
                let polled = call(cx);
                // A caller with its own timer for the same deadline polls once more and then drops the call, so this is
                // the last chance to report the deadline.
                if polled.is_pending() && std::mem::replace(&mut self.has_waited, true) && self.is_overdue() {
                    return Poll::Ready(Err(self.deadline_exceeded()));
                }
                return polled.map(Ok);
            }
            Some(LeaseSignal::Cancelled) => {
                return Poll::Ready(Err(ToolError::cancelled(self.tool.to_string())));
            }
            Some(LeaseSignal::DeadlineExceeded) => return Poll::Ready(Err(self.deadline_exceeded())),
            Some(LeaseSignal::ShuttingDown) => {
                return Poll::Ready(Err(ToolError::shutting_down(true)));
            }
            Some(LeaseSignal::RuntimeEnded) => {
                return Poll::Ready(Err(ToolError::runtime_ended(true)));
            }
            Some(LeaseSignal::WorkerExited) => {}
        }
        if let Poll::Ready(output) = call(cx) {
            return Poll::Ready(Ok(output));
        }
        ready!(self.handler_grace.get_or_insert_with(|| Box::pin(sleep(HANDLER_GRACE))).as_mut().poll(cx));
        Poll::Ready(Err(self.worker_lost()))
    }

    /// Returns the last signal, and registers the task to be woken by the next one.
    pub(super) fn signal(&self, cx: &Context<'_>) -> Option<LeaseSignal> {
        let mut stale_waker = None;
        self.driver.with_state(|state, _| {
            let record = state.leases.get_mut(self.key)?;
            if !record.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                // The old waker is dropped after the lock is released, because that runs foreign code.
                stale_waker = record.waker.replace(cx.waker().clone());
            }
            record.signal()
        })
    }

    fn is_overdue(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now())
    }

    fn deadline_exceeded(&self) -> ToolError {
        ToolError::deadline_exceeded(self.tool.to_string(), CallStage::Running)
    }

    fn worker_lost(&self) -> ToolError {
        let worker = &self.live_worker.handle;
        let reason = match worker.exit() {
            Some(exit) => exit.reason.to_string(),
            None => "the task that supervises it has ended".to_owned(),
        };
        self.record_loss(&reason);
        // The last output of the worker may belong to other calls. Only the handler can attribute it.
        let output_lines = Vec::new();
        ToolError::worker_lost(worker.id().to_string(), reason).with_output_lines(output_lines)
    }

    /// Keeps the record of a nested call until the lease ends.
    pub(crate) fn hold_ancestry(&mut self, ancestry: Option<Box<Ancestry>>) {
        self.ancestry = ancestry;
    }

    /// Wraps a streamed reply, so that the stream holds the lease until it ends.
    pub(crate) fn attach_to(self, stream: &mut ChunkStream) {
        wrap(stream, |inner| LeasedStream::new(inner, self));
    }

    /// Stores the chunks in the lease's record, so that the driver can drop them.
    fn share_chunks(&mut self, chunks: &Arc<SharedChunks>) {
        self.is_stream = true;
        self.driver.with_state(|state, _| {
            if let Some(record) = state.leases.get_mut(self.key) {
                record.chunks = Some(Arc::clone(chunks));
                if record.signal().is_some() {
                    chunks.signal();
                }
            }
        });
    }

    /// Frees the worker after the call has ended. `execution_time` is that of the tool, if known.
    pub(crate) fn finish(mut self, execution_time: Option<Duration>) {
        self.end = LeaseEnd::Finished(execution_time);
    }

    /// Whether the pool may have handed over the call ahead of its turn, and therefore may recall it.
    pub(crate) const fn is_brief(&self) -> bool {
        self.load.is_brief()
    }

    /// Queues a recalled call again, in its old place.
    pub(crate) fn requeue(mut self) -> Acquire {
        let (worker_key, tool, key, load) =
            (self.live_worker.key, Arc::clone(&self.tool), self.key, self.load);
        self.end = LeaseEnd::Requeued;
        let driver = Arc::clone(&self.driver);
        let (record, acquire) =
            driver.with_state(|state, deferred| driver.requeue(state, key, worker_key, tool, load, deferred));
        // The record is dropped after the lock is released, because it holds a waker.
        drop(record);
        acquire
    }

    /// Ends the lease of a call that failed.
    pub(crate) fn fail(mut self, error: ToolError) -> AttemptError {
        match error {
            ToolError::WorkerLost { may_have_run, was_sent, ref reason, .. } => {
                if may_have_run {
                    self.record_loss(reason);
                }
                self.end = LeaseEnd::Lost;
                // A call that was not sent did not cause the loss.
                let was_only_call =
                    was_sent && self.driver.with_state(|state, _| state.was_only_call(self.key));
                return AttemptError { error, was_only_call };
            }
            // The worker rejected the call because it is stopping. The caller gets a loss without a run, because
            // "unavailable" would refer to the pool.
            ToolError::Unavailable { reason, .. } => {
                self.end = LeaseEnd::Retired;
                let worker = self.live_worker.handle.id().to_string();
                let output_lines = Vec::new();
                return ToolError::worker_lost(worker, reason)
                    .with_may_have_run(false)
                    .with_output_lines(output_lines)
                    .into();
            }
            // The worker or its connection ended the call early, which does not prove that the tool has ended.
            ToolError::Cancelled { .. } | ToolError::DeadlineExceeded { .. } => {}
            _ => self.end = LeaseEnd::Finished(None),
        }
        error.with_tool(&self.tool).into()
    }

    /// Records that the worker was lost while it ran this call.
    fn record_loss(&self, reason: &str) {
        let (id, tool) = (self.live_worker.handle.id(), Arc::clone(&self.tool));
        self.driver.with_state(|state, _| {
            state.last_failure = Some(LastFailure::lost_call(state.last_failure.take(), id, reason, tool));
        });
    }
}

impl State {
    /// Whether the lost worker of this lease had no other call, not even an abandoned one.
    fn was_only_call(&mut self, key: usize) -> bool {
        let Some(lease) = self.leases.get(key) else { return false };
        if lease.had_concurrent_calls {
            return false;
        }
        let worker_key = lease.worker_key;
        self.mark_concurrent_calls(worker_key);
        self.leases.get(key).is_some_and(|lease| !lease.had_concurrent_calls)
    }

    /// Marks the leases of a lost worker if it had several calls. Must run before the first of them ends.
    pub(super) fn mark_concurrent_calls(&mut self, key: WorkerKey) {
        let abandoned = self.cancelling.iter().filter(|(cancelling, _)| *cancelling == key).count();
        let leases = self.leases.of_worker(key).count();
        if abandoned + leases > 1 {
            for lease in self.leases.iter_mut().filter(|lease| lease.worker_key == key) {
                lease.had_concurrent_calls = true;
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let worker_key = self.live_worker.key;
        let event = match self.end {
            LeaseEnd::Abandoned => Event::Abandoned(worker_key, self.call, self.load),
            LeaseEnd::Finished(_) => Event::Finished(worker_key, self.load),
            LeaseEnd::Retired => Event::Retired(worker_key, self.load),
            LeaseEnd::Requeued => return,
            LeaseEnd::Lost => Event::Lost(worker_key),
        };
        // Drops the record after the lock is released, because it holds a waker.
        drop(self.driver.with_state(|state, deferred| {
            if let LeaseEnd::Finished(Some(execution_time)) = self.end {
                state.tool_times.record(&self.tool, execution_time);
            }
            self.driver.end_lease(state, self.key, event, deferred)
        }));
        if matches!(event, Event::Retired(..)) {
            // The slot of the worker may launch its replacement.
            self.driver.update_readiness();
        }
    }
}
