//! Ties what a worker does for a call to the lease: when the worker is gone or taken away, the call ends too.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use snakepit_registry::{CallStage, ToolError};
use tokio::time::{Instant, Sleep, sleep};

use super::stream::Source;
use crate::driver::{Acquire, Ancestry, Lease, Signal};

/// The handler of a worker that is gone usually says so itself, and knows better whether the call was delivered. It has
/// this long.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// A lease, and what to tell the call that holds it.
#[derive(Debug)]
pub(super) struct Tether {
    lease: Lease,
    deadline: Option<Instant>,
    /// Whether the answer is a stream, which may always have a chunk ready.
    is_stream: bool,
    /// Whether the call was polled and had no answer.
    has_waited: bool,
    /// Ends with a stream.
    ancestry: Option<Box<Ancestry>>,
    /// Runs once the worker is gone.
    last_words: Option<Pin<Box<Sleep>>>,
}

impl Tether {
    pub(super) const fn new(lease: Lease, deadline: Option<Instant>) -> Self {
        Self { lease, deadline, is_stream: false, has_waited: false, ancestry: None, last_words: None }
    }

    /// Polls the call, unless its worker was taken from it; fails when the worker is gone and the call says nothing.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        call: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, ToolError>> {
        match self.lease.signal(cx) {
            None if self.is_stream && self.is_overdue() => return Poll::Ready(Err(self.exceeded())),
            None => {
                let polled = call(cx);
                // A task that is woken without an answer may have a timer of its own for the same deadline, and gives the
                // call up after this: then this is the last chance to say what happened.
                if polled.is_pending() && std::mem::replace(&mut self.has_waited, true) && self.is_overdue() {
                    return Poll::Ready(Err(self.exceeded()));
                }
                return polled.map(Ok);
            }
            Some(Signal::Cancelled) => {
                return Poll::Ready(Err(ToolError::Cancelled { tool: self.lease.tool().to_owned() }));
            }
            Some(Signal::DeadlineExceeded) => return Poll::Ready(Err(self.exceeded())),
            Some(Signal::ShuttingDown) => {
                return Poll::Ready(Err(ToolError::ShuttingDown { delivered: true }));
            }
            Some(Signal::Orphaned) => return Poll::Ready(Err(ToolError::runtime_ended())),
            Some(Signal::WorkerGone) => {}
        }
        if let Poll::Ready(answer) = call(cx) {
            return Poll::Ready(Ok(answer));
        }
        ready!(self.last_words.get_or_insert_with(|| Box::pin(sleep(LAST_WORDS))).as_mut().poll(cx));
        Poll::Ready(Err(self.lost()))
    }

    fn is_overdue(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now())
    }

    fn exceeded(&self) -> ToolError {
        ToolError::DeadlineExceeded { tool: self.lease.tool().to_owned(), stage: CallStage::Running }
    }

    fn lost(&self) -> ToolError {
        let worker = &self.lease.member().worker;
        let reason = match worker.exit() {
            Some(exit) => exit.reason.to_string(),
            None => "its driver was dropped".to_owned(),
        };
        self.lease.blame(&reason);
        // The worker's last lines may be those of other calls; only its handler knows which are this one's.
        let output_lines = Vec::new();
        ToolError::WorkerLost { worker: worker.id().to_string(), reason, delivered: true, output_lines }
    }

    /// The answer is this stream. Lets the pool take it away together with the worker.
    pub(super) fn share(&mut self, source: &Source) {
        self.is_stream = true;
        self.lease.share(source);
    }

    /// Keeps what the books know of the call's ancestors to the end of its stream.
    pub(super) fn keep(&mut self, ancestry: Option<Box<Ancestry>>) {
        self.ancestry = ancestry;
    }

    /// The call has its answer.
    pub(super) fn finish(self, took: Option<Duration>) {
        self.lease.finish(took);
    }

    /// Whether the call may come back unbegun.
    pub(super) const fn is_brief(&self) -> bool {
        self.lease.is_brief()
    }

    /// The worker gave the call back without having begun it.
    pub(super) fn give_back(self) -> Acquire {
        self.lease.give_back()
    }

    /// The call has failed. Returns the error as the caller should see it.
    pub(super) fn release(self, error: ToolError) -> ToolError {
        match error {
            ToolError::WorkerLost { delivered, ref reason, .. } => {
                if delivered {
                    self.lease.blame(reason);
                }
                self.lease.lose();
            }
            // A worker that does not take the call at all: the call is lost, but not delivered. To the caller,
            // "unavailable" would mean the pool.
            ToolError::Unavailable { reason, .. } => {
                let worker = self.lease.member().worker.id().to_string();
                self.lease.retire();
                return ToolError::WorkerLost { worker, reason, delivered: false, output_lines: Vec::new() };
            }
            // The worker, or the way to it, gave the call up, which does not prove that the tool has ended.
            ToolError::Cancelled { .. } | ToolError::DeadlineExceeded { .. } => drop(self.lease),
            _ => self.lease.finish(None),
        }
        error
    }
}
