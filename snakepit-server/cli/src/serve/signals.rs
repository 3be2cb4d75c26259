//! The signals that stop the daemon, and one that must not.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Caught signals.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    /// `None` when it was ignored from the start: `nohup` does so for programs that shall outlive their terminal.
    hang_up: Option<Signal>,
    /// Caught so that a write beyond `ulimit -f` fails instead of killing the process. Nobody waits for it.
    _file_size: Signal,
}

impl Signals {
    /// Catches them from here on.
    pub(super) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: (!hang_up_is_ignored()).then(|| signal(SignalKind::hangup())).transpose()?,
            _file_size: signal(SignalKind::from_raw(libc::SIGXFSZ))?,
        })
    }

    /// The name of the next one. Cancel safe.
    pub(super) async fn next(&mut self) -> &'static str {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
            _ = hang_up => "SIGHUP",
        }
    }
}

#[allow(unsafe_code, reason = "there is no safe way to ask for the disposition of a signal")]
fn hang_up_is_ignored() -> bool {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing and writes the current one to `current`, which has room for it.
    // A zeroed `sigaction` is a valid value, so it may be read also when the call failed.
    let handler = unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), current.as_mut_ptr());
        current.assume_init().sa_sigaction
    };
    handler == libc::SIG_IGN
}
