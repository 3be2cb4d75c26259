//! [`CallTotals`]: a pool's call counters by outcome.

/// A pool's call counters by outcome. The sum of all fields except `retried` is the number of ended calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct CallTotals {
    /// Ended with a reply. A stream counts when it has been read to its end.
    pub succeeded: u64,
    /// The tool failed, or the call was invalid.
    pub failed: u64,
    /// Rejected because the queue was full, no worker was available, or the pool was shutting down.
    pub rejected: u64,
    /// Ended at their deadline.
    pub timed_out: u64,
    /// Dropped by their caller, cancelled by id, or aborted by a shutdown.
    pub cancelled: u64,
    /// Lost with their worker.
    pub lost: u64,
    /// Retries after a worker was lost. One call may count several times.
    pub retried: u64,
}
