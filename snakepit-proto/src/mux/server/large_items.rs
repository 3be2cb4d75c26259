//! Items that are sent in parts: they stay in the outbox, and each message takes one part of one item.

use std::collections::HashSet;

use bytes::Bytes;

use super::PART_BYTES;
use crate::pb::{CallChunk, CallPart, CallReply, CallValue, ReplyBatch};

/// Counts the items in an outbox with more data than [`PART_BYTES`], and divides them.
#[derive(Default)]
pub(super) struct LargeItems {
    /// Whether the caller accepts parts. Otherwise all items are sent whole, and none is counted here.
    pub(super) enabled: bool,
    pub(super) items: usize,
    /// The size of their data, in bytes.
    pub(super) bytes: usize,
    /// The call of the last part.
    last: u64,
}

impl LargeItems {
    /// Counts an item with this many bytes of data, if it is large.
    pub(super) const fn note(&mut self, bytes: usize) {
        if self.enabled && bytes > PART_BYTES {
            self.items += 1;
            self.bytes += bytes;
        }
    }

    pub(super) fn is_large_chunk(&self) -> impl Fn(&CallChunk) -> bool + use<> {
        let enabled = self.enabled;
        move |chunk| enabled && chunk.data.len() > PART_BYTES
    }

    pub(super) fn is_large_reply(&self) -> impl Fn(&CallReply) -> bool + use<> {
        let enabled = self.enabled;
        move |reply| enabled && data_of(reply) > PART_BYTES
    }

    /// Takes the next part: round-robin over calls, and in order within a call.
    pub(super) fn take(&mut self, batch: &mut ReplyBatch) -> Option<CallPart> {
        let mut streams = HashSet::new();
        let chunks = batch.chunks.iter_mut().filter(|run| streams.insert(run.id)).filter_map(|run| {
            let chunk = run.chunks.first_mut()?;
            Some((run.id, &mut chunk.data, &mut chunk.sent_in_parts))
        });
        let mut heads: Vec<_> = chunks.filter(|(_, data, _)| data.len() > PART_BYTES).collect();
        heads.extend(batch.replies.iter_mut().filter(|reply| !streams.contains(&reply.id)).filter_map(
            |CallReply { id, value, .. }| {
                let CallValue { json, binary, sent_in_parts, .. } = value.as_mut()?;
                let data = binary.as_mut().unwrap_or(json);
                (data.len() > PART_BYTES).then_some((*id, data, sent_in_parts))
            },
        ));
        let (id, data, sent) = heads.into_iter().min_by_key(|(id, ..)| (*id <= self.last, *id))?;
        self.last = id;
        self.bytes -= data.len();
        let part: Bytes = data.split_to(PART_BYTES);
        *sent += part.len() as u64;
        if data.len() > PART_BYTES {
            self.bytes += data.len();
        } else {
            self.items -= 1;
        }
        Some(CallPart { id, data: part })
    }
}

/// The size of the data of a reply that can be divided, in bytes.
pub(super) fn data_of(reply: &CallReply) -> usize {
    reply.value.as_ref().map_or(0, |value| value.binary.as_ref().unwrap_or(&value.json).len())
}
