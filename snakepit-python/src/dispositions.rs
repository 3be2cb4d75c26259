//! What the system does on each signal, which a tool may change through Python without knowing: handlers of C code, this
//! runtime's own among them, are unknown to Python.

use std::{io, mem::MaybeUninit, ptr};

use nix::libc::{c_int, sigaction};

/// One more than the highest number of a signal, on any system.
const NUMBERS: usize = 65;

/// What the system does on each signal, as it was at one time.
pub(crate) struct Dispositions([Option<sigaction>; NUMBERS]);

impl Dispositions {
    /// As they are now.
    pub(crate) fn current() -> Self {
        let mut actions = [None; NUMBERS];
        for (action, number) in actions.iter_mut().zip(0..).skip(1) {
            *action = current(number);
        }
        Self(actions)
    }

    /// Takes the present one of a signal for that which is to be.
    pub(crate) fn remember(&mut self, number: c_int) {
        if let Some(action) = usize::try_from(number).ok().and_then(|number| self.0.get_mut(number)) {
            *action = current(number);
        }
    }

    /// Makes that of a signal what it was.
    ///
    /// # Errors
    /// What the system says.
    #[allow(unsafe_code)]
    pub(crate) fn restore(&self, number: c_int) -> io::Result<()> {
        let action = usize::try_from(number).ok().and_then(|number| self.0.get(number));
        let Some(Some(action)) = action else { return Ok(()) };
        // SAFETY: the action came from the system; its handler is a function of this process, which stays loaded.
        let done = unsafe { sigaction(number, action, ptr::null_mut()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[allow(unsafe_code)]
fn current(number: c_int) -> Option<sigaction> {
    let mut action = MaybeUninit::<sigaction>::uninit();
    // SAFETY: with no new action, `sigaction` only writes the current one to the place it is given, which is large enough; it
    // is read only if the call succeeded.
    unsafe {
        let done = sigaction(number, ptr::null(), action.as_mut_ptr()) == 0;
        done.then(|| action.assume_init())
    }
}

impl std::fmt::Debug for Dispositions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Dispositions").field(&self.0.iter().flatten().count()).finish()
    }
}
