//! Snapshots of a pool, for people and monitoring.

use std::{fmt, time::SystemTime};

use snakepit_worker::WorkerId;

use crate::CallTotals;

/// A snapshot of a pool. Serializes with the feature `serde`.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolStatus {
    /// The pool's name.
    pub name: String,
    /// The number of calls that wait for a worker.
    pub queued: usize,
    /// The number of calls that wait for room in the full queue
    /// ([`ToolCall::with_wait_for_room`](snakepit_registry::ToolCall::with_wait_for_room)). At most 100,000; the pool rejects
    /// further calls.
    pub waiting_for_room: usize,
    /// The number of calls that hold a worker.
    pub in_flight: usize,
    /// The workers, by slot.
    pub workers: Vec<WorkerStatus>,
    /// The workers that finish their calls beside their replacements.
    pub retired_workers: Vec<WorkerStatus>,
    /// Counters of ended calls.
    pub calls: CallTotals,
}

/// A snapshot of one slot: its current worker, or its last one. Or one of its workers that finishes its calls beside its replacement.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
    /// The time at which the worker became ready for calls, or `None` if it is not up. Serialized as Unix time in seconds.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_unix_time"))]
    pub started_at: Option<SystemTime>,
    /// The number of calls that ended on workers of this slot, including calls that were cancelled, timed out or lost.
    pub calls: u64,
    /// The number of workers that were launched in this slot after the first.
    pub restarts: u64,
    /// The id of the last worker of this slot that has exited, and the reason for its end, such as ``default-0-1: it was recycled
    /// because it has run 1000 calls (`max_worker_calls`)``.
    pub last_end: Option<String>,
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum WorkerState {
    /// It is being launched.
    Starting,
    /// It waits for a call.
    Idle,
    /// It runs at least one call.
    Busy,
    /// It does not get calls until an abandoned call has provably ended.
    Quarantined,
    /// It was asked to stop or killed, and has not exited yet.
    Stopping,
    /// It has exited. Unless the pool is stopping, a replacement starts after a backoff.
    Dead,
}

#[cfg(feature = "serde")]
#[allow(clippy::ref_option, reason = "serde passes the field by reference")]
fn as_unix_time<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let seconds = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    serde::Serialize::serialize(&seconds.map(|since| since.as_secs_f64()), serializer)
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

#[cfg(all(test, feature = "serde"))]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_serializes_with_times_in_seconds_and_lowercase_states() {
        let worker = WorkerStatus {
            id: WorkerId::new("gpu-0-1"),
            pid: Some(7),
            state: WorkerState::Busy,
            address: String::new(),
            started_at: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)),
            calls: 2,
            restarts: 0,
            last_end: None,
        };
        let mut calls = CallTotals::default();
        calls.succeeded = 2;
        let status = PoolStatus {
            name: "gpu".into(),
            queued: 0,
            waiting_for_room: 3,
            in_flight: 1,
            workers: vec![worker],
            retired_workers: Vec::new(),
            calls,
        };
        let value = serde_json::to_value(&status).unwrap();
        assert_eq!(value["workers"][0]["id"], "gpu-0-1");
        assert_eq!(value["workers"][0]["state"], "busy");
        assert_eq!(value["workers"][0]["started_at"], 1.5);
        assert_eq!(value["calls"]["succeeded"], json!(2));
        assert_eq!(value["waiting_for_room"], 3);
    }
}
