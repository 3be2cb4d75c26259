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
//! feature of the same name, runs a host in a test without Python. The module [`routes`] mounts the host in your own server.
//!
//! This crate exports the items of the other crates that programs need. Their examples name the crate that defines them, such as
//! `snakepit_registry` or `snakepit_session`. In your program, import the same names from `snakepit_server`.
//!
//! # Features
//! - `redb` and `redis`, both on by default, add the session backends `RedbBackend` and `RedisBackend`.
//! - `ndarray` adds conversions between [`Payload`] and the arrays of the crate `ndarray`.
//! - `opentelemetry` makes the current OpenTelemetry context the [trace context](CallBuilder::trace) of each call.
//! - `tls` adds support for `https://` addresses, and the TLS options, to the [`ClientBuilder`].
//! - `testing` adds the module `testing`.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod authorization;
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
pub mod settings;
mod snakepit;
pub mod status;
mod sync;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod traceback_policy;

/// The type of [`Snakepit::routes`], which mounts the host in your own server.
///
/// `Server::builder().add_routes(routes)` mounts it in a tonic 0.14 server, and `Router::merge(routes.into_axum_router())` in an
/// axum 0.8 server. It is also a `tower::Service` of HTTP requests.
pub mod routes {
    pub use tonic::service::Routes;
}

/// The types behind the aliases [`CallBuilder`], [`SessionHandle`] and [`WatchBuilder`], with their methods. They are generic over
/// the kind of host.
pub mod generic {
    pub use snakepit_client::{CallBuilder, SessionHandle, WatchBuilder};
}

pub use authorization::{Denied, Operation};
pub use builder::Builder;
pub use error::{StartError, StartErrorKind};
pub use listen::{default_connections, raise_descriptor_limit};
pub use local_host::LocalHost;
pub use python::{InterpreterOrigin, choose_python, find_python};
pub use snakepit::Snakepit;
pub use snakepit_wire::{TelemetryFilter, TelemetryFilterError};
pub use telemetry::{TelemetryEvent, TelemetryEvents, TelemetryValue};
pub use traceback_policy::TracebackPolicy;

/// A call on a host in this process, unless `H` is [`RemoteHost`]. [`generic::CallBuilder`] lists the methods.
///
/// ```
/// use std::{sync::Arc, time::Duration};
///
/// use futures_util::TryStreamExt;
/// use serde_json::json;
/// use snakepit_server::{FnTool, Reply, ReplyStream, Snakepit, testing::InProcessWorkers};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), snakepit_server::Error> {
/// # let double = FnTool::typed("double", |args: std::collections::HashMap<String, i64>| async move { args["n"] * 2 });
/// # let count = FnTool::stream("count", |args: std::collections::HashMap<String, u32>, _| {
/// #     futures_util::stream::iter(0..args["n"])
/// # });
/// # let workers = Arc::new(InProcessWorkers::new().fn_tool(double).fn_tool(count));
/// # let snakepit = Snakepit::builder().launcher(workers).workers(1).start().await?;
/// let call = snakepit.call("double").arg("n", 4).timeout(Duration::from_secs(1)).idempotent();
/// let Reply { value, worker, .. } = call.unary::<i64>().await?;
/// assert_eq!((value, worker.as_deref()), (8, Some("default-0-1")));
///
/// let items: ReplyStream<u32> = snakepit.call("count").arg("n", 3).stream().await?;
/// assert_eq!(items.try_collect::<Vec<_>>().await?, [0, 1, 2]);
/// # snakepit.shutdown().await?;
/// # Ok(())
/// # }
/// ```
pub type CallBuilder<H = LocalHost> = snakepit_client::CallBuilder<H>;

/// A builder of a watch, by default on a host in this process. [`generic::WatchBuilder`] lists the methods.
pub type WatchBuilder<H = LocalHost> = snakepit_client::WatchBuilder<H>;

/// The host of this process, as an argument of a host tool ([`Extractor`]). It calls other tools. Its calls are nested: they
/// belong to the call to the host tool, even from a task that the tool spawns.
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

