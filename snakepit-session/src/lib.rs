//! Sessions: the state that the host owns and Python workers only borrow.
//!
//! ```text
//!            callers (snakepit-server)
//!                     |
//!             trait SessionBackend          where sessions live
//!                     |
//!               MemoryBackend               the default: this process
//! ```
//!
//! A session has an id, metadata, programs, the worker that served it last, and a time to live that every use renews.
//! This crate knows nothing of gRPC, protobuf, workers or Python.
#![warn(missing_docs)]

mod backend;
#[cfg(feature = "test-util")]
pub mod contract;
mod error;
mod id;
mod memory;
mod payload;
mod program;
mod session;

pub use backend::{Created, Page, PageRequest, SessionBackend};
pub use error::SessionError;
pub use id::SessionId;
pub use memory::{MemoryBackend, MemoryConfig};
pub use payload::{Payload, PayloadError, ValueType};
pub use program::{Program, ProgramInfo, ProgramName};
pub use session::{NewSession, Session};
