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
//! while its task has more to do. Large answers travel in parts, so that small ones pass them. This module knows frames
//! only; what a call means is its users' business.

mod client;
mod server;

#[cfg(any(test, feature = "test-util"))]
pub use client::Frames;
pub use client::{Call, CallEnd, CallEvent, Incoming, Multiplexer};
pub use server::{Body, Calls, Driver, Replies, Serve};

use std::collections::BTreeMap;

use crate::pb::{CallChunk, CallReply, CallStart, CallStatus, CallValue};

/// The credit that a stream starts with, in bytes: see [`chunk_cost`].
pub const STREAM_CREDIT: u64 = 256 * 1024;

/// A call whose arguments are larger than this, in bytes, should not share a stream with others: they would wait until
/// it is through.
pub const MAX_SHARED_BYTES: usize = 256 * 1024;

/// About how many bytes go into one message before the next one begins.
const BATCH_BYTES: usize = 1024 * 1024;

/// The largest call, reply or chunk that can travel, in bytes as [`call_size`], [`reply_size`] and [`chunk_cost`] count:
/// what [one message may hold](crate::MAX_MESSAGE_BYTES), less some room for what stands around it.
pub const MAX_ITEM_BYTES: usize = crate::MAX_MESSAGE_BYTES - 64 * 1024;

/// Answers and chunks with more data than this, in bytes, travel in parts of this size, to a caller that takes them: small
/// ones pass between the parts.
pub const PART_BYTES: usize = 256 * 1024;

/// What an item counts beyond its texts and values, in bytes. It bounds what many small ones occupy in memory, and how
/// many share a message.
const ITEM_BYTES: usize = 64;

/// What one text or value counts beyond its content: more than its tag and length.
const FIELD_BYTES: usize = 16;

/// What a chunk costs of its stream's credit, in bytes. The fixed part bounds what many small chunks occupy in memory.
#[must_use]
pub fn chunk_cost(chunk: &CallChunk) -> u64 {
    (chunk.data.len() + texts(&chunk.metadata)) as u64 + 32
}

/// About how many bytes a call occupies on its way; never less than it takes encoded.
#[must_use]
pub fn call_size(call: &CallStart) -> usize {
    let names = call.tool_name.len() + call.session_id.len() + call.traceparent.len() + call.tracestate.len();
    let arguments = call.arguments.iter().map(|argument| {
        argument.name.len() + argument.value.as_ref().map_or(0, value_size) + 2 * FIELD_BYTES
    });
    2 * ITEM_BYTES + names + arguments.sum::<usize>() + texts(&call.metadata)
}

/// About how many bytes a reply occupies on its way; never less than it takes encoded.
#[must_use]
pub fn reply_size(reply: &CallReply) -> usize {
    let status = reply.status.as_ref().map_or(0, |status| status.message.len() + status.details.len());
    2 * ITEM_BYTES
        + reply.value.as_ref().map_or(0, value_size)
        + reply.failure.as_ref().map_or(0, prost::Message::encoded_len)
        + status
        + texts(&reply.metadata)
        + reply.worker_id.len()
}

/// The type of the failure of a call whose answer, or a chunk of it, is larger than [`MAX_ITEM_BYTES`].
pub const TOO_LARGE: &str = "AnswerTooLarge";

/// What is wrong with an answer larger than [`MAX_ITEM_BYTES`]; `what` it is.
#[must_use]
pub fn too_large(what: &str, size: usize) -> String {
    format!(
        "the {what} has {size} bytes, the limit is {MAX_ITEM_BYTES}; stream it in smaller chunks, or return the path of a file"
    )
}

fn value_size(value: &CallValue) -> usize {
    value.json.len() + value.binary.as_ref().map_or(0, bytes::Bytes::len)
}

fn texts(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len() + FIELD_BYTES).sum()
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
