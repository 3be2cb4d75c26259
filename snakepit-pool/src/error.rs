//! Errors of a pool as a whole. Errors of calls are `ToolError`s.

use snakepit_worker::{WorkerError, WorkerId, settings::Setting};

/// An error of starting a pool or of waiting until it is ready.
///
/// The message omits the cause, which is the [`source`](std::error::Error::source).
/// [`error_chain`](snakepit_worker::error_chain) prints both.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A setting is invalid.
    #[error("pool setting {setting} {problem}")]
    #[non_exhaustive]
    InvalidConfig {
        /// The setting. Its [`method`](Setting::method) is the name of the field of [`PoolConfig`](crate::PoolConfig).
        setting: Setting,
        /// The problem, as the end of a sentence that begins with the setting.
        problem: String,
    },
    /// The pool was started outside a tokio runtime.
    #[error("pool needs a tokio runtime; start it inside `Runtime::block_on` or an async main")]
    NoRuntime,
    /// The launch of a worker failed.
    #[error("worker `{worker}` did not start{}", after_replaced(*replaced))]
    #[non_exhaustive]
    Start {
        /// The worker's id.
        worker: WorkerId,
        /// The number of workers that a restart had replaced before. They stay in service, and run the new code. 0 if the launch was
        /// not part of a restart.
        replaced: usize,
        /// The cause.
        #[source]
        error: WorkerError,
    },
    /// The pool has no worker with this id in service.
    #[error("pool has no worker `{id}` in service")]
    #[non_exhaustive]
    NoSuchWorker {
        /// The id.
        id: String,
    },
    /// The pool was shut down.
    #[error("pool is shut down")]
    ShutDown,
}

/// The end of the message of a failed launch.
fn after_replaced(replaced: usize) -> String {
    match replaced {
        0 => String::new(),
        1 => ", after the restart had replaced 1 worker".to_owned(),
        _ => format!(", after the restart had replaced {replaced} workers"),
    }
}

/// Constructors for crates that test how they handle these errors.
impl PoolError {
    /// Creates the error of an invalid setting. `problem` is the end of a sentence that begins with the setting.
    pub fn invalid_config(setting: Setting, problem: impl Into<String>) -> Self {
        Self::InvalidConfig { setting, problem: problem.into() }
    }

    /// Creates the error of a failed launch.
    #[must_use]
    pub const fn start(worker: WorkerId, error: WorkerError) -> Self {
        Self::Start { worker, replaced: 0, error }
    }
}
