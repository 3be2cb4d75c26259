//! A pool of workers behind one [`ToolHandler`](snakepit_registry::ToolHandler). It assigns calls to workers, enforces
//! deadlines, retries calls whose workers were lost, and launches, replaces and stops workers.
//!
//! ```text
//!    Pool (handle)          RemoteTool: dyn ToolHandler
//!        |                          |
//!        |                        stack          trace > metrics > retry > [your layers] > dispatch
//!        |                          |
//!        +--------> driver <--------+            runs the scheduler under a short lock, applies its effects
//!                   |    |
//!           scheduler    supervisor              pure state machine | waits for launches, exits, timers
//!                             |
//!                    dyn WorkerLauncher          snakepit-worker
//! ```
//!
//! This crate does not depend on gRPC, protobuf, processes or Python.
//!
//! # Example
//! ```
//! # use std::{convert::Infallible, sync::Arc, time::Duration};
//! # use snakepit_registry::{FnTool, ReplyBody, ToolCall, ToolHandler};
//! # use snakepit_worker::testing::InProcessWorkers;
//! use snakepit_pool::{Pool, PoolConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let double = FnTool::typed("double", |args: std::collections::HashMap<String, i64>| async move {
//! #     Ok::<_, Infallible>(args["x"] * 2)
//! # });
//! # let launcher = Arc::new(InProcessWorkers::new().fn_tool(double));
//! let pool = Pool::start(PoolConfig::default().workers(2), launcher)?;
//! pool.ready().await?;
//! let call = ToolCall::new("double").try_with_argument("x", &21)?;
//! let reply = pool.tool().call(call).await?;
//! # let ReplyBody::Value(value) = reply.body else { panic!("a stream") };
//! assert_eq!(value.to_serde::<i64>()?, 42);
//! pool.shutdown(Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attempt;
mod chunks;
mod collections;
mod config;
mod dispatch;
mod driver;
mod error;
mod metrics;
mod pool;
mod readiness;
mod remote_tool;
mod retry;
mod scheduler;
pub mod settings;
mod stack;
mod status;
mod sync;
#[cfg(test)]
mod test_support;
mod trace;

pub use config::PoolConfig;
pub use error::PoolError;
pub use pool::Pool;
pub use readiness::Readiness;
pub use remote_tool::{PoolService, RemoteTool};
pub use snakepit_registry::CallTotals;
pub use status::{PoolStatus, WorkerState, WorkerStatus};

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
