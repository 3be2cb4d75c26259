//! The collections of queued and running calls, from `slab` and the standard library. Unit tests use wrappers that count accessed
//! entries, so that the tests can bound the pool's work without a clock.

#[cfg(test)]
pub(crate) use self::counted::{Slab, VecDeque, take_accesses};
#[cfg(not(test))]
pub(crate) use {slab::Slab, std::collections::VecDeque};

/// Wrappers that count accesses. They have only the methods that the pool uses. A method that visits several entries counts
/// each of them.
#[cfg(test)]
mod counted {
    use std::{cell::Cell, iter::Inspect};

    std::thread_local! {
        static ACCESSES: Cell<usize> = const { Cell::new(0) };
    }

    /// Returns the number of entries accessed on this thread since the last call.
    pub(crate) fn take_accesses() -> usize {
        ACCESSES.take()
    }

    fn count() {
        ACCESSES.set(ACCESSES.get() + 1);
    }

    type Counted<I> = Inspect<I, fn(&<I as Iterator>::Item)>;

    fn counted<I: Iterator>(entries: I) -> Counted<I> {
        entries.inspect(|_| count())
    }

    #[derive(Debug)]
    pub(crate) struct Slab<T>(slab::Slab<T>);

    impl<T> Default for Slab<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> Slab<T> {
        pub(crate) const fn new() -> Self {
            Self(slab::Slab::new())
        }

        pub(crate) fn insert(&mut self, value: T) -> usize {
            count();
            self.0.insert(value)
        }

        pub(crate) fn remove(&mut self, key: usize) -> T {
            count();
            self.0.remove(key)
        }

        pub(crate) fn get(&self, key: usize) -> Option<&T> {
            count();
            self.0.get(key)
        }

        pub(crate) fn get_mut(&mut self, key: usize) -> Option<&mut T> {
            count();
            self.0.get_mut(key)
        }

        pub(crate) fn iter(&self) -> Counted<slab::Iter<'_, T>> {
            counted(self.0.iter())
        }

        pub(crate) fn iter_mut(&mut self) -> Counted<slab::IterMut<'_, T>> {
            counted(self.0.iter_mut())
        }
    }

    impl<'a, T> IntoIterator for &'a Slab<T> {
        type Item = (usize, &'a T);
        type IntoIter = Counted<slab::Iter<'a, T>>;

        fn into_iter(self) -> Self::IntoIter {
            self.iter()
        }
    }

    impl<'a, T> IntoIterator for &'a mut Slab<T> {
        type Item = (usize, &'a mut T);
        type IntoIter = Counted<slab::IterMut<'a, T>>;

        fn into_iter(self) -> Self::IntoIter {
            self.iter_mut()
        }
    }

    impl<T> std::ops::Index<usize> for Slab<T> {
        type Output = T;

        fn index(&self, key: usize) -> &T {
            count();
            &self.0[key]
        }
    }

    impl<T> std::ops::IndexMut<usize> for Slab<T> {
        fn index_mut(&mut self, key: usize) -> &mut T {
            count();
            &mut self.0[key]
        }
    }

    #[derive(Debug)]
    pub(crate) struct VecDeque<T>(std::collections::VecDeque<T>);

    impl<T> Default for VecDeque<T> {
        fn default() -> Self {
            Self(std::collections::VecDeque::default())
        }
    }

    impl<T> VecDeque<T> {
        pub(crate) fn len(&self) -> usize {
            self.0.len()
        }

        pub(crate) fn front(&self) -> Option<&T> {
            count();
            self.0.front()
        }

        pub(crate) fn back(&self) -> Option<&T> {
            count();
            self.0.back()
        }

        pub(crate) fn push_back(&mut self, value: T) {
            count();
            self.0.push_back(value);
        }

        pub(crate) fn pop_front(&mut self) -> Option<T> {
            count();
            self.0.pop_front()
        }

        pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
            count();
            self.0.get_mut(index)
        }

        /// Counts only the inserted entry. The pool inserts only recalled calls, nearly always at the head, where no entry moves.
        pub(crate) fn insert(&mut self, index: usize, value: T) {
            count();
            self.0.insert(index, value);
        }

        pub(crate) fn iter(&self) -> Counted<std::collections::vec_deque::Iter<'_, T>> {
            counted(self.0.iter())
        }

        pub(crate) fn retain(&mut self, mut keeps: impl FnMut(&T) -> bool) {
            self.0.retain(|value| {
                count();
                keeps(value)
            });
        }

        pub(crate) fn partition_point(&self, mut is_before: impl FnMut(&T) -> bool) -> usize {
            self.0.partition_point(|value| {
                count();
                is_before(value)
            })
        }

        pub(crate) fn binary_search_by_key<K: Ord>(
            &self,
            key: &K,
            mut key_of: impl FnMut(&T) -> K,
        ) -> Result<usize, usize> {
            self.0.binary_search_by_key(key, |value| {
                count();
                key_of(value)
            })
        }
    }

    impl<'a, T> IntoIterator for &'a mut VecDeque<T> {
        type Item = &'a mut T;
        type IntoIter = Counted<std::collections::vec_deque::IterMut<'a, T>>;

        fn into_iter(self) -> Self::IntoIter {
            counted(self.0.iter_mut())
        }
    }
}
