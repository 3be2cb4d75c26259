//! The slots that can be handed a call now: the least busy first, and among those the least or the most recently used.
//!
//! Least recently used spreads calls over all workers, so they warm up, grow and age alike, and a worker that fails
//! fast is not handed the next call at once. Most recently used finds a worker whose memory is still in the caches of a
//! processor, which matters to calls of microseconds.

const NONE: u32 = u32::MAX;

/// One list of slots per number of calls they run. Everything is O(1) but for the search of the first list that is
/// not empty, which is bounded by how many calls a worker may be handed.
#[derive(Debug)]
pub(super) struct Capacity {
    links: Vec<Link>,
    lists: Vec<Ends>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
    list: u32,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

impl Capacity {
    pub(super) fn new(slots: usize, concurrency: usize) -> Self {
        Self {
            links: vec![Link { before: NONE, after: NONE, list: NONE }; slots],
            lists: vec![Ends { first: NONE, last: NONE }; concurrency],
        }
    }

    /// The least recently used of the least busy slots.
    pub(super) fn first(&self) -> Option<u32> {
        self.least_busy().map(|ends| ends.first)
    }

    /// The most recently used of the least busy slots.
    pub(super) fn warmest(&self) -> Option<u32> {
        self.least_busy().map(|ends| ends.last)
    }

    fn least_busy(&self) -> Option<&Ends> {
        self.lists.iter().find(|ends| ends.first != NONE)
    }

    /// How many calls a slot with capacity runs.
    pub(super) fn running(&self, slot: u32) -> usize {
        self.links[slot as usize].list as usize
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        self.links.get(slot as usize).is_some_and(|link| link.list != NONE)
    }

    /// Puts the slot last among those that run as many calls. With no room left, it is just taken out.
    pub(super) fn put(&mut self, slot: u32, running: u32) {
        self.remove(slot);
        let Some(ends) = self.lists.get_mut(running as usize) else { return };
        let before = std::mem::replace(&mut ends.last, slot);
        if before == NONE {
            ends.first = slot;
        } else {
            self.links[before as usize].after = slot;
        }
        self.links[slot as usize] = Link { before, after: NONE, list: running };
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let none = Link { before: NONE, after: NONE, list: NONE };
        let Link { before, after, list } = std::mem::replace(&mut self.links[slot as usize], none);
        let Some(ends) = self.lists.get_mut(list as usize) else { return };
        match before {
            NONE => ends.first = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.lists[list as usize].last = before,
            after => self.links[after as usize].before = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_busy_come_first_and_among_them_the_least_recently_used() {
        let mut capacity = Capacity::new(4, 2);
        for (slot, running) in [(2, 1), (0, 0), (3, 0), (1, 1)] {
            capacity.put(slot, running);
        }
        let mut order = Vec::new();
        while let Some(slot) = capacity.first() {
            order.push(slot);
            capacity.remove(slot);
        }
        assert_eq!(order, [0, 3, 2, 1]);
    }

    #[test]
    fn the_warmest_is_the_one_that_came_last() {
        let mut capacity = Capacity::new(3, 2);
        for (slot, running) in [(0, 0), (1, 0), (2, 1)] {
            capacity.put(slot, running);
        }
        assert_eq!(capacity.warmest(), Some(1));
        capacity.put(0, 0);
        assert_eq!(capacity.warmest(), Some(0));
        assert_eq!(capacity.first(), Some(1));
    }

    #[test]
    fn a_slot_leaves_from_the_middle() {
        let mut capacity = Capacity::new(3, 1);
        (0..3).for_each(|slot| capacity.put(slot, 0));
        capacity.remove(1);
        assert!(!capacity.contains(1));
        capacity.put(0, 0);
        assert_eq!(capacity.first(), Some(2));
        capacity.put(2, 1);
        assert!(!capacity.contains(2), "a full slot has no capacity");
        assert_eq!(capacity.first(), Some(0));
    }
}
