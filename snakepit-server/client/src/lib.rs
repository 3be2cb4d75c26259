//! A client for Snakepit hosts: calls to Python tools, and sessions, over gRPC.
//!
//! ```no_run
//! use serde_json::json;
//! use snakepit_client::Client;
//!
//! # async fn example() -> Result<(), snakepit_client::Error> {
//! let client = Client::connect("127.0.0.1:50051").await?;
//! let sum: i64 = client.execute("add", json!({"a": 1, "b": 2})).await?;
//!
//! let session = client.session("alice").await?;
//! session.execute::<()>("remember", json!({"sum": sum})).await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] holds the connection, [`CallBuilder`] prepares one call, and [`SessionHandle`] reads and writes the state of a
//! session. All three are generic over a [`HostHandle`], because `snakepit-server`, which runs a host inside your program,
//! offers the same API.
//!
//! This crate exports the items of other crates that its API uses. Their examples name the crate that defines them, such as
//! `snakepit_registry` or `snakepit_session`. In your program, import the same names from `snakepit_client`.
//!
//! # Features
//! - `ndarray` adds conversions between [`Payload`] and the arrays of the crate `ndarray`.
//! - `tls` adds support for `https://` addresses, and the options `ca_certificate`,
//!   `client_certificate` and `server_name`.
//! - `opentelemetry` makes the current OpenTelemetry context the [trace context](CallBuilder::trace) of each call.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod batch;
mod builder;
mod call;
mod caller;
mod client;
mod error;
mod extract;
mod host;
mod listing;
mod remote;
mod session;
pub mod status;
mod trace;
pub mod transport;

/// The trait of streams such as [`ReplyStream`], from `futures-core`.
pub use futures_core::Stream;

#[doc(hidden)]
pub use error::write_with_sources;
#[doc(hidden)]
pub use extract::ExtractFrom;
/// The maximum time limit of a call: 99,999,999 hours, which is the maximum of gRPC.
pub use snakepit_proto::headers::MAX_TIMEOUT;
pub use snakepit_registry::{
    ADDITIONAL_ARGUMENTS_SCHEMA_KEY, CallStage, CallTotals, ChainedException, Code, ErrorKind,
    ITEM_SCHEMA_KEY, LogLine, MAX_NAME_BYTES, ParameterSpec, ProgressReport, RESULT_SCHEMA_KEY, Reason,
    TimeLimit, ToolError, ToolFailure, ToolSpec, TraceContext,
};
pub use snakepit_session::{
    Created, Dtype, Element, ErrorChain, InclusiveRange, IntoVariableType, Metadata, NewSession, NewVariable,
    Note, Page, PageRequest, Payload, PayloadError, Program, ProgramInfo, ProgramName, Session, SessionError,
    SessionErrorKind, SessionEvent, SessionEventKind, SessionId, SessionStats, SetVariable, SharedError,
    Source, UpdateKind, ValueType, Variable, VariableId, VariableName, VariableType, VariableTypeBuilder,
    VariableUpdate, VariableVersion, WatchEvent, error_chain, variable_kinds,
};
/// The crates of [`Payload::to_ndarray`] and of the items of arrays, so that programs use the same versions.
#[cfg(feature = "ndarray")]
pub use snakepit_session::{half, ndarray, num_complex};
#[doc(hidden)]
pub use trace::attach_current_trace;

pub use self::{
    batch::CallBatch,
    builder::ClientBuilder,
    call::{CallBuilder, Reply, ReplyStream},
    caller::Caller,
    client::Client,
    error::Error,
    host::{EventStream, HostHandle, InProcessHandle, sealed},
    listing::{
        GlobalPrograms, RemotePoolStatus, RemoteWorkerStatus, SessionEventStream, SessionInfo,
        SessionWatchEvent,
    },
    remote::RemoteHost,
    session::{SessionHandle, SessionWatch, WatchBuilder},
};
