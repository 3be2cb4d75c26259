//! Looking at processes, signalling them, and waiting for what they do.

use std::time::Duration;

pub use nix::sys::signal::Signal;
use nix::{sys::signal::kill, unistd::Pid};
use tokio::time::Instant;

/// Whether a process lives. A zombie does not.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the parenthesized command name, which may itself hold parentheses.
        Ok(stat) => !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => false,
    }
}

/// Sends a signal to one process that the test started.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap_or_else(|e| panic!("cannot signal {pid}: {e}"));
}

/// Polls a condition until it holds; panics with `what` when it does not within `bound`.
pub async fn eventually<F>(what: &str, bound: Duration, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < bound, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
