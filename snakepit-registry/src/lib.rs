//! What can be called: tools, their specs, the checks of their arguments, and the one trait behind which they run.
//!
//! ```text
//!                 ToolCall ──> Registry::resolve ──> dyn ToolHandler ──> ToolReply
//!                                                         |
//!                 +---------------------------------------+------------------------------+
//!              FnTool                                RemoteTool                     a Python callable
//!       a Rust closure, in the host          a pool of workers (snakepit-pool)     inside a worker
//! ```
//!
//! This crate knows nothing of gRPC, protobuf, processes or Python.
#![warn(missing_docs)]

mod arguments;
mod call;
mod check;
#[cfg(feature = "test-util")]
pub mod contract;
mod error;
mod fn_tool;
mod handler;
mod registry;
mod reply;
mod spec;
mod sync;

pub use arguments::Arguments;
pub use call::{CallId, CallMode, ToolCall, TraceContext};
pub use check::MAX_NAME_BYTES;
pub use error::{CallStage, ToolError, ToolFailure};
pub use fn_tool::{FnTool, ToolContext};
pub use handler::ToolHandler;
pub use registry::{Announcer, Registration, Registry, RegistryError, ResolvedTool, Running};
pub use reply::{Chunk, ChunkStream, ReplyBody, ToolReply};
pub use spec::{ParameterSpec, ToolSpec};
