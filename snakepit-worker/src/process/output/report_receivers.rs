//! [`ReportReceivers`]: the calls of one worker whose callers receive reports.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use snakepit_registry::{CallId, CallReports};
use tokio::{sync::Notify, time::Instant};

/// How long a caller that receives reports waits for the last ones of an ended call.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// The time between the end of this wait and the deadline of the call, so that the answer arrives in time.
const DEADLINE_MARGIN: Duration = Duration::from_millis(20);

/// The bits of the two streams.
const ALL_STREAMS: u8 = 0b11;

/// The calls by id. Clones share them.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct ReportReceivers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    calls: HashMap<u64, Arc<Receiver>>,
    /// The streams that have ended, as bits.
    ended_streams: u8,
}

#[derive(Debug)]
struct Receiver {
    reports: CallReports,
    /// The streams in which the call has ended, as bits.
    ended_streams: AtomicU8,
    ended: Notify,
}

impl Receiver {
    fn end(&self, streams: u8) {
        self.ended_streams.fetch_or(streams, Ordering::AcqRel);
        self.ended.notify_one();
    }
}

/// Passes reports to the caller of one call until it is dropped.
#[derive(Debug)]
pub(in super::super) struct ReceiverGuard {
    calls: ReportReceivers,
    id: CallId,
    call: Arc<Receiver>,
    deadline: Option<Instant>,
}

impl ReportReceivers {
    /// Passes the reports of a call to its caller. `deadline` is that of the call.
    pub(in super::super) fn add(
        &self,
        id: CallId,
        reports: CallReports,
        deadline: Option<Instant>,
    ) -> ReceiverGuard {
        let mut state = self.lock();
        let ended_streams = AtomicU8::new(state.ended_streams);
        let call = Arc::new(Receiver { reports, ended_streams, ended: Notify::new() });
        state.calls.insert(id.as_u64(), Arc::clone(&call));
        drop(state);
        ReceiverGuard { calls: self.clone(), id, call, deadline }
    }

    /// The reports of a call, if its caller receives any.
    pub(super) fn reports_of(&self, request_id: u64) -> Option<CallReports> {
        self.lock().calls.get(&request_id).map(|call| call.reports.clone())
    }

    /// Records that no further reports of a call follow in a stream.
    pub(super) fn end_call(&self, request_id: u64, stream: u8) {
        // Without the lock, because a waker can run code of the program.
        let call = self.lock().calls.get(&request_id).cloned();
        call.into_iter().for_each(|call| call.end(stream));
    }

    /// Records that a stream has ended, because the worker has exited.
    pub(super) fn end_stream(&self, stream: u8) {
        let mut state = self.lock();
        state.ended_streams |= stream;
        let calls: Vec<_> = state.calls.values().cloned().collect();
        drop(state);
        calls.into_iter().for_each(|call| call.end(stream));
    }

    /// No code under this lock panics in the middle of a change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReceiverGuard {
    /// Waits until the caller has received all reports of the ended call, for a second at most. Ends before the deadline of the call,
    /// which would otherwise replace an answer that has arrived. Cancel safe.
    pub(in super::super) async fn drained(&self) {
        let drained = async {
            while self.call.ended_streams.load(Ordering::Acquire) != ALL_STREAMS {
                self.call.ended.notified().await;
            }
        };
        let end = Instant::now() + END_TIMEOUT;
        // If the deadline leaves no time to wait, only checks whether the reports have ended.
        let before_deadline =
            |deadline: Instant| deadline.checked_sub(DEADLINE_MARGIN).unwrap_or_else(Instant::now);
        let end = self.deadline.map(before_deadline).map_or(end, |deadline| deadline.min(end));
        let _ = tokio::time::timeout_at(end, drained).await;
    }
}

impl Drop for ReceiverGuard {
    fn drop(&mut self) {
        let mut state = self.calls.lock();
        // A later attempt of the call may have replaced the entry.
        if state.calls.get(&self.id.as_u64()).is_some_and(|call| Arc::ptr_eq(call, &self.call)) {
            state.calls.remove(&self.id.as_u64());
        }
    }
}

#[cfg(test)]
mod tests {
    use snakepit_registry::ToolCall;

    use super::*;

    fn reports() -> CallReports {
        CallReports::of(&ToolCall::new("t").on_log(|_| {})).unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_waits_for_the_end_in_both_streams_or_for_the_end_of_the_worker() {
        let calls = ReportReceivers::default();
        let (id, start) = (CallId::from_u64(1), Instant::now());
        let guard = calls.add(id, reports(), None);
        assert!(calls.reports_of(1).is_some_and(|reports| reports.wants_logs()));
        calls.end_call(1, 1);
        let both = async { tokio::join!(guard.drained(), async { calls.end_call(1, 2) }) };
        both.await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        drop(guard);
        assert!(calls.reports_of(1).is_none());

        let guard = calls.add(id, reports(), None);
        guard.drained().await;
        assert_eq!(start.elapsed(), END_TIMEOUT);
        calls.end_stream(1);
        calls.end_stream(2);
        guard.drained().await;
        calls.add(CallId::from_u64(2), reports(), None).drained().await;
        assert_eq!(start.elapsed(), END_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_does_not_wait_for_reports_beyond_the_deadline_of_its_call() {
        let (calls, start) = (ReportReceivers::default(), Instant::now());
        let deadline = start + END_TIMEOUT / 2;
        let guard = calls.add(CallId::from_u64(1), reports(), Some(deadline));
        guard.drained().await;
        assert_eq!(Instant::now(), deadline - DEADLINE_MARGIN);
        guard.drained().await;
        assert_eq!(Instant::now(), deadline - DEADLINE_MARGIN, "the deadline is too close");
        let later = calls.add(CallId::from_u64(2), reports(), Some(start + END_TIMEOUT * 5));
        later.drained().await;
        assert_eq!(Instant::now(), deadline - DEADLINE_MARGIN + END_TIMEOUT);
    }
}
