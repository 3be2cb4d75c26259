//! The input and output of the scheduler, as plain data.

use std::{fmt, time::Duration};

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::{
    Load,
    recycling::{Mebibytes, RecycleReason},
};

/// Identifies a call that waits for a worker. Later calls have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket {
    /// Increases with every submission.
    pub(crate) number: u64,
    /// The key of the driver's waiter. The scheduler does not use it.
    pub(crate) waiter: usize,
}

/// Identifies one generation of the worker in one slot.
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

/// An input of the scheduler.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// A call needs a worker.
    Submit {
        ticket: Ticket,
        preferred: Option<WorkerKey>,
        deadline: Option<Instant>,
        load: Load,
        /// The bytes that the call occupies in the queue.
        bytes: usize,
        /// The time that the call may wait for room in a full queue. `None` rejects it instead.
        wait_for_room: Option<Duration>,
        /// Whether a running call waits for this one, so that a drain includes it.
        is_nested: bool,
    },
    /// The caller withdrew a call that may still be queued.
    Withdraw(Ticket),
    /// The worker answered a call.
    Finished(WorkerKey, Load),
    /// A call was assigned to the worker, but its task ended before it sent the call.
    Released(WorkerKey, Load),
    /// The worker returned a recalled call. The call returns to its old place in the queue.
    Returned { worker: WorkerKey, ticket: Ticket, deadline: Option<Instant>, load: Load },
    /// The worker rejected a call because it is stopping, although the pool did not stop it. The pool stops it when its other
    /// calls have ended. If the worker runs several calls, its replacement starts immediately.
    Retired(WorkerKey, Load),
    /// A call ended because the worker was lost. Its exit may follow later.
    Lost(WorkerKey),
    /// The caller abandoned a call that may still run.
    Abandoned(WorkerKey, CallId, Load),
    /// The worker confirmed that an abandoned call has ended.
    CancelConfirmed(WorkerKey, CallId),
    /// The worker could not confirm that an abandoned call has ended.
    CancelFailed(WorkerKey),
    /// A launch succeeded.
    Launched {
        worker: WorkerKey,
        /// Whether the worker accepts calls ahead of their turn and returns them when they are recalled.
        queues_calls: bool,
        /// The number of calls that the worker runs concurrently. `None` for the pool's setting.
        concurrency: Option<usize>,
    },
    /// A launch failed or was aborted.
    LaunchFailed(WorkerKey),
    /// The worker exited.
    Exited(WorkerKey),
    /// The worker must not get calls until a `Resume`, because a running call blocks it and waits for a queued nested call.
    Suspend(WorkerKey),
    /// The reason for one `Suspend` has ended.
    Resume(WorkerKey),
    /// The time of [`Scheduler::next_tick`](super::Scheduler::next_tick) was reached.
    Tick,
    /// A measurement of the worker's private memory, in bytes.
    Memory { worker: WorkerKey, used: u64 },
    /// The worker must be replaced.
    Recycle(WorkerKey),
    /// All workers must be replaced, including those that an earlier restart has launched. Later restarts have higher numbers.
    Restart { number: u64 },
    /// The pool shuts down. It stops when all calls have ended, but not later than this time.
    Drain { until: Instant },
}

/// An output of the scheduler. The scheduler assumes that the driver applies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Runs the call on the worker.
    Assign { ticket: Ticket, worker: WorkerKey },
    /// Fails a call that will not run.
    Reject { ticket: Ticket, rejection: Rejection },
    /// Fails all calls that hold a worker, because the drain has ended.
    CutOff,
    /// Fails a call whose deadline passed while it was queued.
    Expire(Ticket),
    /// Launches a worker. `Launched` or `LaunchFailed` follows.
    Launch(WorkerKey),
    /// Reports that the successor of this worker is being launched, because the worker has reached a limit.
    Recycle { worker: WorkerKey, reason: RecycleReason },
    /// Aborts a launch. `LaunchFailed` follows, or `Launched` if it was too late.
    AbortLaunch(WorkerKey),
    /// Cancels an abandoned call. `CancelConfirmed` or `CancelFailed` follows.
    Cancel(WorkerKey, CallId),
    /// Recalls all calls that the worker has not begun. `Returned` follows for each call that it returns.
    Recall(WorkerKey),
    /// Kills the worker. `Exited` follows.
    Kill(WorkerKey, KillReason),
    /// Asks the worker to stop. `Exited` follows.
    Stop(WorkerKey),
    /// Reports that the restart waits for one of the replaced workers of this slot, which still run calls.
    RestartWaits { slot: u32 },
    /// Reports the end of the restart with this number, and of all earlier ones.
    RestartEnded { number: u64, outcome: RestartOutcome },
    /// Reports that all workers have exited after a shutdown.
    Stopped,
}

/// The outcome of a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartOutcome {
    /// Every slot has a new worker. Replaced workers may still finish their calls.
    Replaced,
    /// This worker did not start. The workers of the slots that were not `replaced` remain in service.
    Failed { worker: WorkerKey, replaced: usize },
    /// The pool shuts down.
    ShutDown,
}

/// The reason for the rejection of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The queue is full. `oldest` is the time that its first call has waited.
    Overloaded { queued: usize, oldest: Duration },
    /// The queued calls occupy too many bytes. `oldest` is the time that the first one has waited.
    TooManyBytes { used: usize, oldest: Duration },
    /// The pool is shutting down.
    Draining,
    /// All slots have failed several times in a row. The next launch is at `next_attempt`.
    NoWorkers { next_attempt: Option<Instant> },
}

/// The reason for killing a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// A cancelled call did not end within the grace period.
    CancelIgnored { grace: Duration },
    /// The worker could not confirm that a cancelled call has ended.
    CancelFailed,
    /// A call reported that the worker was lost.
    Lost,
    /// The worker retired and did not finish its calls in time.
    RetiredTooLong { limit: Duration },
    /// The worker's private memory exceeds the hard limit. Both in bytes.
    MemoryExceeded { used: u64, limit: u64 },
}

impl fmt::Display for KillReason {
    /// Formats the reason as the end of a sentence, after "it was killed because".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CancelIgnored { grace } => write!(f, "a cancelled call did not end within {grace:?}"),
            Self::CancelFailed => f.write_str("it could not confirm the end of a cancelled call"),
            Self::Lost => f.write_str("it lost a call"),
            Self::MemoryExceeded { used, limit } => {
                write!(f, "its private memory of {} exceeded {}", Mebibytes(*used), Mebibytes(*limit))?;
                let excess = Mebibytes(used.saturating_sub(*limit));
                write!(f, " by {excess} (`max_worker_memory_hard`)")
            }
            Self::RetiredTooLong { limit } => {
                write!(f, "it accepts no calls, and did not finish its last ones within {limit:?}")
            }
        }
    }
}
