//! Snakepit, composed: sessions, registry, pool and workers behind one API and one gRPC service.
//!
//! ```no_run
//! use serde::Deserialize;
//! use serde_json::json;
//! use snakepit_server::Snakepit;
//!
//! #[derive(Deserialize)]
//! struct Double {
//!     n: i64,
//! }
//!
//! # async fn example() -> Result<(), snakepit_server::Error> {
//! let snakepit = Snakepit::builder()
//!     .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
//!     .workers(4)
//!     .host_tool("double", |args: Double| async move { Ok::<_, std::convert::Infallible>(args.n * 2) })
//!     .start()
//!     .await?;
//! let sum: i64 = snakepit.execute("add", json!({"a": 1, "b": 2})).await?;
//! let doubled: i64 = snakepit.execute("double", json!({"n": sum})).await?;
//! assert_eq!((sum, doubled), (3, 6));
//! snakepit.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! This crate composes; it decides nothing that another crate owns. It is the only one that maps errors to gRPC
//! ([`status`]).
#![warn(missing_docs)]

mod blocking;
mod builder;
mod call;
mod client;
mod error;
mod grpc;
mod host;
mod limits;
mod listen;
mod panics;
mod python;
mod session;
mod snakepit;
pub mod status;
mod sync;
mod telemetry;

pub use builder::Builder;
pub use call::{CallBuilder, Reply, ReplyStream};
pub use client::{Client, ClientBuilder};
pub use error::Error;
pub use listen::{default_connections, raise_descriptor_limit};
pub use python::find_python;
pub use session::{SessionHandle, SessionWatch};
pub use snakepit::Snakepit;

pub use snakepit_pool::{PoolError, PoolStatus, WorkerState, WorkerStatus};
pub use snakepit_registry::{FnTool, ToolError, ToolSpec, TraceContext};
pub use snakepit_session::{
    Batch, Created, MemoryBackend, Metadata, NewSession, NewVariable, Note, Number, Payload, Program,
    ProgramInfo, ProgramName, ProgramOwner, Session, SessionBackend, SessionError, SessionId, SessionLimits,
    SessionStats, SetVariable, Source, UpdateKind, ValueType, Variable, VariableId, VariableName,
    VariableType, VariableUpdate, VariableVersion, VariableWatch, WatchEvent,
};
#[cfg(feature = "redb")]
pub use snakepit_session_redb::RedbBackend;
#[cfg(feature = "redis")]
pub use snakepit_session_redis::{RedisBackend, RedisConfig};
pub use snakepit_worker::{WorkerId, WorkerLauncher};
