//! Counts the entries of the queue and of the tables of calls that the pool visits, so that tests can bound its work
//! without a clock. Compiled to nothing outside of unit tests.

#[cfg(test)]
std::thread_local! {
    static VISITS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts one visited entry.
#[inline]
pub(crate) fn visit() {
    #[cfg(test)]
    VISITS.set(VISITS.get() + 1);
}

/// The number of entries visited on this thread since the last call.
#[cfg(test)]
pub(crate) fn take() -> usize {
    VISITS.take()
}
