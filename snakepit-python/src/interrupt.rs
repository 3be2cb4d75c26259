//! Interrupts cancelled calls with signals to Python's main thread.
//!
//! Signals have three advantages over `PyThreadState_SetAsyncExc`. They also interrupt blocking system calls such as
//! `time.sleep`. The handler runs on the main thread and checks that the cancelled call is still running, so a late signal
//! cannot interrupt the next call. The sending thread does not need the GIL.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use nix::sys::{pthread, signal::Signal};
use tokio::time::Instant;

use crate::{
    executor::LoopSignal,
    state::{CallState, Stage},
};

/// The signal that makes the main thread check whether its call was cancelled. Its default action is to ignore it, so it does
/// not harm child processes that receive it.
pub(crate) const SIGNAL: Signal = Signal::SIGURG;
/// The time that a cancelled call has to end before the first signal, and after each signal.
const GRACE: Duration = Duration::from_millis(100);
/// The delay, after [`GRACE`], before the thread sends another signal to a tool that caught the exception.
const REPEAT_INTERVAL: Duration = Duration::from_millis(900);

/// Starts the thread `snakepit-cancel`, which interrupts the calls sent to the returned channel. Must be called on the thread that runs
/// the tools. The started thread ends when all senders are dropped.
///
/// # Errors
///
/// If the system cannot start a thread.
pub(crate) fn spawn() -> std::io::Result<mpsc::Sender<Arc<CallState>>> {
    let executor = pthread::pthread_self();
    let (sender, cancelled) = mpsc::channel::<Arc<CallState>>();
    std::thread::Builder::new().name("snakepit-cancel".to_owned()).spawn(move || {
        for call in cancelled {
            // The first signal cancels a coroutine through its event loop. The second one follows soon, because a coroutine
            // that blocks the loop does not notice the first.
            let (mut wait, mut following_wait) =
                if call.is_async() { (Duration::ZERO, Duration::ZERO) } else { (GRACE, REPEAT_INTERVAL) };
            while !call.wait_ended(wait) {
                // The main thread lives as long as the process, so the signal always has a target.
                let _ = pthread::pthread_kill(executor, SIGNAL);
                if call.wait_ended(GRACE) {
                    break;
                }
                // A deferred interruption, for example during an import, has not taken effect yet.
                wait = if call.take_deferred() {
                    Duration::ZERO
                } else {
                    std::mem::replace(&mut following_wait, REPEAT_INTERVAL)
                };
            }
        }
    })?;
    Ok(sender)
}

/// Like [`spawn`], for a worker that runs calls concurrently. The event loop cancels the tasks of cancelled calls. Until they have
/// ended, the thread also sends signals, because a cancelled call may block the event loop. The handler of the signal raises an
/// exception only if the running code belongs to a cancelled call.
pub(crate) fn spawn_concurrent(signal: Arc<LoopSignal>) -> std::io::Result<mpsc::Sender<Arc<CallState>>> {
    let executor = pthread::pthread_self();
    let (sender, cancelled) = mpsc::channel::<Arc<CallState>>();
    std::thread::Builder::new().name("snakepit-cancel".to_owned()).spawn(move || {
        // The calls that have not ended.
        let mut calls: Vec<Arc<CallState>> = Vec::new();
        let mut signal_at = Instant::now();
        loop {
            let next = match calls.is_empty() {
                true => cancelled.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => cancelled.recv_timeout(signal_at.saturating_duration_since(Instant::now())),
            };
            match next {
                Ok(call) => {
                    if calls.is_empty() {
                        signal_at = Instant::now() + GRACE;
                    }
                    signal.cancel(call.id);
                    calls.push(call);
                }
                Err(RecvTimeoutError::Timeout) => {
                    calls.retain(|call| call.stage() != Stage::Ended);
                    if !calls.is_empty() {
                        // The main thread lives as long as the process, so the signal always has a target.
                        let _ = pthread::pthread_kill(executor, SIGNAL);
                    }
                    signal_at = Instant::now() + GRACE;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    })?;
    Ok(sender)
}
