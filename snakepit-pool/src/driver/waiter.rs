//! A call that waits for a worker: its place in the driver's books, and the future its task polls.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::{Event, Lease, Member, Refusal, Shared};
use crate::scheduler::Ticket;

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) call: CallId,
    pub(super) deadline: Option<Instant>,
    number: u64,
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
}

impl Waiter {
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
    deadline: Option<Instant>,
}

impl Acquire {
    /// Asks for a worker, at once: a place in the queue does not depend on when the future is first polled.
    pub(crate) fn new(
        shared: Arc<Shared>,
        call: CallId,
        preferred: Option<&str>,
        deadline: Option<Instant>,
    ) -> Self {
        let preferred = preferred.and_then(|id| shared.worker_key(id));
        let ticket = shared.with_state(|state, wakes| {
            state.tickets += 1;
            let number = state.tickets;
            let waiter = state.waiters.insert(Waiter { call, deadline, number, answer: Answer::None(None) });
            let ticket = Ticket { number, waiter };
            let submit = Event::Submit { ticket, preferred, deadline };
            shared.apply(state, submit, Instant::now(), wakes);
            ticket
        });
        Self { shared, ticket: Some(ticket), deadline }
    }
}

impl Future for Acquire {
    type Output = Result<Lease, Denial>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let mut state = self.shared.lock();
        let Some(waiter) = state.waiters.get_mut(ticket.waiter) else { return Poll::Pending };
        if let Answer::None(waker) = &mut waiter.answer {
            // The timer that fires at the deadline may belong to a layer above: the time is up all the same.
            if self.deadline.is_none_or(|at| at > Instant::now()) {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
            drop(state);
            self.give_back();
            return Poll::Ready(Err(Denial::Expired));
        }
        let waiter = state.waiters.remove(ticket.waiter);
        drop(state);
        self.ticket = None;
        Poll::Ready(match waiter.answer {
            Answer::Assigned { member, key } => {
                Ok(Lease::new(Arc::clone(&self.shared), member, waiter.call, key))
            }
            Answer::Refused(denial) => Err(denial),
            Answer::None(_) => unreachable!("it was just seen to be answered"),
        })
    }
}

impl Acquire {
    fn give_back(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        self.shared.with_state(|state, wakes| {
            let event = match state.waiters.remove(ticket.waiter).answer {
                Answer::None(_) => Event::Withdraw(ticket),
                Answer::Assigned { member, key } => {
                    if state.running.remove(key).is_revoked() {
                        return;
                    }
                    Event::Released(member.key)
                }
                Answer::Refused(_) => return,
            };
            self.shared.apply(state, event, Instant::now(), wakes);
        });
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        self.give_back();
    }
}
