//! [`CallRecord`]: the outcome and the timestamps of one call, from its arrival at the host to its end.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use snakepit_reason::Reason;
use snakepit_session::SessionId;
use tokio::time::Instant;

use crate::{CallId, CallMode, Principal, ToolCall, ToolError};

/// The outcome of a call, as metrics count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallOutcome {
    /// Ended with a reply. A stream succeeds when it has been read to its end.
    Succeeded,
    /// The tool failed, or the call was invalid.
    Failed,
    /// Rejected because access was denied, the queue was full, no worker was available, a layer was overloaded, or the host was
    /// shutting down.
    Rejected,
    /// Ended at its deadline.
    TimedOut,
    /// Dropped by its caller, cancelled by id, or aborted by a shutdown.
    Cancelled,
    /// Lost with its worker.
    Lost,
}

impl CallOutcome {
    /// A word for logs and labels, such as `timed_out`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

/// The timeline of one call that has ended.
///
/// The host creates exactly one record per call: for unary and streaming calls, for worker tools and host tools, and for calls
/// that succeed, fail, or are dropped by their caller. A request that the host rejects before it becomes a call, such as a
/// malformed one, has no record.
///
/// All times are measured from the arrival of the call at the host. A stage that the call did not reach is `None`.
///
/// ```text
/// received ── queued ── assigned ── sent ── first_chunk ── total
///    host       pool     a worker is free   streams only    end
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CallRecord {
    /// The id of the call.
    pub call: CallId,
    /// The name of the tool, which may not exist.
    pub tool: Arc<str>,
    /// The session of the call.
    pub session: Option<SessionId>,
    /// The party that made the call.
    pub principal: Principal,
    /// Unary or streaming.
    pub mode: CallMode,
    /// Whether the tool of another call made this call through the host and waited for it.
    pub is_nested: bool,
    /// The time at which the call arrived at the host.
    pub received_at: SystemTime,
    /// The time until the call entered the pool, after the session lookup and the layers of the program. `None` for host tools.
    pub queued: Option<Duration>,
    /// The time until the last attempt got a worker. `None` for host tools.
    pub assigned: Option<Duration>,
    /// The time until the last attempt was handed to its worker, or until the host tool began.
    pub sent: Option<Duration>,
    /// The time until the first chunk of a stream.
    pub first_chunk: Option<Duration>,
    /// The time until the end of the call: the reply, the error, the last chunk, or the drop by the caller.
    pub total: Duration,
    /// The number of attempts that began: 0 for a rejected call, more than 1 for a retried one.
    pub attempts: u32,
    /// The id of the worker that ran the last attempt.
    pub worker: Option<Arc<str>>,
    /// The execution time of the tool, if its worker reported it.
    pub execution_time: Option<Duration>,
    /// The number of chunks that the caller received.
    pub chunks: u64,
    /// The size of the arguments and the metadata, in bytes.
    pub request_bytes: usize,
    /// The size of the value or of all chunks, with their metadata, in bytes.
    pub response_bytes: usize,
    /// The outcome.
    pub outcome: CallOutcome,
    /// The error of a call that failed. `None` for a call that its caller dropped.
    pub error: Option<ToolError>,
}

impl CallRecord {
    /// The reason of the failure; `None` for a call that succeeded.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match (&self.error, self.outcome) {
            (Some(error), _) => Some(error.kind().reason()),
            (None, CallOutcome::Succeeded) => None,
            (None, _) => Some(Reason::Cancelled),
        }
    }

    /// Creates the record of a call that begins now. Until the record [ends](Self::end), the call counts as dropped.
    #[doc(hidden)]
    #[must_use]
    pub fn begin(call: &ToolCall) -> Self {
        Self {
            call: call.id,
            tool: Arc::clone(&call.tool),
            session: call.session.clone(),
            principal: call.principal.clone(),
            mode: call.mode,
            is_nested: call.ancestors.is_some(),
            received_at: SystemTime::now(),
            queued: None,
            assigned: None,
            sent: None,
            first_chunk: None,
            total: Duration::ZERO,
            attempts: 0,
            worker: None,
            execution_time: None,
            chunks: 0,
            request_bytes: call.size(),
            response_bytes: 0,
            outcome: CallOutcome::Cancelled,
            error: None,
        }
    }

    /// Sets the outcome.
    #[doc(hidden)]
    pub fn end(&mut self, error: Option<&ToolError>) {
        self.outcome = error.map_or(CallOutcome::Succeeded, ToolError::outcome);
        self.error = error.cloned();
    }
}

