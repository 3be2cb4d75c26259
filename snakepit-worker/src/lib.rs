//! One worker: how it comes to be, how calls reach it, how it ends.
//!
//! ```text
//!            snakepit-pool
//!                 |
//!        trait WorkerLauncher ──launch──> Worker { handler: dyn ToolHandler, stop, kill, exited }
//!                 |
//!          ProcessLauncher                 the default: a child process that serves gRPC
//! ```
//!
//! [`Worker`] is what the pool holds; its other end, [`WorkerDriver`], belongs to the launcher. Nothing here decides
//! which worker runs which call, nor when one is replaced: that is the pool's.
#![warn(missing_docs)]

#[cfg(feature = "test-util")]
pub mod contract;
#[cfg(feature = "descendants")]
pub mod descendants;
mod error;
pub mod escaping;
#[cfg(feature = "test-util")]
pub mod fake;
mod id;
mod launcher;
#[cfg(feature = "process")]
pub mod process;
mod worker;
mod worker_exit;

pub use error::WorkerError;
pub use id::WorkerId;
pub use launcher::WorkerLauncher;
#[cfg(feature = "process")]
pub use process::{ProcessConfig, ProcessLauncher};
pub use worker::{DriverCommand, Worker, WorkerDriver};
pub use worker_exit::{ExitReason, WorkerExit};
