//! The slots that can take a call now, ordered by their [rank](super::Up::rank) and then by recency of use.
//!
//! Long calls go to the least recently used of the least busy slots. This spreads them over all workers, and a worker
//! that fails fast does not get the next call immediately. Brief calls go to the most recently used one, whose memory
//! is still in the CPU caches.

/// The end of a list, and the list of a slot that is in none.
const NONE: u32 = u32::MAX;

/// One linked list of slots for each rank. Every operation is O(1), except that `least_busy` searches the
/// lists for the first one that is not empty.
#[derive(Debug)]
pub(super) struct Capacity {
    links: Vec<Link>,
    lists: Vec<Ends>,
}

/// The neighbors of a slot in its list, and the number of the list.
#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    list: u32,
}

/// The first and the last slot of a list.
#[derive(Debug, Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

impl Capacity {
    pub(super) fn new(slots: usize, ranks: usize) -> Self {
        Self {
            links: vec![Link { previous: NONE, next: NONE, list: NONE }; slots],
            lists: vec![Ends { first: NONE, last: NONE }; ranks],
        }
    }

    /// The least recently used of the least busy slots.
    pub(super) fn least_recent(&self) -> Option<u32> {
        self.least_busy().map(|ends| ends.first)
    }

    /// The most recently used of the least busy slots.
    pub(super) fn most_recent(&self) -> Option<u32> {
        self.least_busy().map(|ends| ends.last)
    }

    fn least_busy(&self) -> Option<&Ends> {
        self.lists.iter().find(|ends| ends.first != NONE)
    }

    /// Adds lists, so that slots may have ranks below `ranks`.
    pub(super) fn reserve(&mut self, ranks: usize) {
        if self.lists.len() < ranks {
            self.lists.resize(ranks, Ends { first: NONE, last: NONE });
        }
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        self.links.get(slot as usize).is_some_and(|link| link.list != NONE)
    }

    /// Moves a slot to the end of the list for this rank. Removes the slot if there is no such list.
    pub(super) fn insert(&mut self, slot: u32, rank: usize) {
        self.remove(slot);
        let Some(ends) = self.lists.get_mut(rank) else { return };
        let previous = std::mem::replace(&mut ends.last, slot);
        if previous == NONE {
            ends.first = slot;
        } else {
            self.links[previous as usize].next = slot;
        }
        self.links[slot as usize] = Link { previous, next: NONE, list: rank as u32 };
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let unlinked = Link { previous: NONE, next: NONE, list: NONE };
        let Link { previous, next, list } = std::mem::replace(&mut self.links[slot as usize], unlinked);
        let Some(ends) = self.lists.get_mut(list as usize) else { return };
        match previous {
            NONE => ends.first = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NONE => self.lists[list as usize].last = previous,
            next => self.links[next as usize].previous = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_ordered_by_their_calls_and_then_by_least_recent_use() {
        let mut capacity = Capacity::new(4, 2);
        for (slot, running) in [(2, 1), (0, 0), (3, 0), (1, 1)] {
            capacity.insert(slot, running);
        }
        let mut order = Vec::new();
        while let Some(slot) = capacity.least_recent() {
            order.push(slot);
            capacity.remove(slot);
        }
        assert_eq!(order, [0, 3, 2, 1]);
    }

    #[test]
    fn the_most_recent_slot_is_the_one_that_was_inserted_last() {
        let mut capacity = Capacity::new(3, 2);
        for (slot, running) in [(0, 0), (1, 0), (2, 1)] {
            capacity.insert(slot, running);
        }
        assert_eq!(capacity.most_recent(), Some(1));
        capacity.insert(0, 0);
        assert_eq!(capacity.most_recent(), Some(0));
        assert_eq!(capacity.least_recent(), Some(1));
    }

    #[test]
    fn a_slot_can_be_removed_from_the_middle() {
        let mut capacity = Capacity::new(3, 1);
        (0..3).for_each(|slot| capacity.insert(slot, 0));
        capacity.remove(1);
        assert!(!capacity.contains(1));
        capacity.insert(0, 0);
        assert_eq!(capacity.least_recent(), Some(2));
        capacity.insert(2, 1);
        assert!(!capacity.contains(2), "a full slot has no capacity");
        assert_eq!(capacity.least_recent(), Some(0));
    }
}
