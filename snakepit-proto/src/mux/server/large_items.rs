//! Items that are sent in parts. They stay in the outbox, and each message takes one part of one item.

use std::collections::HashSet;

use bytes::Bytes;

use super::PART_BYTES;
use crate::pb::{CallChunk, CallPart, CallReply, CallValue, ReplyBatch};

/// Counts the items in an outbox with more data than [`PART_BYTES`], and divides them.
#[derive(Default)]
pub(super) struct LargeItems {
    /// Whether the caller accepts parts. Otherwise all items are sent whole, and none is counted here.
    pub(super) is_enabled: bool,
    pub(super) item_count: usize,
    /// The size of their data, in bytes.
    pub(super) bytes: usize,
    /// The id of the call that the last part belongs to.
    last_call: u64,
}

impl LargeItems {
    /// Counts an item with this many bytes of data, if it is large.
    pub(super) const fn count_item(&mut self, bytes: usize) {
        if self.is_enabled && bytes > PART_BYTES {
            self.item_count += 1;
            self.bytes += bytes;
        }
    }

    pub(super) fn is_large_chunk(&self) -> impl Fn(&CallChunk) -> bool + use<> {
        let is_enabled = self.is_enabled;
        move |chunk| is_enabled && chunk_data_len(chunk) > PART_BYTES
    }

    pub(super) fn is_large_reply(&self) -> impl Fn(&CallReply) -> bool + use<> {
        let is_enabled = self.is_enabled;
        move |reply| is_enabled && data_len(reply) > PART_BYTES
    }

    /// Takes the next part. Calls take turns (round-robin), and the items of one call keep their order.
    pub(super) fn take(&mut self, batch: &mut ReplyBatch) -> Option<CallPart> {
        let mut calls_with_chunks = HashSet::new();
        let chunks =
            batch.chunks.iter_mut().filter(|run| calls_with_chunks.insert(run.id)).filter_map(|run| {
                let chunk = run.chunks.first_mut()?;
                let data = chunk.binary.as_mut().unwrap_or(&mut chunk.data);
                Some((run.id, data, &mut chunk.sent_in_parts))
            });
        let mut heads: Vec<_> = chunks.filter(|(_, data, _)| data.len() > PART_BYTES).collect();
        heads.extend(
            batch.replies.iter_mut().filter(|reply| !calls_with_chunks.contains(&reply.id)).filter_map(
                |CallReply { id, value, .. }| {
                    let CallValue { json, binary, sent_in_parts, .. } = value.as_mut()?;
                    let data = binary.as_mut().unwrap_or(json);
                    (data.len() > PART_BYTES).then_some((*id, data, sent_in_parts))
                },
            ),
        );
        let (id, data, sent_in_parts) =
            heads.into_iter().min_by_key(|(id, ..)| (*id <= self.last_call, *id))?;
        self.last_call = id;
        self.bytes -= data.len();
        let part: Bytes = data.split_to(PART_BYTES);
        *sent_in_parts += part.len() as u64;
        if data.len() > PART_BYTES {
            self.bytes += data.len();
        } else {
            self.item_count -= 1;
        }
        Some(CallPart { id, data: part })
    }
}

/// The size of the divisible data of a chunk, in bytes.
pub(super) fn chunk_data_len(chunk: &CallChunk) -> usize {
    chunk.binary.as_ref().unwrap_or(&chunk.data).len()
}

/// The size of the divisible data of a reply, in bytes.
pub(super) fn data_len(reply: &CallReply) -> usize {
    reply.value.as_ref().map_or(0, |value| value.binary.as_ref().unwrap_or(&value.json).len())
}
