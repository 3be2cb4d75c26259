//! Sessions: the state that the host owns and Python workers use.
//!
//! ```text
//!            callers (snakepit-server)
//!                     |
//!             dyn SessionBackend            stores sessions
//!                     |
//!       +-------------+-------------+
//! MemoryBackend   RedbBackend   RedisBackend     in this process; in a file; shared by several hosts
//!       +-------------+-------------+
//!                     |
//!                kit, limits                the semantics that all backends share
//! ```
//!
//! A session has an id, metadata, typed variables, programs, the worker that served it last, and a TTL that every use renews.
//! This crate contains the trait, its types, the memory backend, and the [`kit`] for other backends. Programs that embed a host
//! or connect to one import its other items from `snakepit_server` or `snakepit_client`.
//!
//! | crate | contents |
//! | --- | --- |
//! | `snakepit-session-redb` | `RedbBackend` |
//! | `snakepit-session-redis` | `RedisBackend` |
//! | `snakepit-session-testkit` | test suites for any backend |
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod error;
mod events;
mod id;
pub mod kit;
mod limits;
mod memory;
mod metadata;
mod payload;
mod program;
mod session;
pub mod settings;
mod shared;
mod variable;
mod variable_type;
mod watch;

/// The trait of streams such as [`VariableWatch`], from `futures-core`.
pub use futures_core::Stream;

pub use backend::{Batch, Created, Page, PageRequest, SessionBackend};
pub use error::{ErrorChain, SessionError, SessionErrorKind, SharedError, error_chain};
pub use events::{SessionEvent, SessionEventKind, SessionEventSender, SessionEvents, SessionStats};
pub use id::SessionId;
pub use limits::SessionLimits;
pub use memory::MemoryBackend;
pub use metadata::Metadata;
/// The crates of [`Payload::to_ndarray`] and of the items of arrays, so that programs use the same versions.
#[cfg(feature = "ndarray")]
pub use {half, ndarray, num_complex};

pub use payload::{Dtype, Element, Payload, PayloadError, ValueType};
pub use program::{Program, ProgramInfo, ProgramName, ProgramOwner};
pub use session::{NewSession, Session};
pub use snakepit_reason::Reason;
pub use variable::{
    NewVariable, Note, SetVariable, Source, Variable, VariableId, VariableName, VariableVersion,
};
pub use variable_type::{
    InclusiveRange, IntoVariableType, VariableType, VariableTypeBuilder, variable_kinds,
};
pub use watch::{UpdateKind, VariableUpdate, VariableWatch, WatchEvent, Watcher};

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
