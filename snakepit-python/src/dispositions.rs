//! [`Dispositions`]: the signal dispositions of the process, including handlers of C code and of this runtime.
//!
//! Python's own table does not show such handlers, so a tool can replace them through Python by accident.

use std::{io, mem::MaybeUninit, ptr};

use nix::libc::{c_int, sigaction};

/// One more than the highest signal number on any system.
const SIGNALS: usize = 65;

/// The dispositions of all signals at one point in time.
pub(crate) struct Dispositions([Option<sigaction>; SIGNALS]);

impl Dispositions {
    /// Reads the current dispositions.
    pub(crate) fn current() -> Self {
        let mut actions = [None; SIGNALS];
        for (action, number) in actions.iter_mut().zip(0..).skip(1) {
            *action = current(number);
        }
        Self(actions)
    }

    /// Replaces the saved disposition of a signal with the current one.
    pub(crate) fn remember(&mut self, number: c_int) {
        if let Some(action) = usize::try_from(number).ok().and_then(|number| self.0.get_mut(number)) {
            *action = current(number);
        }
    }

    /// Restores the saved disposition of a signal.
    ///
    /// # Errors
    /// The error of the operating system.
    #[allow(unsafe_code)]
    pub(crate) fn restore(&self, number: c_int) -> io::Result<()> {
        let action = usize::try_from(number).ok().and_then(|number| self.0.get(number));
        let Some(Some(action)) = action else { return Ok(()) };
        // SAFETY: the action came from `sigaction`; its handler is a function of this process, which stays loaded.
        let result = unsafe { sigaction(number, action, ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[allow(unsafe_code)]
fn current(number: c_int) -> Option<sigaction> {
    let mut action = MaybeUninit::<sigaction>::uninit();
    // SAFETY: without a new action, `sigaction` only writes the current one to the given memory, which is large enough.
    // The memory is read only if the call succeeded.
    unsafe {
        let is_read = sigaction(number, ptr::null(), action.as_mut_ptr()) == 0;
        is_read.then(|| action.assume_init())
    }
}

impl std::fmt::Debug for Dispositions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Dispositions").field(&self.0.iter().flatten().count()).finish()
    }
}
