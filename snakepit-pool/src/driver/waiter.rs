//! A call that waits for a worker: the driver's record of it, and the future that its task polls.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use snakepit_registry::{CallId, Principal, ToolCall};
use tokio::time::Instant;

use super::{Driver, Event, Lease, LiveWorker, Rejection};
use crate::scheduler::{Load, Ticket, WorkerKey};

/// The driver's record of a call that waits for a worker.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) call: CallId,
    pub(super) deadline: Option<Instant>,
    pub(super) load: Load,
    /// The number of the call's ticket.
    pub(super) number: u64,
    /// The principal that makes the call. When the call gets a lease, the principal moves to the lease's record.
    pub(super) principal: Principal,
    /// The tool, in pools whose workers declare limits of tools.
    pub(super) tool: Option<Arc<str>>,
    state: WaiterState,
}

#[derive(Debug)]
enum WaiterState {
    Waiting(Option<Waker>),
    Assigned { live_worker: Arc<LiveWorker>, key: usize },
    Failed(AcquireError),
}

/// The error of a call that did not get a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcquireError {
    Rejected(Rejection),
    Expired,
    Cancelled,
    /// The call would wait for itself.
    Deadlock,
    /// The runtime that started the pool has shut down.
    RuntimeEnded,
}

impl Waiter {
    pub(super) const fn new(
        call: CallId,
        principal: Principal,
        deadline: Option<Instant>,
        load: Load,
        number: u64,
        tool: Option<Arc<str>>,
    ) -> Self {
        Self { call, deadline, load, number, principal, tool, state: WaiterState::Waiting(None) }
    }

    pub(super) const fn is_waiting(&self) -> bool {
        matches!(self.state, WaiterState::Waiting(_))
    }

    pub(super) const fn ticket(&self, waiter: usize) -> Ticket {
        Ticket { number: self.number, waiter }
    }

    pub(super) fn assign(&mut self, live_worker: Arc<LiveWorker>, key: usize) -> Option<Waker> {
        self.resolve(WaiterState::Assigned { live_worker, key })
    }

    pub(super) fn fail(&mut self, error: AcquireError) -> Option<Waker> {
        self.resolve(WaiterState::Failed(error))
    }

    /// Ends the wait and returns the task's waker. Has no effect if the wait has already ended.
    fn resolve(&mut self, state: WaiterState) -> Option<Waker> {
        match std::mem::replace(&mut self.state, state) {
            WaiterState::Waiting(waker) => waker,
            WaiterState::Assigned { .. } | WaiterState::Failed(_) => None,
        }
    }
}

/// A future that resolves to a lease. Dropping it removes the call from the queue, or frees its worker.
#[derive(Debug)]
pub(crate) struct Acquire {
    driver: Arc<Driver>,
    /// `None` after the future has resolved.
    ticket: Option<Ticket>,
    tool: Arc<str>,
    deadline: Option<Instant>,
    /// The workers that do not get calls while this one waits, because they could not begin it.
    suspended: Vec<WorkerKey>,
}

