//! Functions that find processes, send signals, and wait for conditions.

use std::time::Duration;

pub use nix::sys::signal::Signal;
use nix::{sys::signal::kill, unistd::Pid};
use tokio::time::Instant;

/// The time limit for an event that a test expects. Long, because only a failing test waits for it.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a process is running. A zombie counts as ended.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the command name in parentheses, which may contain parentheses itself.
        Ok(stat) => !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => false,
    }
}

/// Finds the processes whose command line contains a string. Zombies have no command line.
///
/// # Panics
/// If `/proc` cannot be read.
#[must_use]
pub fn processes_with(text: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("processes are listed in /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has_text = |pid: &u32| {
        // If the process has ended meanwhile, the file is missing.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    pids.filter(has_text).collect()
}

/// Sends a signal to a process of the test.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap_or_else(|e| panic!("cannot signal {pid}: {e}"));
}

/// Polls a condition until it is true. Panics with the description if the condition is still false after `timeout`.
pub async fn eventually<F>(description: &str, timeout: Duration, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < timeout, "not within {timeout:?}: {description}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
