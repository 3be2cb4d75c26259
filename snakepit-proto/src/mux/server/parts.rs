//! Items that are too large to travel whole while others wait: they stay in the outbox, and each message takes a part of one.

use std::collections::HashSet;

use bytes::Bytes;

use super::PART_BYTES;
use crate::pb::{CallChunk, CallPart, CallReply, CallValue, ReplyBatch};

/// The items in an outbox that have more data than [`PART_BYTES`].
#[derive(Default)]
pub(super) struct Parts {
    /// Whether the caller takes parts. All items travel whole otherwise, and none is counted here.
    pub(super) enabled: bool,
    pub(super) items: usize,
    /// How many bytes of data they have.
    pub(super) bytes: usize,
    /// The call whose item gave the last part.
    last: u64,
}

impl Parts {
    /// Notes an item with so much data that is put into the outbox.
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

    /// Takes the next part: calls take turns, and the items of a call come one after the other.
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

/// How much data a reply has that could travel in parts, in bytes.
pub(super) fn data_of(reply: &CallReply) -> usize {
    reply.value.as_ref().map_or(0, |value| value.binary.as_ref().unwrap_or(&value.json).len())
}
