//! The host of Snakepit: sessions, registry, pool and workers behind one API and one gRPC service.
//!
//! ```no_run
//! use schemars::JsonSchema;
//! use serde::Deserialize;
//! use serde_json::json;
//! use snakepit_server::Snakepit;
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Double {
//!     n: i64,
//! }
//!
//! # async fn example() -> Result<(), snakepit_server::Error> {
//! let snakepit = Snakepit::builder()
//!     .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
//!     .workers(4)
//!     .host_tool("double", |args: Double| async move { args.n * 2 })
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
//! [`Snakepit`] runs a host in your program. [`Client`] has the same API for a remote host; a program that needs only the
//! client depends on `snakepit-client`. The module [`status`] maps errors to gRPC statuses. The module `testing`, behind the
//! feature of the same name, runs a host in a test without Python.
#![warn(missing_docs)]

mod blocking;
mod builder;
mod error;
mod extract;
mod grpc;
mod host;
mod host_launcher;
mod limits;
mod listen;
mod local_host;
mod panics;
mod python;
mod snakepit;
pub mod status;
mod sync;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;

pub use builder::Builder;
pub use error::StartError;
pub use listen::{default_connections, raise_descriptor_limit};
pub use local_host::LocalHost;
pub use python::find_python;
pub use snakepit::Snakepit;

/// A call on a host in this process, unless `H` is [`RemoteHost`].
pub type CallBuilder<H = LocalHost> = snakepit_client::CallBuilder<H>;

/// A builder of a watch, by default on a host in this process.
pub type WatchBuilder<H = LocalHost> = snakepit_client::WatchBuilder<H>;

/// The host of this process, as an argument of a host tool ([`Extractor`]). It calls other tools. Its calls are nested: they
/// belong to the call of the host tool, also from a task that the tool spawns.
///
/// ```no_run
/// use schemars::JsonSchema;
/// use serde::Deserialize;
/// use serde_json::json;
/// use snakepit_server::{Error, Host, Snakepit};
///
/// #[derive(Deserialize, JsonSchema)]
/// struct Order {
///     item: String,
/// }
///
/// let builder = Snakepit::builder().adapter("shop:Shop").host_tool("quote", |order: Order, host: Host| async move {
///     let price: f64 = host.execute("price", json!({"item": order.item})).await?;
///     Ok::<_, Error>(price * 1.2)
/// });
/// ```
pub type Host = Caller<LocalHost>;

/// A session of a host in this process, unless `H` is [`RemoteHost`].
pub type SessionHandle<H = LocalHost> = snakepit_client::SessionHandle<H>;

pub use snakepit_client::{
    CallBatch, Caller, Client, ClientBuilder, Error, EventStream, HostHandle, RemoteHost, Reply, ReplyStream,
    SessionWatch,
};
pub use snakepit_pool::{CallTotals, PoolConfig, PoolError, PoolStatus, WorkerState, WorkerStatus};
pub use snakepit_registry::{
    Announcer, Args, Arguments, CallId, CallMode, CallScope, CallService, CallStage, Chunk, ChunkStream,
    ErrorKind, Extension, Extensions, Extractor, FnTool, HandlerService, HostState, HostToolStatus,
    IntoAnswer, Json, LayerError, OptionalExtractor, ParameterSpec, RegistryError, ReplyBody, Requirements,
    ServiceHandler, State, ToolCall, ToolContext, ToolError, ToolFailure, ToolFn, ToolHandler, ToolReply,
    ToolSpec, TraceContext, schemars,
};
pub use snakepit_session::{
    Batch, Created, InclusiveRange, IntoVariableType, MemoryBackend, Metadata, NewSession, NewVariable, Note,
    Number, Page, PageRequest, Payload, PayloadError, Program, ProgramInfo, ProgramName, ProgramOwner,
    Session, SessionBackend, SessionError, SessionErrorKind, SessionEvent, SessionEventKind,
    SessionEventSender, SessionEvents, SessionId, SessionLimits, SessionStats, SetVariable, Source,
    UpdateKind, ValueType, Variable, VariableId, VariableName, VariableType, VariableTypeBuilder,
    VariableUpdate, VariableVersion, VariableWatch, WatchEvent, Watcher, variable_kinds,
};
#[cfg(feature = "redb")]
pub use snakepit_session_redb::RedbBackend;
#[cfg(feature = "redis")]
pub use snakepit_session_redis::{RedisBackend, RedisConfig};
pub use snakepit_worker::{
    ExitReason, LaunchRequest, LauncherEnd, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerId,
    WorkerLauncher,
    process::{ConnectedWorker, HostAccess, LaunchGuard, WorkerConnection},
};

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
