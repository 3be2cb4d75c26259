//! What can go wrong with a pool as a whole. What goes wrong with a call is a `ToolError`.

use snakepit_worker::{WorkerError, WorkerId};

/// Why a pool does not start, or is not ready.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A setting cannot work.
    #[error("pool setting `{field}` {problem}")]
    InvalidConfig {
        /// The field of [`PoolConfig`](crate::PoolConfig).
        field: &'static str,
        /// What is wrong with it, as the end of a sentence.
        problem: String,
    },
    /// The pool was started outside a tokio runtime.
    #[error("pool needs a tokio runtime; start it inside `Runtime::block_on` or an async main")]
    NoRuntime,
    /// A worker did not start.
    #[error("worker `{worker}` did not start: {error}")]
    Start {
        /// The worker's id.
        worker: WorkerId,
        /// Why not. Part of the message, and so no source besides: whoever prints both would say it twice.
        error: WorkerError,
    },
    /// The pool was shut down.
    #[error("pool is shut down")]
    ShutDown,
}
