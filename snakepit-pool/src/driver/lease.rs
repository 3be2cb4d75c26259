//! The right of one call to one worker, for as long as the call lasts.

use std::{
    sync::Arc,
    task::{Context, Waker},
};

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::{Event, Member, Shared};
use crate::scheduler::WorkerKey;

/// A call that holds a worker, in the driver's books.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) call: CallId,
    pub(super) worker: WorkerKey,
    pub(super) deadline: Option<Instant>,
    waker: Option<Waker>,
    signal: Option<Signal>,
}

/// What a running call must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Its worker is gone.
    WorkerGone,
    /// Its worker was taken from it, because somebody cancelled it.
    Cancelled,
    /// Its worker was taken from it, because its time is up.
    DeadlineExceeded,
}

impl Running {
    pub(super) const fn new(call: CallId, worker: WorkerKey, deadline: Option<Instant>) -> Self {
        Self { call, worker, deadline, waker: None, signal: None }
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Option<Waker> {
        self.signal = Some(signal);
        self.waker.take()
    }

    /// Whether the worker was taken away: the scheduler then knows the call as abandoned already.
    pub(super) const fn is_revoked(&self) -> bool {
        matches!(self.signal, Some(Signal::Cancelled | Signal::DeadlineExceeded))
    }
}

/// Holds a worker for one call. Dropped before [`finish`](Self::finish), it counts as abandoned: the worker gets no calls
/// until this one has provably ended, and is replaced if that cannot be proven.
#[derive(Debug)]
pub(crate) struct Lease {
    shared: Arc<Shared>,
    member: Arc<Member>,
    call: CallId,
    key: usize,
    /// What to report when the lease ends.
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Abandoned,
    Finished,
    Lost,
}

impl Lease {
    pub(super) const fn new(shared: Arc<Shared>, member: Arc<Member>, call: CallId, key: usize) -> Self {
        Self { shared, member, call, key, end: End::Abandoned }
    }

    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// What became of the worker meanwhile; if nothing, the task is woken when something does.
    pub(crate) fn signal(&self, cx: &Context<'_>) -> Option<Signal> {
        let mut state = self.shared.lock();
        let running = state.running.get_mut(self.key)?;
        if running.signal.is_none() {
            match &mut running.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => running.waker = Some(cx.waker().clone()),
            }
        }
        running.signal
    }

    /// The call has ended: the worker is free.
    pub(crate) fn finish(mut self) {
        self.end = End::Finished;
    }

    /// The call has ended because the worker is lost, though its exit may not be known yet.
    pub(crate) fn lose(mut self) {
        self.end = End::Lost;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let worker = self.member.key;
        let event = match self.end {
            End::Abandoned => Event::Abandoned(worker, self.call),
            End::Finished => Event::Finished(worker),
            End::Lost => Event::Lost(worker),
        };
        self.shared.with_state(|state, wakes| {
            if !state.running.remove(self.key).is_revoked() {
                self.shared.apply(state, event, Instant::now(), wakes);
            }
        });
    }
}
