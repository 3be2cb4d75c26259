//! Sessions: the state that the host owns and Python workers only borrow.
//!
//! ```text
//!            callers (snakepit-server)
//!                     |
//!             trait SessionBackend          where sessions live
//!                     |
//!       +-------------+-------------+
//! MemoryBackend   RedbBackend   RedisBackend     this process; a file; a server that hosts share
//!       +-------------+-------------+
//!                     |
//!                kit, limits                what every backend does to a session
//! ```
//!
//! A session has an id, metadata, typed variables, programs, the worker that served it last, and a time to live that every
//! use renews. `RedbBackend` and `RedisBackend` are in the crates `snakepit-session-redb` and `snakepit-session-redis`. This crate knows nothing of gRPC, protobuf, workers or Python.
#![warn(missing_docs)]

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
mod variable;
mod variable_type;
mod watch;

pub use backend::{Batch, Created, Page, PageRequest, SessionBackend};
pub use error::SessionError;
pub use events::{SessionEvent, SessionEventKind, SessionEventSender, SessionEvents, SessionStats};
pub use id::SessionId;
pub use limits::SessionLimits;
pub use memory::MemoryBackend;
pub use metadata::Metadata;
pub use payload::{Number, Payload, PayloadError, ValueType};
pub use program::{Program, ProgramInfo, ProgramName, ProgramOwner};
pub use session::{NewSession, Session};
pub use variable::{
    NewVariable, Note, SetVariable, Source, Variable, VariableId, VariableName, VariableVersion,
};
pub use variable_type::VariableType;
pub use watch::{UpdateKind, VariableUpdate, VariableWatch, WatchEvent, Watcher};
