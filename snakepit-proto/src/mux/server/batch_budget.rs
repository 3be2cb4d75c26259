//! Divides the outbox into messages of bounded size.

use std::collections::HashSet;

use super::{ITEM_BYTES, chunk_size, reply_size};
use crate::pb::{CallChunk, CallChunks, CallReply};

/// The remaining size of a message. The first item always fits.
pub(super) struct BatchBudget {
    pub(super) used: usize,
    limit: usize,
    /// An item did not fit. Items that must not overtake it are not taken.
    full: bool,
    /// Calls whose next item is sent in parts. Later items of these calls wait.
    blocked: HashSet<u64>,
}

impl BatchBudget {
    pub(super) fn new(limit: usize) -> Self {
        Self { used: 0, limit, full: false, blocked: HashSet::new() }
    }

    const fn fits(&mut self, size: usize) -> bool {
        self.full = self.used > 0 && self.used + size > self.limit;
        if !self.full {
            self.used += size;
        }
        !self.full
    }

    /// Takes items from the front while they fit.
    pub(super) fn take<T>(&mut self, items: &mut Vec<T>, size: impl Fn(&T) -> usize) -> Vec<T> {
        let fits = items.iter().take_while(|item| self.fits(size(item))).count();
        let rest = items.split_off(fits);
        std::mem::replace(items, rest)
    }

    /// Takes runs of chunks from the front while they fit, and divides a run if necessary. Of each call, it takes only
    /// the chunks before the first large one.
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
            let fits = if self.blocked.contains(&run.id) { 0 } else { self.fitting(&run, &is_large) };
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

    /// The number of chunks from the front of a run that fit.
    fn fitting(&mut self, run: &CallChunks, is_large: impl Fn(&CallChunk) -> bool) -> usize {
        let all = run.chunks.len();
        for (i, chunk) in run.chunks.iter().enumerate() {
            if is_large(chunk) {
                self.blocked.insert(run.id);
                return i;
            }
            // The overhead of the run counts with its last chunk.
            let for_run = if i + 1 == all { ITEM_BYTES } else { 0 };
            if !self.fits(chunk_size(chunk) + for_run) {
                return i;
            }
        }
        all
    }

    /// Takes replies from the front while they fit, except large ones and those behind a large chunk of their call.
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
            if !self.blocked.contains(&reply.id) && !is_large(&reply) && self.fits(reply_size(&reply)) {
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
