//! Atomics of the standard library, or loom's in model checks (`cargo xtask check loom`).

#[cfg(not(all(test, loom)))]
pub(crate) use {futures_util::task::AtomicWaker, std::sync::atomic::AtomicI64};
#[cfg(all(test, loom))]
pub(crate) use {loom::sync::atomic::AtomicI64, model::AtomicWaker};

#[cfg(all(test, loom))]
mod model {
    use std::task::Waker;

    /// loom's waker with the interface of `futures_util`.
    #[derive(Debug)]
    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self(loom::future::AtomicWaker::new())
        }

        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }
    }
}
