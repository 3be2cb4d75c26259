//! What happens to the scheduler, and what it wants done: plain data on both sides.

use std::{fmt, time::Duration};

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::Load;

/// Names a call that asks for a worker. Later calls have larger numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket {
    /// Rises with every submission.
    pub(crate) number: u64,
    /// Where the driver keeps the one who waits; means nothing to the scheduler.
    pub(crate) waiter: usize,
}

/// Names one generation of the worker in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WorkerKey {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl WorkerKey {
    pub(crate) const fn index(self) -> usize {
        self.slot as usize
    }
}

/// Something that happened.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// A call wants a worker.
    Submit {
        ticket: Ticket,
        preferred: Option<WorkerKey>,
        deadline: Option<Instant>,
        load: Load,
        /// What it holds while it waits.
        bytes: usize,
    },
    /// A call that may still be queued is no longer wanted.
    Withdraw(Ticket),
    /// A call ended on the worker.
    Finished(WorkerKey, Load),
    /// A call was assigned to the worker but never handed to it.
    Released(WorkerKey, Load),
    /// The worker gave a call back that it was handed ahead; the call waits again where it would if it had never left.
    GivenBack { worker: WorkerKey, ticket: Ticket, deadline: Option<Instant>, load: Load },
    /// The worker refused a call because it is stopping of its own accord.
    Retired(WorkerKey, Load),
    /// A call ended because the worker is lost, though its exit may not be known yet.
    Lost(WorkerKey),
    /// Nobody waits for this call any more, and it may still run.
    Abandoned(WorkerKey, CallId, Load),
    /// An abandoned call provably runs no more.
    Settled(WorkerKey),
    /// Nobody can tell whether an abandoned call still runs.
    Unsettled(WorkerKey),
    /// A launch succeeded.
    Launched {
        worker: WorkerKey,
        /// Whether it keeps calls that it is handed ahead, and gives them back when asked.
        keeps_calls: bool,
    },
    /// A launch failed, or was called off.
    LaunchFailed(WorkerKey),
    /// The worker is gone.
    Exited(WorkerKey),
    /// The time given by [`Scheduler::wake`](super::Scheduler::wake) has come.
    Tick,
    /// No new calls; stop when all are done, or at this time.
    Drain { until: Instant },
}

/// Something to be done. The scheduler takes it for done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Let the call run on the worker.
    Assign { ticket: Ticket, worker: WorkerKey },
    /// Tell the call that it will not run.
    Reject { ticket: Ticket, refusal: Refusal },
    /// Tell the calls that hold a worker that the pool stops.
    CutOff,
    /// Tell the call that its deadline passed while it waited.
    Expire(Ticket),
    /// Start a worker; answer with `Launched` or `LaunchFailed`.
    Launch(WorkerKey),
    /// Call a launch off; answer with `LaunchFailed`, or with `Launched` when it was too late.
    AbortLaunch(WorkerKey),
    /// Cancel the call; answer with `Settled` or `Unsettled`.
    Settle(WorkerKey, CallId),
    /// Ask for the calls back that the worker has not begun; answer each one that comes with `GivenBack`.
    Recall(WorkerKey),
    /// Kill the worker; answer with `Exited`.
    Kill(WorkerKey, KillReason),
    /// Ask the worker to stop; answer with `Exited`.
    Stop(WorkerKey),
    /// Every worker is gone and none will come.
    Stopped,
}

/// Why a call will not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue is full. `oldest` is how long the call at its head has waited.
    Overloaded { queued: usize, oldest: Duration },
    /// The calls in the queue hold too many bytes for one more. `oldest` as above.
    TooMuchAtOnce { used: usize, oldest: Duration },
    /// The pool takes no more calls.
    Draining,
    /// Every worker failed to start several times in a row; the next attempt comes at this time.
    NoWorkers { next_attempt: Option<Instant> },
}

/// Why a worker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// A cancelled call did not end within the grace.
    CancelIgnored { grace: Duration },
    /// It could not tell whether a cancelled call still runs.
    CancelFailed,
    /// A call said that the worker is lost.
    Lost,
}

impl fmt::Display for KillReason {
    /// Reads as the end of a sentence, after "it was killed because".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CancelIgnored { grace } => write!(f, "a cancelled call did not end within {grace:?}"),
            Self::CancelFailed => f.write_str("it could not tell whether a cancelled call still runs"),
            Self::Lost => f.write_str("it lost a call"),
        }
    }
}