/// The timestamps of a running call: an [extension](ToolCall::extensions) that all copies of the call share. A call has a timeline
/// only if its record has a reader.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct CallTimeline(Arc<Timeline>);

#[derive(Debug)]
struct Timeline {
    received: Instant,
    stamps: Mutex<Stamps>,
}

#[derive(Debug, Clone, Default)]
struct Stamps {
    queued: Option<Duration>,
    assigned: Option<Duration>,
    sent: Option<Duration>,
    attempts: u32,
    worker: Option<Arc<str>>,
}

impl CallTimeline {
    /// Attaches a new timeline to a call that has arrived now.
    pub fn attach(call: &mut ToolCall) -> Self {
        let timeline = Self(Arc::new(Timeline { received: Instant::now(), stamps: Mutex::default() }));
        call.extensions.insert(timeline.clone());
        timeline
    }

    /// The timeline of a call; `None` if its record has no reader.
    #[inline]
    #[must_use]
    pub fn of(call: &ToolCall) -> Option<&Self> {
        call.extensions.get()
    }

    /// Records that the call entered the pool.
    pub fn queued(&self) {
        let now = self.elapsed();
        self.stamps().queued.get_or_insert(now);
    }

    /// Records that an attempt got a worker.
    pub fn assigned(&self, worker: Arc<str>) {
        let now = self.elapsed();
        let mut stamps = self.stamps();
        stamps.assigned = Some(now);
        stamps.sent = None;
        stamps.worker = Some(worker);
        stamps.attempts += 1;
    }

    /// Records that the worker received the call. Repetitions have no effect until the next assignment.
    pub fn sent(&self) {
        let now = self.elapsed();
        self.stamps().sent.get_or_insert(now);
    }

    /// Records that the worker returned the call before it began.
    pub fn recalled(&self) {
        let mut stamps = self.stamps();
        stamps.attempts = stamps.attempts.saturating_sub(1);
        (stamps.assigned, stamps.sent, stamps.worker) = (None, None, None);
    }

    /// Records that a host tool began.
    pub fn host_tool_began(&self) {
        let now = self.elapsed();
        let mut stamps = self.stamps();
        stamps.sent = Some(now);
        stamps.attempts += 1;
    }

    /// The time since the call arrived.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.received.elapsed()
    }

    /// Completes a record with the timestamps.
    pub fn complete(&self, record: &mut CallRecord) {
        record.total = self.elapsed();
        let Stamps { queued, assigned, sent, attempts, worker } = self.stamps().clone();
        (record.queued, record.assigned, record.sent, record.attempts) = (queued, assigned, sent, attempts);
        // A handler other than the pool's reports the worker only in its reply.
        record.worker = worker.or(record.worker.take());
    }

    /// Ignores poisoning, because no code panics while it changes the timestamps.
    fn stamps(&self) -> MutexGuard<'_, Stamps> {
        self.0.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_recalled_call_counts_no_attempt_and_a_retried_one_has_the_last_worker() {
        let pause = || tokio::time::advance(Duration::from_secs(1));
        let mut call = ToolCall::new("t");
        let timeline = CallTimeline::attach(&mut call);
        let mut record = CallRecord::begin(&call);
        // A layer runs a copy.
        let copy = CallTimeline::of(&call.clone()).cloned().unwrap();
        copy.queued();
        pause().await;
        copy.assigned("a".into());
        copy.sent();
        copy.recalled();
        timeline.complete(&mut record);
        assert_eq!((record.attempts, record.assigned, &record.worker), (0, None, &None));
        for worker in ["b", "c"] {
            pause().await;
            copy.queued();
            copy.assigned(worker.into());
            pause().await;
            copy.sent();
            copy.sent();
        }
        timeline.complete(&mut record);
        assert_eq!((record.attempts, record.worker.as_deref()), (2, Some("c")));
        let at = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!((record.queued, record.assigned, record.sent), (at(0), at(4), at(5)));
    }

    #[test]
    fn a_record_counts_as_cancelled_until_it_ends() {
        let mut record = CallRecord::begin(&ToolCall::new("t"));
        assert_eq!((record.outcome, record.reason()), (CallOutcome::Cancelled, Some(Reason::Cancelled)));
        record.end(None);
        assert_eq!((record.outcome, record.reason()), (CallOutcome::Succeeded, None));
        record.end(Some(&ToolError::shutting_down(false)));
        assert_eq!((record.outcome, record.reason()), (CallOutcome::Rejected, Some(Reason::ShuttingDown)));
    }
}
