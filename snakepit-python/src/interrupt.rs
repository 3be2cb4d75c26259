//! Ending a running call from outside: a thread that knocks on Python's main thread with a signal.
//!
//! A signal, rather than `PyThreadState_SetAsyncExc`, because it also ends blocking system calls such as `time.sleep`,
//! and because the exception is raised by a handler on the main thread itself: whether the call still runs is checked
//! at that very moment, so a late signal can never hit the next call. No thread but Python's own needs the GIL.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use nix::sys::{pthread, signal::Signal};

use crate::state::CallState;

/// The signal that means "look whether the current call is cancelled". Its default is to be ignored, so it harms no
/// child process that it might reach.
pub(crate) const SIGNAL: Signal = Signal::SIGURG;
/// How long a running call may take to notice by itself that it was cancelled.
const GRACE: Duration = Duration::from_millis(100);
/// How much longer until the next knock, which counts when the tool swallowed the exception.
const AGAIN: Duration = Duration::from_millis(900);

/// Starts the thread. Must be called on the thread that runs the tools; it ends when all senders are gone.
pub(crate) fn spawn() -> std::io::Result<mpsc::Sender<Arc<CallState>>> {
    let executor = pthread::pthread_self();
    let (sender, cancelled) = mpsc::channel::<Arc<CallState>>();
    std::thread::Builder::new().name("snakepit-cancel".to_owned()).spawn(move || {
        for call in cancelled {
            // A coroutine that does not come around to its cancellation is knocked at a second time soon.
            let (mut patience, mut next) =
                if call.is_async() { (Duration::ZERO, Duration::ZERO) } else { (GRACE, AGAIN) };
            while !call.wait_ended(patience) {
                // The main thread lives as long as the process, so there is always somebody to knock on.
                let _ = pthread::pthread_kill(executor, SIGNAL);
                if call.wait_ended(GRACE) {
                    break;
                }
                patience =
                    if call.take_deferred() { Duration::ZERO } else { std::mem::replace(&mut next, AGAIN) };
            }
        }
    })?;
    Ok(sender)
}
