//! The signals that stop the daemon.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Caught signals.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    /// `None` if the process ignores the signal from the start. `nohup` sets this for programs that must outlive their terminal.
    hang_up: Option<Signal>,
    /// Caught only so that a write above `ulimit -f` fails instead of killing the process.
    _file_size: Signal,
}

impl Signals {
    /// Begins to catch the signals.
    pub(super) fn catch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: (!is_hang_up_ignored()).then(|| signal(SignalKind::hangup())).transpose()?,
            _file_size: signal(SignalKind::from_raw(libc::SIGXFSZ))?,
        })
    }

    /// Waits for the next stop signal and returns its name. Cancel safe.
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

#[allow(unsafe_code, reason = "no safe function returns the disposition of a signal")]
fn is_hang_up_ignored() -> bool {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, the call only writes the current one to `current`, which is large enough. A zeroed `sigaction` is
    // a valid value, so reading it is sound even if the call failed.
    let handler = unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), current.as_mut_ptr());
        current.assume_init().sa_sigaction
    };
    handler == libc::SIG_IGN
}
