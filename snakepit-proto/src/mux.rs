//! Both ends of the `Multiplex` RPC: many calls on one stream, many frames to a message.
//!
//! ```text
//!   caller                                                    callee
//!   Multiplexer::start ──> outbox ──> CallBatch  ══════════>  Serve ──> Calls::receive
//!   Call::poll_event  <── Incoming <── ReplyBatch <══════════        <── outbox <── Replies
//! ```
//!
//! A unary gRPC call costs each side some ten microseconds, a frame on an open stream one or two, and frames that are
//! ready at the same time share one message: nothing here waits to fill a batch, and nothing flushes a half-filled one
//! while its task has more to do. This module knows frames only; what a call means is its users' business.

mod client;
mod server;

pub use client::{Call, CallEnd, CallEvent, Incoming, Multiplexer};
pub use server::{Calls, Replies, Serve};

use crate::pb::{CallChunk, CallStart, CallStatus};

/// The credit that a stream starts with, in bytes: see [`chunk_cost`].
pub const STREAM_CREDIT: u64 = 256 * 1024;

/// A call whose arguments are larger than this, in bytes, should not share a stream with others: they would wait until
/// it is through.
pub const MAX_SHARED_BYTES: usize = 256 * 1024;

/// About how many bytes go into one message before the next one begins.
const BATCH_BYTES: usize = 1024 * 1024;

/// What a chunk costs of its stream's credit, in bytes. The fixed part bounds what many small chunks occupy in memory.
#[must_use]
pub fn chunk_cost(chunk: &CallChunk) -> u64 {
    chunk.data.len() as u64 + 32
}

/// How many bytes of arguments a call carries.
fn size_of(call: &CallStart) -> usize {
    let values = call.arguments.iter().filter_map(|argument| argument.value.as_ref());
    values.map(|value| value.json.len() + value.binary.as_ref().map_or(0, bytes::Bytes::len)).sum()
}

impl From<tonic::Status> for CallStatus {
    fn from(status: tonic::Status) -> Self {
        Self {
            code: status.code().into(),
            message: status.message().to_owned(),
            details: bytes::Bytes::copy_from_slice(status.details()),
        }
    }
}

impl From<CallStatus> for tonic::Status {
    fn from(status: CallStatus) -> Self {
        Self::with_details(status.code.into(), status.message, status.details)
    }
}
