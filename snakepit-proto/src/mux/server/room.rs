//! Cutting what is to be sent into messages of bounded size.

use std::collections::HashSet;

use super::{ITEM_BYTES, chunk_size, reply_size};
use crate::pb::{CallChunk, CallChunks, CallReply};

/// What a message still has room for. The first thing goes in however large it is.
pub(super) struct Room {
    pub(super) taken: usize,
    limit: usize,
    /// Something did not fit, so nothing that may not overtake it is taken any more.
    full: bool,
    /// Calls whose next item is too large to travel whole: what comes behind it waits.
    waiting: HashSet<u64>,
}

impl Room {
    pub(super) fn new(limit: usize) -> Self {
        Self { taken: 0, limit, full: false, waiting: HashSet::new() }
    }

    const fn fits(&mut self, size: usize) -> bool {
        self.full = self.taken > 0 && self.taken + size > self.limit;
        if !self.full {
            self.taken += size;
        }
        !self.full
    }

    /// Takes from the front what fits.
    pub(super) fn take<T>(&mut self, items: &mut Vec<T>, size: impl Fn(&T) -> usize) -> Vec<T> {
        let fits = items.iter().take_while(|item| self.fits(size(item))).count();
        let rest = items.split_off(fits);
        std::mem::replace(items, rest)
    }

    /// Takes from the front what fits, but of each call only what stands before its first large chunk; a run is divided if
    /// need be.
    pub(super) fn take_runs(
        &mut self,
        runs: &mut Vec<CallChunks>,
        is_large: impl Fn(&CallChunk) -> bool,
    ) -> Vec<CallChunks> {
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        let mut all = std::mem::take(runs).into_iter();
        while !self.full
            && let Some(mut run) = all.next()
        {
            let fits = if self.waiting.contains(&run.id) { 0 } else { self.fitting(&run, &is_large) };
            if fits == run.chunks.len() {
                taken.push(run);
                continue;
            }
            if fits > 0 {
                let left = run.chunks.split_off(fits);
                let chunks = std::mem::replace(&mut run.chunks, left);
                taken.push(CallChunks { id: run.id, chunks });
            }
            rest.push(run);
        }
        rest.extend(all);
        *runs = rest;
        taken
    }

    /// How many chunks from the front of a run are taken.
    fn fitting(&mut self, run: &CallChunks, is_large: impl Fn(&CallChunk) -> bool) -> usize {
        let all = run.chunks.len();
        for (i, chunk) in run.chunks.iter().enumerate() {
            if is_large(chunk) {
                self.waiting.insert(run.id);
                return i;
            }
            // What a run counts for itself is taken with its last chunk.
            let for_run = if i + 1 == all { ITEM_BYTES } else { 0 };
            if !self.fits(chunk_size(chunk) + for_run) {
                return i;
            }
        }
        all
    }

    /// Takes from the front what fits, but no large reply, and none behind a large chunk of its call.
    pub(super) fn take_replies(
        &mut self,
        replies: &mut Vec<CallReply>,
        is_large: impl Fn(&CallReply) -> bool,
    ) -> Vec<CallReply> {
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        let mut all = std::mem::take(replies).into_iter();
        while !self.full
            && let Some(reply) = all.next()
        {
            if !self.waiting.contains(&reply.id) && !is_large(&reply) && self.fits(reply_size(&reply)) {
                taken.push(reply);
            } else {
                rest.push(reply);
            }
        }
        rest.extend(all);
        *replies = rest;
        taken
    }
}
