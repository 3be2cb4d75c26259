//! Atomics of the standard library, or loom's in model checks (`cargo xtask check loom`).

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::AtomicUsize;
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic::AtomicUsize;
