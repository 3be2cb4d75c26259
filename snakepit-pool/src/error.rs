//! Errors of a pool as a whole. Errors of calls are `ToolError`s.

use snakepit_worker::{WorkerError, WorkerId};

/// An error of starting a pool or of waiting until it is ready.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A setting is invalid.
    #[error("pool setting `{field}` {problem}")]
    InvalidConfig {
        /// The name of the field of [`PoolConfig`](crate::PoolConfig).
        field: &'static str,
        /// The problem, as the end of a sentence that begins with the field.
        problem: String,
    },
    /// The pool was started outside a tokio runtime.
    #[error("pool needs a tokio runtime; start it inside `Runtime::block_on` or an async main")]
    NoRuntime,
    /// The launch of a worker failed.
    #[error("worker `{worker}` did not start: {error}")]
    Start {
        /// The worker's id.
        worker: WorkerId,
        /// The cause. The error's message includes it.
        #[source]
        error: WorkerError,
    },
    /// The pool was shut down.
    #[error("pool is shut down")]
    ShutDown,
}
