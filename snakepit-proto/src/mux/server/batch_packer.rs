//! [`BatchPacker`]: divides the outbox into messages of bounded size.

use std::collections::HashSet;

use super::{ITEM_BYTES, chunk_size, reply_size};
use crate::pb::{CallChunk, CallChunks, CallReply};

/// Selects the items of the next message, within a size limit in bytes and without reordering the items of a call. The first item
/// may exceed the limit.
pub(super) struct BatchPacker {
    pub(super) used: usize,
    limit: usize,
    /// Whether the last item did not fit. Later items then stay in the outbox, because they must not overtake it, except recalled
    /// calls, which have no other items.
    is_full: bool,
    /// The ids of calls whose next item is sent in parts. Later items of these calls wait.
    blocked_calls: HashSet<u64>,
}

impl BatchPacker {
    pub(super) fn new(limit: usize) -> Self {
        Self { used: 0, limit, is_full: false, blocked_calls: HashSet::new() }
    }

    /// Adds an item of this size if it fits. Returns whether it was added.
    const fn try_add(&mut self, size: usize) -> bool {
        self.is_full = self.used > 0 && self.used + size > self.limit;
        if !self.is_full {
            self.used += size;
        }
        !self.is_full
    }

    /// Takes the items from the front that fit.
    pub(super) fn take<T>(&mut self, items: &mut Vec<T>, size: impl Fn(&T) -> usize) -> Vec<T> {
        let count = items.iter().take_while(|item| self.try_add(size(item))).count();
        let rest = items.split_off(count);
        std::mem::replace(items, rest)
    }

    /// Takes the runs of chunks from the front that fit, and divides a run if necessary. Takes only the chunks before the first
    /// large chunk of each call.
    pub(super) fn take_runs(
        &mut self,
        runs: &mut Vec<CallChunks>,
        is_large: impl Fn(&CallChunk) -> bool,
    ) -> Vec<CallChunks> {
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        let mut remaining = std::mem::take(runs).into_iter();
        while !self.is_full
            && let Some(mut run) = remaining.next()
        {
            let count =
                if self.blocked_calls.contains(&run.id) { 0 } else { self.add_chunks(&run, &is_large) };
            if count == run.chunks.len() {
                taken.push(run);
                continue;
            }
            if count > 0 {
                let later_chunks = run.chunks.split_off(count);
                let chunks = std::mem::replace(&mut run.chunks, later_chunks);
                taken.push(CallChunks { id: run.id, chunks });
            }
            rest.push(run);
        }
        rest.extend(remaining);
        *runs = rest;
        taken
    }

    /// Adds the chunks from the front of a run that fit. Returns their number.
    fn add_chunks(&mut self, run: &CallChunks, is_large: impl Fn(&CallChunk) -> bool) -> usize {
        let count = run.chunks.len();
        for (i, chunk) in run.chunks.iter().enumerate() {
            if is_large(chunk) {
                self.blocked_calls.insert(run.id);
                return i;
            }
            // The overhead of the run counts with its last chunk.
            let run_overhead = if i + 1 == count { ITEM_BYTES } else { 0 };
            if !self.try_add(chunk_size(chunk) + run_overhead) {
                return i;
            }
        }
        count
    }

    /// Takes the replies from the front that fit, except large ones and those behind a large chunk of their call.
    pub(super) fn take_replies(
        &mut self,
        replies: &mut Vec<CallReply>,
        is_large: impl Fn(&CallReply) -> bool,
    ) -> Vec<CallReply> {
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        let mut remaining = std::mem::take(replies).into_iter();
        while !self.is_full
            && let Some(reply) = remaining.next()
        {
            if !self.blocked_calls.contains(&reply.id)
                && !is_large(&reply)
                && self.try_add(reply_size(&reply))
            {
                taken.push(reply);
            } else {
                rest.push(reply);
            }
        }
        rest.extend(remaining);
        *replies = rest;
        taken
    }
}
