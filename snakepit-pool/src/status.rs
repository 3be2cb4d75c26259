//! What a pool says about itself, for people and monitors.

use std::{fmt, time::SystemTime};

use snakepit_worker::WorkerId;

use crate::CallTotals;

/// A pool at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// How many calls wait for a worker.
    pub queued: usize,
    /// How many calls hold a worker.
    pub in_flight: usize,
    /// Its workers, by slot.
    pub workers: Vec<WorkerStatus>,
    /// How its calls ended so far.
    pub calls: CallTotals,
}

/// One worker at one moment: the one that lives, or the last one of its slot.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its id.
    pub id: WorkerId,
    /// Its process, if it is one and is up.
    pub pid: Option<u32>,
    /// What it is about.
    pub state: WorkerState,
    /// Where it serves; empty while it is not up.
    pub address: String,
    /// When it was ready for calls; `None` while it is not up.
    pub started_at: Option<SystemTime>,
    /// How many calls ended on the workers of its slot: by an answer, by their deadline, cancelled, or lost with the worker.
    pub calls: u64,
    /// How many workers of its slot were launched after the first.
    pub restarts: u64,
}

/// What a worker is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// It is being launched.
    Starting,
    /// It waits for a call.
    Idle,
    /// It runs at least one call.
    Busy,
    /// It gets no calls until an abandoned one has provably ended.
    Quarantined,
    /// It was asked to stop, or killed.
    Stopping,
    /// It is gone. Its replacement, if there will be one, waits for its time.
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
