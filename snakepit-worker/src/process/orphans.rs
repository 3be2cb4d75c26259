//! Reaps orphans of tools. A daemonized process becomes a child of process 1 of its container, or of a subreaper, and stays a
//! zombie until that process waits for it.
//!
//! Reaping is opt-in, because it would take the exit status of a program's other children.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::RunDir;

/// Whether orphans become children of this process, because it is process 1 of its PID namespace or a subreaper.
#[must_use]
pub fn inherits_orphans() -> bool {
    #[cfg(target_os = "linux")]
    let is_subreaper = nix::sys::prctl::get_child_subreaper().unwrap_or(false);
    #[cfg(not(target_os = "linux"))]
    let is_subreaper = false;
    is_subreaper || std::process::id() == 1
}

/// Reaps all children of this process that are not workers, until `stop` is cancelled.
///
/// Use this only if [`inherits_orphans`] returns true and all children of the program are workers of this host: it takes the
/// exit status of other children.
///
/// # Errors
/// If the handler for `SIGCHLD` cannot be installed.
///
/// # Cancel safety
/// Cancel safe.
#[cfg(target_os = "linux")]
pub async fn reap_orphans(run_dir: Arc<RunDir>, stop: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    /// The delay before the next attempt when an unreaped worker hides other zombies.
    const RETRY_DELAY: std::time::Duration = std::time::Duration::from_millis(50);

    let mut sigchld = signal(SignalKind::child())?;
    loop {
        let may_remain = reap_all(&run_dir);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = sigchld.recv() => {}
            () = tokio::time::sleep(RETRY_DELAY), if may_remain => {}
        }
    }
}

/// Waits until `stop` is cancelled. Orphans are reaped only on Linux.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub async fn reap_orphans(_: Arc<RunDir>, stop: CancellationToken) -> std::io::Result<()> {
    stop.cancelled().await;
    Ok(())
}

/// Reaps orphans. Returns true if unreaped orphans may remain, for example behind the zombie of a worker.
#[cfg(target_os = "linux")]
fn reap_all(run_dir: &RunDir) -> bool {
    /// The maximum number of orphans to reap without an await.
    const MAX_ORPHANS: usize = 256;

    use nix::{
        sys::wait::{Id, WaitPidFlag, waitid, waitpid},
        unistd::Pid,
    };

    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // Many orphans must not block the runtime.
    for _ in 0..MAX_ORPHANS {
        let _spawning = super::spawn::lock_spawning();
        let Some(pid) = waitid(Id::All, flags).ok().and_then(|ended| ended.pid()) else { return false };
        let is_worker = u32::try_from(pid.as_raw()).is_ok_and(|pid| run_dir.ledger().contains(pid));
        if is_worker {
            // The worker's supervisor reaps it.
            return true;
        }
        if waitpid(Pid::from_raw(pid.as_raw()), Some(WaitPidFlag::WNOHANG)).is_ok() {
            tracing::debug!(%pid, "reaped a process that a tool left behind");
        }
    }
    true
}
