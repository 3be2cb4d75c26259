//! Snapshots of a pool, for people and monitoring.

use std::{fmt, time::SystemTime};

use snakepit_worker::WorkerId;

use crate::CallTotals;

/// A snapshot of a pool.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PoolStatus {
    /// The pool's name.
    pub name: String,
    /// The number of calls that wait for a worker.
    pub queued: usize,
    /// The number of calls that hold a worker.
    pub in_flight: usize,
    /// The workers, by slot.
    pub workers: Vec<WorkerStatus>,
    /// Counters of ended calls.
    pub calls: CallTotals,
}

/// A snapshot of one slot: its current worker, or its last one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The worker's id.
    pub id: WorkerId,
    /// The id of its process, if it is a process and is up.
    pub pid: Option<u32>,
    /// The worker's state.
    pub state: WorkerState,
    /// The address on which it serves; empty unless it is up.
    pub address: String,
    /// The time at which it became ready for calls; `None` unless it is up.
    pub started_at: Option<SystemTime>,
    /// The number of calls that ended on workers of this slot, including calls that were cancelled, timed out or lost.
    pub calls: u64,
    /// The number of workers that were launched in this slot after the first.
    pub restarts: u64,
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// It is being launched.
    Starting,
    /// It waits for a call.
    Idle,
    /// It runs at least one call.
    Busy,
    /// It gets no calls until an abandoned call has provably ended.
    Quarantined,
    /// It was asked to stop or killed, and has not exited yet.
    Stopping,
    /// It has exited. Unless the pool is stopping, a replacement starts after a backoff.
    Dead,
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Quarantined => "quarantined",
            Self::Stopping => "stopping",
            Self::Dead => "dead",
        })
    }
}
