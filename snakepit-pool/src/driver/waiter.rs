//! A call that waits for a worker: its place in the driver's books, and the future its task polls.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use snakepit_registry::{CallId, ToolCall};
use tokio::time::Instant;

use super::{Event, Lease, Member, Refusal, Shared};
use crate::scheduler::{Load, Ticket};

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) call: CallId,
    pub(super) deadline: Option<Instant>,
    pub(super) load: Load,
    pub(super) number: u64,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    None(Option<Waker>),
    Assigned { member: Arc<Member>, key: usize },
    Refused(Denial),
}

/// Why a call got no worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    Refused(Refusal),
    Expired,
    Cancelled,
    /// It would wait for itself.
    Deadlock,
    /// The runtime that started the pool has shut down.
    Orphaned,
}

impl Waiter {
    pub(super) const fn new(call: CallId, deadline: Option<Instant>, load: Load, number: u64) -> Self {
        Self { call, deadline, load, number, answer: Answer::None(None) }
    }

    pub(super) const fn is_waiting(&self) -> bool {
        matches!(self.answer, Answer::None(_))
    }

    pub(super) const fn ticket(&self, waiter: usize) -> Ticket {
        Ticket { number: self.number, waiter }
    }

    pub(super) fn assign(&mut self, member: Arc<Member>, key: usize) -> Option<Waker> {
        self.answer(Answer::Assigned { member, key })
    }

    pub(super) fn reject(&mut self, refusal: Refusal) -> Option<Waker> {
        self.answer(Answer::Refused(Denial::Refused(refusal)))
    }

    pub(super) fn expire(&mut self) -> Option<Waker> {
        self.answer(Answer::Refused(Denial::Expired))
    }

    pub(super) fn cancel(&mut self) -> Option<Waker> {
        self.answer(Answer::Refused(Denial::Cancelled))
    }

    pub(super) fn deadlock(&mut self) -> Option<Waker> {
        self.answer(Answer::Refused(Denial::Deadlock))
    }

    pub(super) fn orphan(&mut self) -> Option<Waker> {
        self.answer(Answer::Refused(Denial::Orphaned))
    }

    fn answer(&mut self, answer: Answer) -> Option<Waker> {
        match std::mem::replace(&mut self.answer, answer) {
            Answer::None(waker) => waker,
            Answer::Assigned { .. } | Answer::Refused(_) => None,
        }
    }
}

/// Waits for a worker. Dropping it gives the place in the queue, or the worker, to the next.
#[derive(Debug)]
pub(crate) struct Acquire {
    shared: Arc<Shared>,
    /// `None` once the answer was taken.
    ticket: Option<Ticket>,
    tool: Arc<str>,
    deadline: Option<Instant>,
}

impl Acquire {
    /// Asks for a worker, at once: a place in the queue does not depend on when the future is first polled.
    pub(crate) fn new(shared: Arc<Shared>, call: &ToolCall) -> Self {
        let preferred = call.preferred_worker.as_deref().and_then(|id| shared.worker_key(id));
        let (tool, deadline) = (Arc::clone(&call.tool), call.deadline);
        let bytes = call.size();
        let ticket = shared.with_state(|state, wakes| {
            state.tickets += 1;
            let number = state.tickets;
            // Behind a call that waits for it, it would never be begun.
            let load = if call.ancestors.is_some() { Load::LONG } else { state.times.load(call, bytes) };
            let waiter = Waiter::new(call.id, deadline, load, number);
            let ticket = Ticket { number, waiter: state.waiters.insert(waiter) };
            if state.is_orphaned {
                // Nobody waits for it yet, so there is no waker.
                state.waiters[ticket.waiter].orphan();
                return ticket;
            }
            if call.ancestors.is_some() {
                // The search for deadlocks looks it up.
                state.waiters.index(ticket.waiter);
            }
            let submit = Event::Submit { ticket, preferred, deadline, load, bytes };
            shared.apply(state, submit, Instant::now(), wakes);
            state.waiters.index(ticket.waiter);
            ticket
        });
        Self { shared, ticket: Some(ticket), tool, deadline }
    }
}

impl Acquire {
    /// Waits with a ticket that was handed in already.
    pub(super) const fn again(
        shared: Arc<Shared>,
        ticket: Ticket,
        tool: Arc<str>,
        deadline: Option<Instant>,
    ) -> Self {
        Self { shared, ticket: Some(ticket), tool, deadline }
    }
}

impl Future for Acquire {
    type Output = Result<Lease, Denial>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let (mut stale, mut is_late) = (None, false);
        let answered = self.shared.with_state(|state, _| {
            if let Answer::None(waker) = &mut state.waiters.get_mut(ticket.waiter)?.answer {
                // Whoever polled at the deadline may have a timer of its own: the time is up all the same.
                is_late = self.deadline.is_some_and(|at| at <= Instant::now());
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    // Dropped after the lock is released, for it is foreign code.
                    stale = waker.replace(cx.waker().clone());
                }
                return None;
            }
            Some(state.waiters.remove(ticket.waiter))
        });
        let Some(waiter) = answered else {
            if is_late {
                self.give_back();
                return Poll::Ready(Err(Denial::Expired));
            }
            return Poll::Pending;
        };
        self.ticket = None;
        Poll::Ready(match waiter.answer {
            Answer::Assigned { member, key } => {
                let (shared, tool) = (Arc::clone(&self.shared), Arc::clone(&self.tool));
                Ok(Lease::new(shared, member, waiter.call, tool, waiter.load, waiter.deadline, key))
            }
            Answer::Refused(denial) => Err(denial),
            // It was just seen to be answered.
            Answer::None(_) => Err(Denial::Cancelled),
        })
    }
}

impl Acquire {
    fn give_back(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        // What is left of it holds a waker, and so is dropped after the lock is released.
        let _left = self.shared.with_state(|state, wakes| {
            let waiter = state.waiters.remove(ticket.waiter);
            let ended = match &waiter.answer {
                Answer::None(_) => {
                    self.shared.apply(state, Event::Withdraw(ticket), Instant::now(), wakes);
                    None
                }
                Answer::Assigned { member, key } => {
                    Some(self.shared.end(state, *key, Event::Released(member.key, waiter.load), wakes))
                }
                Answer::Refused(_) => None,
            };
            (waiter, ended)
        });
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        self.give_back();
    }
}
