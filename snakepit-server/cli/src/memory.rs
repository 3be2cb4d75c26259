//! Gives freed memory back to the system. The allocator keeps what a burst of large values took until its threads allocate again,
//! which on an idle host they do not.

use std::{thread, time::Duration};

/// How often memory is given back.
const EVERY: Duration = Duration::from_secs(5);

#[allow(unsafe_code, reason = "the crate of the allocator does not declare it")]
unsafe extern "C" {
    /// Of mimalloc, the global allocator of this program.
    fn mi_collect(force: bool);
}

/// Starts a thread of its own that does so as long as the process lives: giving back gigabytes takes a while.
pub(crate) fn give_back() {
    let give_back = || {
        loop {
            thread::sleep(EVERY);
            collect();
        }
    };
    if let Err(error) = thread::Builder::new().name("memory".to_owned()).spawn(give_back) {
        tracing::warn!(%error, "freed memory is not given back to the system");
    }
}

#[allow(unsafe_code, reason = "the crate of the allocator has no safe function for it")]
fn collect() {
    // SAFETY: mimalloc is linked, because it is the global allocator, and its function may be called by any thread at any time.
    // `false` leaves what was freed just now, which is likely to be used again.
    unsafe { mi_collect(false) };
}
