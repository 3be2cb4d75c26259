//! Many workers as one callable: which worker runs which call, what happens to calls on the way, and when workers
//! are started, replaced and stopped.
//!
//! ```text
//!    Pool (handle)          RemoteTool: dyn ToolHandler
//!        |                          |
//!        |                        stack          trace > metrics > retry > dispatch
//!        |                          |
//!        +--------> driver <--------+            runs the scheduler under a short lock, carries out its effects
//!                   |    |
//!           scheduler    supervisor              decides, purely | waits for launches, exits, timers
//!                             |
//!                    dyn WorkerLauncher          snakepit-worker
//! ```
//!
//! This crate knows nothing of gRPC, protobuf, processes or Python.
#![warn(missing_docs)]

mod attempt;
mod chunks;
mod config;
mod dispatch;
mod driver;
mod error;
mod metrics;
mod pool;
mod remote_tool;
mod retry;
mod scheduler;
mod stack;
mod status;
mod sync;
#[cfg(test)]
mod test_support;
mod trace;
mod visits;

pub use config::PoolConfig;
pub use error::PoolError;
pub use metrics::CallTotals;
pub use pool::Pool;
pub use remote_tool::RemoteTool;
pub use status::{PoolStatus, WorkerState, WorkerStatus};
