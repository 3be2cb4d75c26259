//! Launches a worker, delivers calls to it, and supervises it until it exits.
//!
//! ```text
//!            snakepit-pool
//!                 |
//!        trait WorkerLauncher ──launch──> Worker { handler: dyn ToolHandler, stop, kill, exited }
//!                 |
//!          ProcessLauncher                 the default: a child process that serves gRPC
//! ```
//!
//! The pool holds a [`Worker`]. The launcher holds the other end, a [`LauncherEnd`], which receives commands and reports
//! the exit. The pool, not this crate, decides which worker runs a call and when to replace a worker.
//!
//! Programs that embed a host import these items from `snakepit_server`.
//!
//! A program whose workers are not child processes implements [`WorkerLauncher`]:
//!
//! ```
//! use std::sync::Arc;
//!
//! use snakepit_registry::{ToolHandler, ToolSpec};
//! use snakepit_worker::{
//!     ExitReason, LaunchRequest, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerLauncher,
//! };
//! use tokio::{sync::Mutex, task::JoinSet};
//!
//! /// Launches workers that run their calls in this process.
//! #[derive(Debug)]
//! struct InProcessLauncher {
//!     handler: Arc<dyn ToolHandler>,
//!     tasks: Mutex<JoinSet<()>>,
//! }
//!
//! #[async_trait::async_trait]
//! impl WorkerLauncher for InProcessLauncher {
//!     async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
//!         let handler = Arc::clone(&self.handler);
//!         let (worker, mut launcher_end) = Worker::new(request.id, None, "in-process", handler);
//!         let mut tasks = self.tasks.lock().await;
//!         // Releases the tasks of workers that have exited.
//!         while tasks.try_join_next().is_some() {}
//!         tasks.spawn(async move {
//!             let reason = match launcher_end.command().await {
//!                 WorkerCommand::Stop { .. } => ExitReason::Stopped,
//!                 WorkerCommand::Kill { reason } => ExitReason::Killed { reason },
//!             };
//!             launcher_end.exited(WorkerExit::new(reason));
//!         });
//!         // The host registers the tool for the pool.
//!         Ok(worker.with_tools([ToolSpec::new("greet")]))
//!     }
//! }
//! ```
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod call_limits;
#[cfg(feature = "test-util")]
pub mod contract;
#[cfg(feature = "descendants")]
pub mod descendants;
mod error;
pub mod escaping;
mod id;
mod launcher;
mod memory;
#[cfg(feature = "process")]
pub mod process;
pub mod settings;
#[cfg(feature = "test-util")]
pub mod testing;
mod worker;
mod worker_exit;

pub use call_limits::CallLimits;
pub use error::WorkerError;
pub use id::WorkerId;
pub use launcher::{LaunchRequest, WorkerLauncher, WorkerSlot};
#[cfg(feature = "process")]
pub use process::{ProcessConfig, ProcessLauncher};
pub use snakepit_session::{ErrorChain, SharedError, error_chain};
pub use worker::{LauncherEnd, Worker, WorkerCommand};
pub use worker_exit::{ExitReason, WorkerExit};

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
