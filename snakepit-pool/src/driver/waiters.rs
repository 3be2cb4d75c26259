//! The table of waiting calls. A call that has got a worker stays in it until its task is polled.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::{Index, IndexMut},
};

use snakepit_registry::CallId;

use super::waiter::Waiter;
use crate::{collections::Slab, scheduler::Ticket};

/// All waiters by key. Only queued ones are also indexed by call, so a call that gets a worker immediately does not need an
/// index entry.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiters: Slab<Waiter>,
    by_call: HashMap<CallId, usize, BuildHasherDefault<CallIdHasher>>,
}

/// Hashes ids that a counter assigns. The low bits, which select the bucket, are those of the id. Calls that arrive one after the
/// other therefore have neighboring buckets, and a queue of a hundred thousand calls does not miss the cache at each of them.
#[derive(Debug, Default)]
pub(super) struct CallIdHasher(u64);

impl Hasher for CallIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = self.0.rotate_left(8) ^ id;
    }

    fn finish(&self) -> u64 {
        // The table compares the seven highest hash bits of neighbors before it compares their keys.
        self.0 ^ (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) << 57)
    }
}

impl Waiters {
    #[inline]
    pub(super) fn insert(&mut self, waiter: Waiter) -> usize {
        self.waiters.insert(waiter)
    }

    /// Indexes a waiter by its call, if it still waits.
    #[inline]
    pub(super) fn index(&mut self, key: usize) {
        if let Some(waiter) = self.waiters.get(key)
            && waiter.is_waiting()
        {
            self.by_call.insert(waiter.call, key);
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, key: usize) -> Waiter {
        if !self.by_call.is_empty() {
            self.remove_from_index(key);
        }
        self.waiters.remove(key)
    }

    fn remove_from_index(&mut self, key: usize) {
        let call = self.waiters[key].call;
        if self.by_call.get(&call) == Some(&key) {
            self.by_call.remove(&call);
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut Waiter> {
        self.waiters.get_mut(key)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Waiter> {
        self.waiters.iter_mut().map(|(_, waiter)| waiter)
    }

    /// The ticket of a queued call.
    pub(super) fn queued(&self, call: CallId) -> Option<Ticket> {
        let key = *self.by_call.get(&call)?;
        self.waiters.get(key).filter(|waiter| waiter.is_waiting()).map(|waiter| waiter.ticket(key))
    }
}

impl Index<usize> for Waiters {
    type Output = Waiter;

    fn index(&self, key: usize) -> &Waiter {
        &self.waiters[key]
    }
}

impl IndexMut<usize> for Waiters {
    fn index_mut(&mut self, key: usize) -> &mut Waiter {
        &mut self.waiters[key]
    }
}
