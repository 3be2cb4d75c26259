//! Locks and atomics of the registry: the standard library's, or loom's in model checks (`cargo xtask check loom`).

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{Mutex, RwLock, atomic::AtomicU64};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{Mutex, RwLock, atomic::AtomicU64};
