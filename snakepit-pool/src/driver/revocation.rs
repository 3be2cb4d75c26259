//! Ends calls that are cancelled by id or reach their deadline.

use std::time::Duration;

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::{
    AcquireError, DeferredWork, Driver, Event, State,
    lease::{LeaseRecord, LeaseSignal},
};
use crate::scheduler::earlier;

/// The time within which a call must end after a signal. If a call takes longer, because it is not polled, the driver revokes its
/// lease.
const REVOKE_AFTER: Duration = Duration::from_millis(50);

impl Driver {
    /// Cancels a queued or running call, and returns once it has provably ended.
    pub(crate) async fn cancel(&self, call: CallId) {
        self.layered_attempts.cancel(call);
        self.with_state(|state, deferred| {
            if let Some(ticket) = state.waiters.queued(call) {
                deferred.wake(state.waiters[ticket.waiter].fail(AcquireError::Cancelled));
                self.apply(state, Event::Withdraw(ticket), Instant::now(), deferred);
            }
            self.send_signal(state, deferred, LeaseSignal::Cancelled, |lease| lease.call == call);
            self.arm_timer(state);
        });
        loop {
            let call_ended = self.call_ended.notified();
            if !self.lock().may_run(call) {
                return;
            }
            call_ended.await;
        }
    }

    /// Signals running calls to end, and schedules the revocation of leases whose calls do not react.
    fn send_signal(
        &self,
        state: &mut State,
        deferred: &mut DeferredWork,
        signal: LeaseSignal,
        matches: impl Fn(&LeaseRecord) -> bool,
    ) {
        let revoke_at = Instant::now() + REVOKE_AFTER;
        for lease in state.leases.iter_mut() {
            if matches(lease) && !lease.must_end() {
                deferred.wake(lease.send(signal));
                lease.deadline = Some(revoke_at);
                state.earliest_deadline = earlier(state.earliest_deadline, Some(revoke_at));
            }
        }
    }

    /// Revokes the leases of calls that did not react to a signal, because they are not polled. Otherwise a stream with
    /// a stalled reader would hold its worker beyond the deadline.
    fn revoke(&self, state: &mut State, deferred: &mut DeferredWork, now: Instant) {
        let mut abandoned = Vec::new();
        for lease in state.leases.iter_mut() {
            if lease.must_end() && !lease.is_revoked && lease.deadline.is_some_and(|at| at <= now) {
                lease.is_revoked = true;
                lease.deadline = None;
                if let Some(chunks) = lease.chunks.take() {
                    deferred.rare().streams.push(chunks);
                }
                abandoned.push(Event::Abandoned(lease.worker_key, lease.call, lease.load));
            }
        }
        for event in abandoned {
            self.apply(state, event, now, deferred);
        }
    }

    /// Handles the supervisor's timer.
    pub(super) fn on_tick(&self, now: Instant) {
        self.with_state(|state, deferred| {
            state.timer_at = None;
            if state.earliest_deadline.is_some_and(|at| at <= now) {
                self.revoke(state, deferred, now);
                let overdue = |lease: &LeaseRecord| lease.deadline.is_some_and(|at| at <= now);
                self.send_signal(state, deferred, LeaseSignal::DeadlineExceeded, overdue);
                state.earliest_deadline = state.leases.iter().filter_map(|lease| lease.deadline).min();
            }
            self.apply(state, Event::Tick, now, deferred);
        });
    }
}

impl State {
    /// Whether a call holds a worker, or was abandoned without proof that it ended.
    fn may_run(&self, call: CallId) -> bool {
        self.cancelling.iter().any(|(_, cancelling)| *cancelling == call)
            || self.leases.of_call(call).any(|lease| !lease.is_revoked)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending, iter::repeat_with, sync::Arc, time::Duration};

    use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
    use snakepit_registry::{FnTool, ToolCall, ToolError, ToolHandler};
    use snakepit_worker::testing::InProcessWorkers;

    use crate::{Pool, PoolConfig, collections::take_accesses};

    /// Cancels this many queued calls, the newest first, and returns the number of accessed entries.
    async fn accesses_to_cancel(calls: usize) -> usize {
        let tool = FnTool::typed("endless", |(): ()| pending::<Result<(), Infallible>>());
        let config = PoolConfig { workers: 1, queue_limit: calls, ..PoolConfig::default() };
        let pool = Pool::start(config, Arc::new(InProcessWorkers::new().fn_tool(tool))).unwrap();
        pool.ready().await.unwrap();
        let tool = pool.tool();
        let mut running = tool.call(ToolCall::new("endless"));
        assert!((&mut running).now_or_never().is_none());
        let calls: Vec<_> = repeat_with(|| ToolCall::new("endless")).take(calls).collect();
        let ids: Vec<_> = calls.iter().map(|call| call.id).collect();
        let mut queued: FuturesUnordered<_> = calls.into_iter().map(|call| tool.call(call)).collect();
        assert!(queued.next().now_or_never().is_none());
        assert_eq!(pool.status().queued, ids.len());

        take_accesses();
        for id in ids.iter().rev() {
            tool.cancel(*id).await.unwrap();
        }
        let accesses = take_accesses();

        assert_eq!(pool.status().queued, 0);
        let outcomes: Vec<_> = queued.collect().await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(ToolError::Cancelled { .. }))));
        pool.shutdown(Duration::ZERO).await;
        accesses
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_a_queued_call_accesses_a_bounded_number_of_entries() {
        for calls in [100, 3000] {
            let accesses = accesses_to_cancel(calls).await;
            // The binary search takes 12 steps for 3000 calls; a scan of the queue would take 1500 on average.
            assert!(accesses <= 30 * calls, "{accesses} accesses for {calls} calls");
        }
    }
}
