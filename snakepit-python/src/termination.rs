//! The handling of SIGTERM that this runtime set up, which a tool may replace through Python without knowing.

use std::{io, mem::MaybeUninit, ptr};

use nix::libc::{SIGTERM, sigaction};

/// What the system does on SIGTERM, as it was at one time.
#[derive(Clone, Copy)]
pub(crate) struct Termination(Option<sigaction>);

impl Termination {
    /// As it is now.
    #[allow(unsafe_code)]
    pub(crate) fn current() -> Self {
        let mut action = MaybeUninit::<sigaction>::uninit();
        // SAFETY: with no new action, `sigaction` only writes the current one to the place it is given, which is large
        // enough; it is read only if the call succeeded.
        let action = unsafe {
            let done = sigaction(SIGTERM, ptr::null(), action.as_mut_ptr()) == 0;
            done.then(|| action.assume_init())
        };
        Self(action)
    }

    /// Makes it so again.
    ///
    /// # Errors
    /// What the system says.
    #[allow(unsafe_code)]
    pub(crate) fn restore(&self) -> io::Result<()> {
        let Some(action) = &self.0 else { return Ok(()) };
        // SAFETY: the action came from the system; its handler is a function of this process, which stays loaded.
        let done = unsafe { sigaction(SIGTERM, action, ptr::null_mut()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl std::fmt::Debug for Termination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Termination").field(&self.0.is_some()).finish()
    }
}
