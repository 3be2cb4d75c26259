//! Returns freed memory to the system. After a burst of large values, the allocator keeps their memory until its threads allocate
//! again, which does not happen on an idle host.

use std::{thread, time::Duration};

/// The time between two collections.
const INTERVAL: Duration = Duration::from_secs(5);

#[allow(unsafe_code, reason = "the crate of the allocator does not declare it")]
unsafe extern "C" {
    /// A function of mimalloc, the global allocator of this program.
    fn mi_collect(force: bool);
}

/// Starts a thread that returns freed memory periodically. It needs its own thread, because returning gigabytes takes a while.
pub(crate) fn start_collector() {
    let run = || {
        loop {
            thread::sleep(INTERVAL);
            collect();
        }
    };
    if let Err(error) = thread::Builder::new().name("memory".to_owned()).spawn(run) {
        tracing::warn!(%error, "failed to start the thread that returns freed memory to the system");
    }
}

#[allow(unsafe_code, reason = "the crate of the allocator has no safe function for it")]
fn collect() {
    // SAFETY: mimalloc is linked, because it is the global allocator, and any thread may call this function at any time.
    // `false` keeps memory that was freed recently and is likely to be reused.
    unsafe { mi_collect(false) };
}
