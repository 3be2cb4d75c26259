//! The runtime of whoever is no worker, driven by a thread of its own.

use std::{future::Future, io, sync::OnceLock, time::Duration};

use pyo3::prelude::*;
use tokio::runtime::Handle;

/// How often a wait looks whether Python wants to be interrupted.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The runtime, made with the first use.
///
/// # Errors
/// When the system refuses a file descriptor or a thread.
pub(crate) fn runtime() -> io::Result<&'static Handle> {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    if let Some(handle) = RUNTIME.get() {
        return Ok(handle);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("snakepit-client".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    // Whoever comes second leaves a thread without work, which does no harm.
    Ok(RUNTIME.get_or_init(|| handle))
}

/// Waits while other Python threads go on, and lets signals interrupt.
///
/// # Errors
/// What the handler of a signal raised.
pub(crate) fn wait<T: Send>(py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
    let handle = runtime()?;
    let mut future = std::pin::pin!(future);
    loop {
        let waited =
            py.detach(|| handle.block_on(async { tokio::time::timeout(LOOK_EVERY, future.as_mut()).await }));
        match waited {
            Ok(outcome) => return Ok(outcome),
            Err(_) => py.check_signals()?,
        }
    }
}
