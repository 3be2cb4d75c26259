//! The lock of the driver: the standard library's, or loom's in model checks (`cargo xtask check loom`).

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard};
