//! The right of one call to one worker, for as long as the call lasts.

use std::{
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::{Acquire, Event, Member, Shared, Trouble};
use crate::{
    dispatch::Source,
    scheduler::{Load, WorkerKey},
};

/// A call that holds a worker, in the driver's books.
pub(super) struct Running {
    pub(super) call: CallId,
    pub(super) worker: WorkerKey,
    /// When its time is up; later, when its worker is taken from it.
    pub(super) deadline: Option<Instant>,
    /// Its ticket's number.
    pub(super) number: u64,
    pub(super) load: Load,
    waker: Option<Waker>,
    signal: Option<Signal>,
    /// Whether the worker was taken away: the scheduler then knows the call as abandoned already.
    pub(super) revoked: bool,
    /// The stream of a call that streams, to be taken away with the worker.
    pub(super) source: Option<Source>,
}

/// What a running call must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Its worker is gone.
    WorkerGone,
    /// Somebody cancelled it: it must let go of its worker, or else the worker is taken from it.
    Cancelled,
    /// Its time is up: it must let go of its worker, or else the worker is taken from it.
    DeadlineExceeded,
    /// The pool stops: the call is cut off.
    ShuttingDown,
    /// The runtime that started the pool has shut down.
    Orphaned,
}

impl Running {
    pub(super) const fn new(
        call: CallId,
        worker: WorkerKey,
        deadline: Option<Instant>,
        number: u64,
        load: Load,
    ) -> Self {
        Self { call, worker, deadline, number, load, waker: None, signal: None, revoked: false, source: None }
    }

    pub(super) fn signal(&mut self, signal: Signal) -> Option<Waker> {
        self.signal = Some(signal);
        self.waker.take()
    }

    /// What it was told last.
    pub(super) const fn told(&self) -> Option<Signal> {
        self.signal
    }

    /// Whether it was told to end.
    pub(super) const fn must_end(&self) -> bool {
        !matches!(self.signal, None | Some(Signal::WorkerGone))
    }

    /// Whether somebody may wait for its end other than by its answer.
    pub(super) const fn is_signalled(&self) -> bool {
        self.signal.is_some()
    }
}

/// Holds a worker for one call. Dropped before [`finish`](Self::finish), it counts as abandoned: the worker gets no calls
/// until this one has provably ended, and is replaced if that cannot be proven.
#[derive(Debug)]
pub(crate) struct Lease {
    shared: Arc<Shared>,
    member: Arc<Member>,
    call: CallId,
    tool: Arc<str>,
    load: Load,
    key: usize,
    /// What to report when the lease ends.
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Abandoned,
    /// It was reported already.
    GivenBack,
    Finished(Option<Duration>),
    Retired,
    Lost,
}

impl Lease {
    pub(super) const fn new(
        shared: Arc<Shared>,
        member: Arc<Member>,
        call: CallId,
        tool: Arc<str>,
        load: Load,
        key: usize,
    ) -> Self {
        Self { shared, member, call, tool, load, key, end: End::Abandoned }
    }

    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    pub(crate) fn tool(&self) -> &str {
        &self.tool
    }

    /// What became of the worker meanwhile; if nothing, the task is woken when something does.
    pub(crate) fn signal(&self, cx: &Context<'_>) -> Option<Signal> {
        let mut stale = None;
        self.shared.with_state(|state, _| {
            let running = state.running.get_mut(self.key)?;
            if !running.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                // Dropped after the lock is released, for it is foreign code.
                stale = running.waker.replace(cx.waker().clone());
            }
            running.signal
        })
    }

    /// Lets the stream of this call be taken away together with the worker.
    pub(crate) fn share(&self, source: &Source) {
        self.shared.with_state(|state, _| {
            if let Some(running) = state.running.get_mut(self.key) {
                running.source = Some(Arc::clone(source));
            }
        });
    }

    /// The call has ended: the worker is free. `took` is how long its tool ran, where known.
    pub(crate) fn finish(mut self, took: Option<Duration>) {
        self.end = End::Finished(took);
    }

    /// The worker refused the call because it is stopping of its own accord.
    pub(crate) fn retire(mut self) {
        self.end = End::Retired;
    }

    /// Whether the call may have been handed over ahead of its turn.
    pub(crate) const fn is_brief(&self) -> bool {
        self.load.is_brief()
    }

    /// The worker gave the call back without having begun it: it waits again, in its old place.
    pub(crate) fn give_back(mut self) -> Acquire {
        let (worker, tool, key, load) = (self.member.key, Arc::clone(&self.tool), self.key, self.load);
        self.end = End::GivenBack;
        let shared = Arc::clone(&self.shared);
        let (left, acquire) =
            shared.with_state(|state, wakes| shared.wait_again(state, key, worker, tool, load, wakes));
        // It holds a waker, and so is dropped after the lock is released.
        drop(left);
        acquire
    }

    /// The call has ended because the worker is lost, though its exit may not be known yet.
    pub(crate) fn lose(mut self) {
        self.end = End::Lost;
    }

    /// Remembers that the worker was lost while it ran this call.
    pub(crate) fn blame(&self, reason: &str) {
        let (id, tool) = (self.member.worker.id(), Arc::clone(&self.tool));
        self.shared.with_state(|state, _| {
            state.trouble = Some(Trouble::lost_call(state.trouble.take(), id, reason, tool));
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let worker = self.member.key;
        let event = match self.end {
            End::Abandoned => Event::Abandoned(worker, self.call, self.load),
            End::Finished(_) => Event::Finished(worker, self.load),
            End::Retired => Event::Retired(worker, self.load),
            End::GivenBack => return,
            End::Lost => Event::Lost(worker),
        };
        // What is left of the call holds a waker, and so is dropped after the lock is released.
        drop(self.shared.with_state(|state, wakes| {
            if let End::Finished(Some(took)) = self.end {
                state.times.record(&self.tool, took);
            }
            self.shared.end(state, self.key, event, wakes)
        }));
    }
}
