//! What stops the daemon: signals, and the end of its standard input.

use std::{
    io::{ErrorKind, Read, StdinLock},
    os::fd::AsFd,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::Instant,
};

/// A repetition of a signal within this time counts as the same signal. The command `timeout` sends its signal to the daemon and
/// to the process group, so it arrives twice.
const REPETITION_TIME: Duration = Duration::from_millis(50);

/// Caught signals, and the end of standard input if the daemon stops with it.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    /// `None` if the process ignores the signal from the start. `nohup` sets this for programs that must outlive their terminal.
    hang_up: Option<Signal>,
    /// Caught only so that a write beyond `ulimit -f` fails instead of killing the process.
    _file_size: Signal,
    /// Receives at the end of standard input. `None` without `--stop-with-stdin`, and after the end.
    stdin_end: Option<oneshot::Receiver<()>>,
}

impl Signals {
    /// Begins to catch the signals. If `with_stdin`, begins to read standard input too.
    pub(super) fn catch(with_stdin: bool) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: (!is_hang_up_ignored()).then(|| signal(SignalKind::hangup())).transpose()?,
            _file_size: signal(SignalKind::from_raw(libc::SIGXFSZ))?,
            stdin_end: with_stdin.then(watch_stdin).transpose()?,
        })
    }

    /// Waits for the next stop signal and returns its name, or `end of stdin`. Cancel safe.
    pub(super) async fn next(&mut self) -> &'static str {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let stdin_end = async {
            match &mut self.stdin_end {
                Some(end) => drop(end.await),
                None => std::future::pending().await,
            }
            self.stdin_end = None;
        };
        tokio::select! {
            () = stdin_end => "end of stdin",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
            _ = hang_up => "SIGHUP",
        }
    }

    /// Waits for the next stop signal after the signal `first`, and returns its name. `received` is the time of `first`, whose
    /// repetitions it skips. Cancel safe.
    pub(super) async fn next_after(&mut self, first: &str, received: Instant) -> &'static str {
        loop {
            let name = self.next().await;
            if name != first || received.elapsed() > REPETITION_TIME {
                return name;
            }
        }
    }
}

/// Reads and discards standard input on a thread. The returned channel receives, or closes, at its end or after an error.
fn watch_stdin() -> std::io::Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    let read_to_end = move || {
        let mut buffer = [0; 4096];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait_readable(&stdin),
                Err(error) if error.kind() != ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        // The daemon may have stopped for another reason.
        let _ = sender.send(());
    };
    std::thread::Builder::new().name("snakepit-stdin".to_owned()).spawn(read_to_end)?;
    Ok(receiver)
}

/// Waits until standard input is readable or has ended. Needed if its parent has made it non-blocking.
fn wait_readable(stdin: &StdinLock<'_>) {
    // After an error, the next read reports one too.
    let _ = poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
}

/// Whether the parent of this program, such as nohup, ignores SIGHUP for it.
#[allow(unsafe_code, reason = "no safe function returns the disposition of a signal")]
pub(crate) fn is_hang_up_ignored() -> bool {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, the call only writes the current one to `current`, which is large enough. A zeroed
    // `sigaction` is a valid value, so reading it is sound even if the call failed.
    let handler = unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), current.as_mut_ptr());
        current.assume_init().sa_sigaction
    };
    handler == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal::SIGINT, Signal::SIGQUIT, raise};

    use super::*;

    #[tokio::test]
    async fn a_repeated_signal_counts_once() {
        let mut signals = Signals::catch(false).unwrap();
        raise(SIGQUIT).unwrap();
        let (first, received) = (signals.next().await, Instant::now());
        assert_eq!(first, "SIGQUIT");
        raise(SIGQUIT).unwrap();
        let repetition = tokio::time::timeout(REPETITION_TIME / 2, signals.next_after(first, received)).await;
        assert!(repetition.is_err(), "{repetition:?}");
        raise(SIGINT).unwrap();
        assert_eq!(signals.next_after(first, received).await, "SIGINT");
        tokio::time::sleep_until(received + 2 * REPETITION_TIME).await;
        raise(SIGQUIT).unwrap();
        assert_eq!(signals.next_after(first, received).await, "SIGQUIT");
    }
}
