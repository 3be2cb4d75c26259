//! The calls that wait for a worker, or for their task to fetch the one they got: by place, and by call for those that queue.

use std::{
    collections::HashMap,
    ops::{Index, IndexMut},
};

use foldhash::fast::RandomState;
use slab::Slab;
use snakepit_registry::CallId;

use super::waiter::Waiter;
use crate::{scheduler::Ticket, visits::visit};

/// All waiters. One that gets a worker without queueing is not found by its call, and so costs no entry.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    places: Slab<Waiter>,
    by_call: HashMap<CallId, usize, RandomState>,
}

impl Waiters {
    #[inline]
    pub(super) fn insert(&mut self, waiter: Waiter) -> usize {
        self.places.insert(waiter)
    }

    /// Makes a waiter findable by its call, if it still waits.
    #[inline]
    pub(super) fn index(&mut self, place: usize) {
        if let Some(waiter) = self.places.get(place)
            && waiter.is_waiting()
        {
            self.by_call.insert(waiter.call, place);
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, place: usize) -> Waiter {
        if !self.by_call.is_empty() {
            self.forget(place);
        }
        self.places.remove(place)
    }

    fn forget(&mut self, place: usize) {
        let call = self.places[place].call;
        if self.by_call.get(&call) == Some(&place) {
            self.by_call.remove(&call);
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut Waiter> {
        visit();
        self.places.get_mut(place)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Waiter> {
        self.places.iter_mut().map(|(_, waiter)| waiter).inspect(|_| visit())
    }

    /// The ticket of a call that queues.
    pub(super) fn queued(&self, call: CallId) -> Option<Ticket> {
        let place = *self.by_call.get(&call)?;
        visit();
        self.places.get(place).filter(|waiter| waiter.is_waiting()).map(|waiter| waiter.ticket(place))
    }
}

impl Index<usize> for Waiters {
    type Output = Waiter;

    fn index(&self, place: usize) -> &Waiter {
        visit();
        &self.places[place]
    }
}

impl IndexMut<usize> for Waiters {
    fn index_mut(&mut self, place: usize) -> &mut Waiter {
        visit();
        &mut self.places[place]
    }
}
