//! Tools: their specs, the checks of their arguments, their registry, and the trait that runs them.
//!
//! ```text
//!                 ToolCall ──> Registry::resolve ──> dyn ToolHandler ──> ToolReply
//!                                                         |
//!                 +---------------------------------------+------------------------------+
//!              FnTool                                RemoteTool                     a Python callable
//!       a Rust closure, in the host          a pool of workers (snakepit-pool)     inside a worker
//! ```
//!
//! This crate does not depend on gRPC, protobuf, processes or Python. Programs that embed a host import its items from
//! `snakepit_server`.
//!
//! # Example
//! ```
//! use std::collections::HashMap;
//!
//! use snakepit_registry::{FnTool, Registry, ReplyBody, ToolCall};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::new();
//! registry.register_host_tool(FnTool::typed("double", |args: HashMap<String, i64>| async move {
//!     args["x"] * 2
//! }))?;
//! let call = ToolCall::new("double").try_with_argument("x", &21)?;
//! let reply = registry.call_host_tool(call).await?;
//! let ReplyBody::Value(value) = reply.body else { panic!("a stream") };
//! assert_eq!(value.to_serde::<i64>()?, 42);
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod arguments;
mod call;
mod check;
#[cfg(feature = "test-util")]
pub mod contract;
mod error;
mod extensions;
mod fault;
mod fn_tool;
#[doc(hidden)]
pub mod guard;
mod handler;
mod host_error;
mod host_handler;
mod meter;
mod principal;
mod registry;
mod reply;
mod reports;
mod service;
mod spec;
mod sync;
mod timeline;
mod totals;

/// The trait of streams such as [`ChunkStream`], from `futures-core`.
pub use futures_core::Stream;
/// The crate of the layers and services that wrap calls.
pub use tower;

pub use answer::{IntoAnswer, Json};
pub use arguments::{Arguments, ArgumentsIntoIter};
pub use call::{CallId, CallMode, ToolCall, TraceContext};
pub use check::{MAX_NAME_BYTES, argument_violations};
pub use error::{CallStage, ChainedException, ErrorKind, TimeLimit, ToolError, ToolFailure};
pub use extensions::Extensions;
pub use fault::{Fault, Violation};
pub use fn_tool::{
    Args, CallScope, Extension, Extractor, FnTool, HostState, OptionalExtractor, Requirements, State,
    ToolContext, ToolFn,
};
pub use handler::ToolHandler;
pub use host_error::HostError;
pub use meter::HostToolStatus;
pub use principal::{Principal, Via};
pub use registry::{Announcer, CallFuture, Registration, Registry, RegistryError, ResolvedTool};
pub use reply::{Chunk, ChunkStream, ReplyBody, ToolReply};
pub use reports::{CallReports, LogLine, ProgressReport};
/// The crate of `schemars::JsonSchema`, which the argument types of host tools derive.
pub use schemars;
pub use service::{
    CallLayer, CallLayers, CallLimit, CallLimitLayer, CallProgress, CallService, HandlerService,
};
pub use snakepit_reason::{Code, Reason};
pub use spec::{
    ADDITIONAL_ARGUMENTS_SCHEMA_KEY, ITEM_SCHEMA_KEY, ParameterSpec, RESULT_SCHEMA_KEY, ToolSpec,
};
pub use timeline::{CallOutcome, CallRecord, CallTimeline};
pub use totals::CallTotals;

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
