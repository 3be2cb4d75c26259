//! Cutting what is to be sent into messages of bounded size.

use super::{BATCH_BYTES, ITEM_BYTES, chunk_size};
use crate::pb::{CallChunk, CallChunks};

/// What a message still has room for. The first thing goes in however large it is.
pub(super) struct Room {
    pub(super) taken: usize,
}

impl Room {
    const fn fits(&mut self, size: usize) -> bool {
        let fits = self.taken == 0 || self.taken + size <= BATCH_BYTES;
        if fits {
            self.taken += size;
        }
        fits
    }

    /// Takes from the front what fits.
    pub(super) fn take<T>(&mut self, items: &mut Vec<T>, size: impl Fn(&T) -> usize) -> Vec<T> {
        let fits = items.iter().take_while(|item| self.fits(size(item))).count();
        let rest = items.split_off(fits);
        std::mem::replace(items, rest)
    }

    /// Takes from the front what fits; the last run is divided if need be.
    pub(super) fn take_runs(&mut self, runs: &mut Vec<CallChunks>) -> Vec<CallChunks> {
        let mut whole = 0;
        let mut part = None;
        for run in runs.iter_mut() {
            if self.taken > 0 && self.taken + ITEM_BYTES >= BATCH_BYTES {
                break;
            }
            // What a run counts for itself is taken with its last chunk.
            let all = run.chunks.len();
            let mut size = |left: usize, chunk: &CallChunk| {
                self.fits(chunk_size(chunk) + if left == 1 { ITEM_BYTES } else { 0 })
            };
            let fits = run.chunks.iter().enumerate().take_while(|(i, chunk)| size(all - i, chunk)).count();
            if fits < all {
                if fits > 0 {
                    let rest = run.chunks.split_off(fits);
                    part = Some(CallChunks { id: run.id, chunks: std::mem::replace(&mut run.chunks, rest) });
                }
                break;
            }
            whole += 1;
        }
        let rest = runs.split_off(whole);
        let mut taken = std::mem::replace(runs, rest);
        taken.extend(part);
        taken
    }
}
