//! Tools for the tests of an application (feature `testing`): a whole host without Python, on paused time.
//!
//! [`InProcessWorkers`] is a [launcher](crate::Builder::launcher) whose workers run Rust closures in the process of the test. The
//! rest of the host is real: sessions, the registry, the pool with its queue, deadlines, retries and replacement of workers.
//! Everything uses tokio's clock, so a test on paused time does not wait for timers.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//!
//! use serde_json::json;
//! use snakepit_server::{FnTool, Snakepit, ToolSpec, testing::InProcessWorkers};
//!
//! #[derive(serde::Deserialize)]
//! struct Pair {
//!     a: i64,
//!     b: i64,
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), snakepit_server::Error> {
//! let add = FnTool::typed("add", |pair: Pair| async move { pair.a + pair.b });
//! let workers = InProcessWorkers::new().fn_tool(add.describe(ToolSpec::idempotent));
//! let snakepit = Snakepit::builder().launcher(Arc::new(workers.clone())).workers(2).start().await?;
//!
//! // The first worker crashes during the call, and the pool repeats the call on the other one.
//! workers.crash_in_calls("add", 1);
//! let sum: i64 = snakepit.execute("add", json!({"a": 1, "b": 2})).await?;
//! assert_eq!((sum, workers.calls("add")), (3, 2));
//!
//! // Two initial workers, and a replacement.
//! workers.launched(3).await;
//! snakepit.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! The contract suites check your implementations: [`launcher_contract`] checks a [`WorkerLauncher`](crate::WorkerLauncher), and
//! [`tool_handler_contract`] checks a [`ToolHandler`](crate::ToolHandler). For a [`SessionBackend`](crate::SessionBackend), use
//! the crate `snakepit-session-testkit`.

pub use snakepit_registry::contract::{ContractCalls, tool_handler_contract};
pub use snakepit_worker::{contract::launcher_contract, testing::InProcessWorkers};
