//! [`ProcessGroup`]: a worker's process and its descendants, which are killed on drop.

use std::sync::Arc;

use tokio::process::Child;

use super::{RunDir, os_process};
use crate::descendants::{Mark, kill_in_one_scan, kill_marked};

/// A process that leads its process group, carries a [`Mark`], and has an entry in the ledger.
///
/// Dropping it before the process is reaped kills the group and all other descendants, for example if a launch is aborted or
/// the runtime shuts down. Dropping it always removes the entry.
#[derive(Debug)]
pub(super) struct ProcessGroup {
    pub(super) child: Child,
    pid: u32,
    mark: Option<Mark>,
    run_dir: Arc<RunDir>,
}

impl ProcessGroup {
    /// Marks a process that has just been started, and adds it to the ledger. Returns `None` if it is reaped already.
    pub(super) fn new(child: Child, run_dir: Arc<RunDir>) -> Option<Self> {
        let pid = child.id()?;
        // Marks the process before anything that blocks, because children that it forks earlier carry no mark.
        let mark = Mark::next(run_dir.id()).filter(|mark| match mark.apply_to(pid) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(pid, %error, "failed to mark a worker; its daemonized descendants may outlive it");
                false
            }
        });
        if let Err(error) = run_dir.ledger().insert(pid) {
            tracing::warn!(pid, %error, "failed to add a worker to the ledger");
        }
        Some(Self { child, pid, mark, run_dir })
    }

    /// Kills descendants outside of the process group. Call this after the process has exited.
    pub(super) async fn kill_descendants(&self) {
        let Some(mark) = self.mark else { return };
        let killed = tokio::task::spawn_blocking(move || kill_marked(|other| other == mark)).await;
        let killed = killed.map_or(0, |killed| killed.len());
        if killed > 0 {
            tracing::info!(worker_pid = self.pid, killed, "killed processes that a worker left behind");
        }
    }

    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // Until the leader is reaped, its pid cannot refer to another group.
        if self.child.id().is_some() {
            os_process::kill_group(self.pid);
            if let Some(mark) = self.mark {
                // Runs on this thread, because the host may exit before another thread has finished. One scan takes about a
                // millisecond.
                let _ = kill_in_one_scan(|other| other == mark);
            }
        }
        self.run_dir.ledger().remove(self.pid);
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{process::Stdio, time::Duration};

    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    /// Starts a leader with a child in its group. Returns the group and the pid of the child.
    #[allow(clippy::disallowed_methods, reason = "a stand-in for a worker")]
    async fn spawn_with_child(run_dir: &Arc<RunDir>) -> (ProcessGroup, u32) {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "sleep 60 & echo $!; wait"]).process_group(0).kill_on_drop(true);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let group = ProcessGroup::new(child, Arc::clone(run_dir)).unwrap();
        (group, lines.next_line().await.unwrap().unwrap().parse().unwrap())
    }

    fn is_running(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    async fn wait_for_exit(pid: u32) {
        let exited = async {
            while is_running(pid) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), exited).await.expect("the process still runs");
    }

    #[tokio::test]
    async fn dropping_a_group_kills_all_its_processes() {
        let base = tempfile::tempdir().unwrap();
        let run_dir = Arc::new(RunDir::create(Some(base.path())).unwrap());
        let (group, child) = spawn_with_child(&run_dir).await;
        assert!(is_running(child) && !run_dir.ledger().is_empty());
        // A runtime that shuts down drops its tasks.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.handle().spawn(async move {
            let _group = group;
            std::future::pending::<()>().await;
        });
        tokio::task::spawn_blocking(move || drop(runtime)).await.unwrap();
        wait_for_exit(child).await;
        assert!(run_dir.ledger().is_empty());
    }
}