/// A session of a host in this process, unless `H` is [`RemoteHost`]. [`generic::SessionHandle`] lists the methods.
///
/// ```
/// use std::sync::Arc;
///
/// use snakepit_server::{SessionError, Snakepit, VariableType, testing::InProcessWorkers};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), snakepit_server::Error> {
/// # let workers = Arc::new(InProcessWorkers::new());
/// # let snakepit = Snakepit::builder().launcher(workers).workers(1).start().await?;
/// let session = snakepit.session("alice").await?;
/// session.register("rate", VariableType::float().range(0.0..=1.0), 0.1).await?;
/// session.set("rate", 0.5).await?;
/// assert_eq!(session.get::<f64>("rate").await?, 0.5);
///
/// let rejected = session.set("rate", 2).await.unwrap_err();
/// assert_eq!(rejected.to_string(), "variable `rate`: value 2 is above maximum 1");
/// # snakepit.shutdown().await?;
/// # Ok(())
/// # }
/// ```
pub type SessionHandle<H = LocalHost> = snakepit_client::SessionHandle<H>;

pub use snakepit_client::{
    CallBatch, Caller, Client, ClientBuilder, Error, EventStream, GlobalPrograms, HostHandle,
    InProcessHandle, MAX_TIMEOUT, RemoteHost, RemotePoolStatus, RemoteWorkerStatus, Reply, ReplyStream,
    SessionEventStream, SessionInfo, SessionWatch, SessionWatchEvent, Stream, transport,
};
pub use snakepit_pool::{
    CallTotals, PoolConfig, PoolError, PoolStatus, Readiness, WorkerState, WorkerStatus,
};
pub use snakepit_registry::{
    ADDITIONAL_ARGUMENTS_SCHEMA_KEY, Announcer, Args, Arguments, ArgumentsIntoIter, CallId, CallLayer,
    CallLimit, CallLimitLayer, CallMode, CallOutcome, CallRecord, CallReports, CallScope, CallService,
    CallStage, ChainedException, Chunk, ChunkStream, Code, ErrorKind, Extension, Extensions, Extractor,
    Fault, FnTool, HandlerService, HostError, HostState, HostToolStatus, ITEM_SCHEMA_KEY, IntoAnswer, Json,
    LogLine, MAX_NAME_BYTES, OptionalExtractor, ParameterSpec, Principal, ProgressReport, RESULT_SCHEMA_KEY,
    Reason, RegistryError, ReplyBody, Requirements, State, TimeLimit, ToolCall, ToolContext, ToolError,
    ToolFailure, ToolFn, ToolHandler, ToolReply, ToolSpec, TraceContext, Via, Violation, schemars,
};
pub use snakepit_session::{
    Batch, Created, Dtype, Element, ErrorChain, InclusiveRange, IntoVariableType, MemoryBackend, Metadata,
    NewSession, NewVariable, Note, Page, PageRequest, Payload, PayloadError, Program, ProgramInfo,
    ProgramName, ProgramOwner, Session, SessionBackend, SessionError, SessionErrorKind, SessionEvent,
    SessionEventKind, SessionEventSender, SessionEvents, SessionId, SessionLimits, SessionStats, SetVariable,
    SharedError, Source, UpdateKind, ValueType, Variable, VariableId, VariableName, VariableType,
    VariableTypeBuilder, VariableUpdate, VariableVersion, VariableWatch, WatchEvent, Watcher, error_chain,
    variable_kinds,
};
/// The crates of [`Payload::to_ndarray`] and of the items of arrays, so that programs use the same versions.
#[cfg(feature = "ndarray")]
pub use snakepit_session::{half, ndarray, num_complex};
#[cfg(feature = "redb")]
pub use snakepit_session_redb::RedbBackend;
#[cfg(feature = "redis")]
pub use snakepit_session_redis::{RedisBackend, RedisConfig};
pub use snakepit_worker::{
    CallLimits, ExitReason, LaunchRequest, LauncherEnd, Worker, WorkerCommand, WorkerError, WorkerExit,
    WorkerId, WorkerLauncher, WorkerSlot,
    process::{ConnectedWorker, HostAccess, LaunchGuard, WorkerConnection},
};

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