impl Acquire {
    /// Queues the call before the future is polled, so the order of the queue is the order of submission.
    pub(crate) fn new(driver: Arc<Driver>, call: &ToolCall) -> Self {
        let preferred = call.preferred_worker.as_deref().and_then(|id| driver.worker_key(id));
        let (tool, deadline) = (Arc::clone(&call.tool), call.deadline);
        let (bytes, wait_for_room) = (call.size(), call.remaining_wait_for_room());
        let principal = call.principal.clone();
        let mut suspended = Vec::new();
        let ticket = driver.with_state(|state, deferred| {
            state.last_ticket += 1;
            let number = state.last_ticket;
            // A nested call is never brief, because it must not be handed to the worker of a call that waits for it.
            let load = if call.ancestors.is_some() { Load::LONG } else { state.tool_times.load(call, bytes) };
            let recorded_tool = state.has_call_limits.then(|| Arc::clone(&tool));
            let waiter = Waiter::new(call.id, principal, deadline, load, number, recorded_tool);
            let ticket = Ticket { number, waiter: state.waiters.insert(waiter) };
            if state.runtime_has_ended {
                // The future was not polled yet, so there is no waker.
                state.waiters[ticket.waiter].fail(AcquireError::RuntimeEnded);
                return ticket;
            }
            if call.ancestors.is_some() {
                // The search for deadlocks needs both.
                state.waiters.index(ticket.waiter);
                state.leases.index();
            }
            if let Some(ancestors) = call.ancestors.as_deref().filter(|ancestors| !ancestors.is_empty()) {
                suspended = state.workers_blocked_for(&tool, ancestors);
                for worker in &suspended {
                    driver.apply(state, Event::Suspend(*worker), Instant::now(), deferred);
                }
            }
            let is_nested = call.ancestors.as_deref().is_some_and(|ancestors| state.runs_any(ancestors));
            let submit = Event::Submit { ticket, preferred, deadline, load, bytes, wait_for_room, is_nested };
            driver.apply(state, submit, Instant::now(), deferred);
            state.waiters.index(ticket.waiter);
            ticket
        });
        Self { driver, ticket: Some(ticket), tool, deadline, suspended }
    }
}

impl Acquire {
    /// Waits with a ticket that is queued already.
    pub(super) const fn resume(
        driver: Arc<Driver>,
        ticket: Ticket,
        tool: Arc<str>,
        deadline: Option<Instant>,
    ) -> Self {
        Self { driver, ticket: Some(ticket), tool, deadline, suspended: Vec::new() }
    }

    /// Lets the suspended workers get calls again.
    fn end_suspensions(&mut self) {
        if self.suspended.is_empty() {
            return;
        }
        let suspended = std::mem::take(&mut self.suspended);
        self.driver.with_state(|state, deferred| {
            for worker in suspended {
                self.driver.apply(state, Event::Resume(worker), Instant::now(), deferred);
            }
        });
    }
}

impl Future for Acquire {
    type Output = Result<Lease, AcquireError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let (mut stale_waker, mut is_late) = (None, false);
        let resolved = self.driver.with_state(|state, _| {
            if let WaiterState::Waiting(waker) = &mut state.waiters.get_mut(ticket.waiter)?.state {
                // The task may have its own timer for the deadline, which may fire before the driver's.
                is_late = self.deadline.is_some_and(|at| at <= Instant::now());
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    // The old waker is dropped after the lock is released, because that runs foreign code.
                    stale_waker = waker.replace(cx.waker().clone());
                }
                return None;
            }
            Some(state.waiters.remove(ticket.waiter))
        });
        let Some(waiter) = resolved else {
            if is_late {
                self.release();
                return Poll::Ready(Err(AcquireError::Expired));
            }
            return Poll::Pending;
        };
        self.ticket = None;
        self.end_suspensions();
        Poll::Ready(match waiter.state {
            WaiterState::Assigned { live_worker, key } => {
                let (driver, tool) = (Arc::clone(&self.driver), Arc::clone(&self.tool));
                Ok(Lease::new(driver, live_worker, waiter.call, tool, waiter.load, waiter.deadline, key))
            }
            WaiterState::Failed(error) => Err(error),
            // Unreachable, because only resolved waiters are removed above.
            WaiterState::Waiting(_) => Err(AcquireError::Cancelled),
        })
    }
}

impl Acquire {
    /// Removes the call from the queue, or frees its worker.
    fn release(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        // Both records are dropped after the lock is released, because they may hold a waker.
        let _removed = self.driver.with_state(|state, deferred| {
            let waiter = state.waiters.remove(ticket.waiter);
            let lease_record = match &waiter.state {
                WaiterState::Waiting(_) => {
                    self.driver.apply(state, Event::Withdraw(ticket), Instant::now(), deferred);
                    None
                }
                WaiterState::Assigned { live_worker, key } => Some(self.driver.end_lease(
                    state,
                    *key,
                    Event::Released(live_worker.key, waiter.load),
                    deferred,
                )),
                WaiterState::Failed(_) => None,
            };
            (waiter, lease_record)
        });
        self.end_suspensions();
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        self.release();
    }
}
