//! The driver's record of a lease.

use std::{sync::Arc, task::Waker};

use snakepit_registry::{CallId, Principal};
use tokio::time::Instant;

use super::stream::SharedChunks;
use crate::scheduler::{Load, WorkerKey};

/// A call that holds a worker.
pub(in crate::driver) struct LeaseRecord {
    pub(in crate::driver) call: CallId,
    /// The principal that makes the call.
    pub(in crate::driver) principal: Principal,
    pub(in crate::driver) worker_key: WorkerKey,
    /// The call's deadline. After a signal to end, the time at which the driver revokes the lease.
    pub(in crate::driver) deadline: Option<Instant>,
    /// The number of the call's ticket.
    pub(in crate::driver) number: u64,
    pub(in crate::driver) load: Load,
    /// The tool, in pools whose workers declare limits of tools.
    pub(in crate::driver) tool: Option<Arc<str>>,
    /// Whether the call blocks its worker while it waits for the host.
    pub(in crate::driver) blocks_worker: bool,
    pub(super) waker: Option<Waker>,
    signal: Option<LeaseSignal>,
    /// Whether the driver revoked the lease. The scheduler then counts the call as abandoned already.
    pub(in crate::driver) is_revoked: bool,
    /// Whether the worker was lost with several calls, so none of them is known to have caused the loss.
    pub(in crate::driver) had_concurrent_calls: bool,
    /// The chunks of a streaming call, which are dropped when the lease is revoked.
    pub(in crate::driver) chunks: Option<Arc<SharedChunks>>,
    /// The key of an older lease of the same call, for the index of leases.
    pub(in crate::driver) next_of_call: Option<usize>,
}

/// An event that the holder of a lease must react to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::driver) enum LeaseSignal {
    /// The worker exited.
    WorkerExited,
    /// The call was cancelled by its id. The holder must drop the lease, or the driver revokes it.
    Cancelled,
    /// The deadline passed. The holder must drop the lease, or the driver revokes it.
    DeadlineExceeded,
    /// The pool's drain ended before the call did.
    ShuttingDown,
    /// The runtime that started the pool has shut down.
    RuntimeEnded,
}

impl LeaseRecord {
    pub(in crate::driver) const fn new(
        call: CallId,
        principal: Principal,
        worker_key: WorkerKey,
        deadline: Option<Instant>,
        number: u64,
        load: Load,
        tool: Option<Arc<str>>,
    ) -> Self {
        Self {
            call,
            principal,
            worker_key,
            deadline,
            number,
            load,
            tool,
            blocks_worker: false,
            waker: None,
            signal: None,
            is_revoked: false,
            had_concurrent_calls: false,
            chunks: None,
            next_of_call: None,
        }
    }

    /// Sets the signal and returns the holder's waker.
    pub(in crate::driver) fn send(&mut self, signal: LeaseSignal) -> Option<Waker> {
        self.signal = Some(signal);
        if let Some(chunks) = &self.chunks {
            chunks.signal();
        }
        self.waker.take()
    }

    /// The last signal.
    pub(in crate::driver) const fn signal(&self) -> Option<LeaseSignal> {
        self.signal
    }

    /// Whether a signal requires the call to end.
    pub(in crate::driver) const fn must_end(&self) -> bool {
        !matches!(self.signal, None | Some(LeaseSignal::WorkerExited))
    }
}
