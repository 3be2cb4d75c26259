//! Interrupts cancelled calls: a thread that sends Python's main thread a signal.
//!
//! A signal has two advantages over `PyThreadState_SetAsyncExc`. It also ends blocking system calls such as
//! `time.sleep`, and its handler runs on the main thread, where it checks that the cancelled call is still running. So
//! a late signal cannot hit the next call, and the thread needs no GIL.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use nix::sys::{pthread, signal::Signal};

use crate::state::CallState;

/// The signal that makes the main thread check whether its call was cancelled. Its default action is to be ignored, so
/// it does not harm child processes that receive it.
pub(crate) const SIGNAL: Signal = Signal::SIGURG;
/// How long a cancelled call may run before the first signal.
const GRACE: Duration = Duration::from_millis(100);
/// The interval between further signals, which reach a tool that caught the exception.
const REPEAT_INTERVAL: Duration = Duration::from_millis(900);

/// Starts the thread. Must be called on the thread that runs the tools. The thread ends when all senders are dropped.
pub(crate) fn spawn() -> std::io::Result<mpsc::Sender<Arc<CallState>>> {
    let executor = pthread::pthread_self();
    let (sender, cancelled) = mpsc::channel::<Arc<CallState>>();
    std::thread::Builder::new().name("snakepit-cancel".to_owned()).spawn(move || {
        for call in cancelled {
            // The first signal cancels a coroutine through its event loop. If the coroutine blocks the loop, the second
            // signal follows soon.
            let (mut wait, mut next_wait) =
                if call.is_async() { (Duration::ZERO, Duration::ZERO) } else { (GRACE, REPEAT_INTERVAL) };
            while !call.wait_ended(wait) {
                // The main thread lives as long as the process, so the signal always has a target.
                let _ = pthread::pthread_kill(executor, SIGNAL);
                if call.wait_ended(GRACE) {
                    break;
                }
                wait = if call.take_deferred() {
                    Duration::ZERO
                } else {
                    std::mem::replace(&mut next_wait, REPEAT_INTERVAL)
                };
            }
        }
    })?;
    Ok(sender)
}
