//! The frames of the `Multiplex` RPC, at both ends. One stream carries many calls, and one message many frames.
//!
//! ```text
//!   caller                                                    callee
//!   Multiplexer::start ──> outbox ──> CallBatch  ══════════>  Serve ──> Calls::receive
//!   Call::poll_event  <── Incoming <── ReplyBatch <══════════        <── outbox <── Replies
//! ```
//!
//! A unary gRPC call costs each side some ten microseconds, a frame on an open stream one or two. Frames that are ready
//! at the same time share one message. The sender never waits to fill a batch, and never flushes while its task has
//! more to do. Large replies are sent in parts, which avoids head-of-line blocking.
//!
//! This module handles frames only. `snakepit_wire::mux` converts them to and from calls of the domain.

mod client;
mod report_queue;
mod server;

#[cfg(any(test, feature = "test-util"))]
pub use client::Frames;
pub use client::{Call, CallEnd, CallEvent, Incoming, Multiplexer};
pub use server::{CallLoop, Calls, Replies, ReplyBatches, Serve};

use std::collections::BTreeMap;

use crate::{
    pb::{CallChunk, CallReply, CallStart, CallStatus, CallValue},
    status::answer_too_large,
};

/// The initial credit of a stream, in bytes; see [`chunk_cost`].
pub const STREAM_CREDIT: u64 = 256 * 1024;

/// The maximum size of the arguments of a call that shares a stream with others, in bytes. Larger calls would delay the others.
/// Use a unary RPC for them.
pub const MAX_SHARED_BYTES: usize = 256 * 1024;

/// The maximum size of a message, in bytes as counted below. A message with a single item may exceed it.
const BATCH_BYTES: usize = 1024 * 1024;

/// The maximum size of a call, reply or chunk, in bytes as counted by [`call_size`], [`reply_size`] and [`chunk_cost`]. It is
/// [`MAX_MESSAGE_BYTES`](crate::MAX_MESSAGE_BYTES) less some space for the rest of the message.
pub const MAX_ITEM_BYTES: usize = crate::MAX_MESSAGE_BYTES - 64 * 1024;

/// The size of a part, in bytes. If the caller accepts parts, replies and chunks with more data are sent in parts. Smaller ones
/// pass in between.
pub const PART_BYTES: usize = 256 * 1024;

/// The overhead of an item in the accounting, in bytes. It bounds the memory of many small items, and their number per
/// message.
const ITEM_BYTES: usize = 64;

/// The overhead of a string or value in the accounting, in bytes. It exceeds the size of its tag and length.
const FIELD_BYTES: usize = 16;

/// The cost of a chunk in credit of its stream, in bytes. The fixed part bounds the memory of many small chunks.
#[must_use]
pub fn chunk_cost(chunk: &CallChunk) -> u64 {
    (chunk.data.len() + chunk.binary.as_ref().map_or(0, bytes::Bytes::len) + metadata_size(&chunk.metadata))
        as u64
        + 32
}

/// The approximate size of a call, in bytes. Never below the encoded size.
#[must_use]
pub fn call_size(call: &CallStart) -> usize {
    let names = call.tool_name.len() + call.session_id.len() + call.traceparent.len() + call.tracestate.len();
    let arguments = call.arguments.iter().map(|argument| {
        argument.name.len() + argument.value.as_ref().map_or(0, value_size) + 2 * FIELD_BYTES
    });
    2 * ITEM_BYTES + names + arguments.sum::<usize>() + metadata_size(&call.metadata)
}

/// The approximate size of a reply, in bytes. Never below the encoded size.
#[must_use]
pub fn reply_size(reply: &CallReply) -> usize {
    let status = reply.status.as_ref().map_or(0, |status| status.message.len() + status.details.len());
    2 * ITEM_BYTES
        + reply.value.as_ref().map_or(0, value_size)
        + reply.failure.as_ref().map_or(0, prost::Message::encoded_len)
        + status
        + metadata_size(&reply.metadata)
        + reply.worker_id.len()
}

/// The status of a call whose reply of this size, in bytes, exceeds [`MAX_ITEM_BYTES`].
#[must_use]
pub fn reply_too_large(size: usize) -> tonic::Status {
    let message = format!(
        "the answer has {size} bytes, the limit is {MAX_ITEM_BYTES}; stream it in smaller chunks, or return the path of a file"
    );
    answer_too_large(message, size, MAX_ITEM_BYTES)
}

fn value_size(value: &CallValue) -> usize {
    value.json.len() + value.binary.as_ref().map_or(0, bytes::Bytes::len)
}

fn metadata_size(metadata: &BTreeMap<String, String>) -> usize {
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
