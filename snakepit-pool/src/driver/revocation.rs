//! Ends calls against their will: those that somebody cancels, and those whose time is up.

use std::time::Duration;

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::{
    Event, Shared, State, Wakes,
    lease::{LeaseRecord, LeaseSignal},
};
use crate::scheduler::earlier;

/// How long a call that must let go of its worker may take to notice. Only one that nobody polls takes longer.
const STALLED: Duration = Duration::from_millis(50);

impl Shared {
    /// Cancels a call of this pool wherever it is, and returns once it provably runs no more.
    pub(crate) async fn cancel(&self, call: CallId) {
        self.with_state(|state, wakes| {
            if let Some(ticket) = state.waiters.queued(call) {
                wakes.push(state.waiters[ticket.waiter].cancel());
                self.apply(state, Event::Withdraw(ticket), Instant::now(), wakes);
            }
            self.signal(state, wakes, LeaseSignal::Cancelled, |lease| lease.call == call);
            self.arm(state);
        });
        loop {
            let ended = self.ended.notified();
            if !self.lock().runs(call) {
                return;
            }
            ended.await;
        }
    }

    /// Tells running calls to let go of their workers, and sees to it that they do.
    fn signal(
        &self,
        state: &mut State,
        wakes: &mut Wakes,
        why: LeaseSignal,
        which: impl Fn(&LeaseRecord) -> bool,
    ) {
        let patience = Instant::now() + STALLED;
        for (_, lease) in &mut state.leases {
            if which(lease) && !lease.must_end() {
                wakes.push(lease.send(why));
                lease.deadline = Some(patience);
                state.earliest_deadline = earlier(state.earliest_deadline, Some(patience));
            }
        }
    }

    /// Takes the workers away from calls that were told to let go of them and did not: nobody polls those. A stream whose
    /// reader has stalled would else hold its worker beyond every deadline.
    fn revoke(&self, state: &mut State, wakes: &mut Wakes, now: Instant) {
        let mut abandoned = Vec::new();
        for (_, lease) in &mut state.leases {
            if lease.must_end() && !lease.revoked && lease.deadline.is_some_and(|at| at <= now) {
                lease.revoked = true;
                lease.deadline = None;
                wakes.streams.extend(lease.chunks.take());
                abandoned.push(Event::Abandoned(lease.worker, lease.call, lease.load));
            }
        }
        for event in abandoned {
            self.apply(state, event, now, wakes);
        }
    }

    /// The supervisor's timer fired.
    pub(super) fn tick(&self, now: Instant) {
        self.with_state(|state, wakes| {
            state.armed = None;
            if state.earliest_deadline.is_some_and(|at| at <= now) {
                self.revoke(state, wakes, now);
                let overdue = |lease: &LeaseRecord| lease.deadline.is_some_and(|at| at <= now);
                self.signal(state, wakes, LeaseSignal::DeadlineExceeded, overdue);
                state.earliest_deadline = state.leases.iter().filter_map(|(_, lease)| lease.deadline).min();
            }
            self.apply(state, Event::Tick, now, wakes);
        });
    }
}

impl State {
    fn runs(&self, call: CallId) -> bool {
        self.settling.iter().any(|(_, settling)| *settling == call)
            || self.leases.iter().any(|(_, lease)| lease.call == call && !lease.revoked)
    }
}
