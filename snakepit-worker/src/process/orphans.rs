//! Reaping what tools leave behind: processes that were daemonized become children of the first process of a container, or of a
//! subreaper, and stay zombies unless that process waits for them.
//!
//! Only a program without children of its own may reap this way, so it must be asked for.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::RunDir;

/// Whether orphans become children of this process: it is the first of its PID namespace, or a subreaper.
#[must_use]
pub fn inherits_orphans() -> bool {
    #[cfg(target_os = "linux")]
    let is_subreaper = nix::sys::prctl::get_child_subreaper().unwrap_or(false);
    #[cfg(not(target_os = "linux"))]
    let is_subreaper = false;
    is_subreaper || std::process::id() == 1
}

/// Reaps every child of this process that is no worker, until `stop`. Of use only where [`inherits_orphans`], and only for a
/// program whose children are all workers of this host: it takes the exit status of any other child away.
///
/// # Errors
/// When the end of children cannot be watched.
#[cfg(target_os = "linux")]
pub async fn reap_orphans(run_dir: Arc<RunDir>, stop: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    /// How soon to look retry when a worker that is about to be reaped hides those behind it.
    const RETRY_DELAY: std::time::Duration = std::time::Duration::from_millis(50);

    let mut sigchld = signal(SignalKind::child())?;
    loop {
        let retry = reap_all(&run_dir);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = sigchld.recv() => {}
            () = tokio::time::sleep(RETRY_DELAY), if retry => {}
        }
    }
}

/// Elsewhere this is no container's first process.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub async fn reap_orphans(_: Arc<RunDir>, stop: CancellationToken) -> std::io::Result<()> {
    stop.cancelled().await;
    Ok(())
}

/// Returns whether a worker is in the way.
#[cfg(target_os = "linux")]
fn reap_all(run_dir: &RunDir) -> bool {
    use nix::{
        sys::wait::{Id, WaitPidFlag, waitid, waitpid},
        unistd::Pid,
    };

    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // Bounded, so that a flood of orphans cannot hold up the runtime.
    for _ in 0..256 {
        let _spawning = super::spawn::lock_spawning();
        let Some(pid) = waitid(Id::All, look).ok().and_then(|ended| ended.pid()) else { return false };
        let is_worker = u32::try_from(pid.as_raw()).is_ok_and(|pid| run_dir.ledger().contains(pid));
        if is_worker {
            // Its supervisor waits for it.
            return true;
        }
        if waitpid(Pid::from_raw(pid.as_raw()), Some(WaitPidFlag::WNOHANG)).is_ok() {
            tracing::debug!(%pid, "reaped a process that a tool left behind");
        }
    }
    true
}
