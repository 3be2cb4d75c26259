//! The ledger: which processes this host started, on disk, so that the next host can reap what a crash leaves.
//!
//! One file a run, one line of JSON an event. A process is known by its pid, its start time and the boot they belong
//! to, so a process that merely got the same pid later is never touched.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use snakepit_proto::launch;

use super::proc;

/// The ledger's name in a run's directory.
const FILE: &str = "ledger";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Host { pid: u32, start_time: Option<u64>, boot: String },
    Started { pid: u32, start_time: Option<u64> },
    Ended { pid: u32 },
}

/// The ledger of this host's run.
#[derive(Debug)]
pub(super) struct Ledger {
    file: Mutex<File>,
}

impl Ledger {
    /// Opens a new ledger and enters this process as its host.
    pub(super) fn create(run: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(run.join(FILE))?;
        let ledger = Self { file: Mutex::new(file) };
        let pid = std::process::id();
        ledger.enter(&Entry::Host { pid, start_time: proc::start_time(pid), boot: proc::boot_id() })?;
        Ok(ledger)
    }

    /// Enters a process that leads a group of its own.
    pub(super) fn started(&self, pid: u32) -> std::io::Result<()> {
        self.enter(&Entry::Started { pid, start_time: proc::start_time(pid) })
    }

    /// Strikes a process out. If that fails, the next host finds a dead process, which does no harm.
    pub(super) fn ended(&self, pid: u32) {
        if let Err(error) = self.enter(&Entry::Ended { pid }) {
            tracing::warn!(pid, %error, "failed to strike a worker out of the ledger");
        }
    }

    fn enter(&self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        // One write a line: whole lines survive a crash between two of them, and a torn last one is skipped.
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }
}

/// Kills what a dead host's run left, and removes its directory. Returns how many processes were killed; `None` when
/// the run's host lives, or nothing is known about it.
pub(super) fn reap(run: &Path, run_id: &str) -> Option<usize> {
    let ledger = std::fs::read_to_string(run.join(FILE)).ok()?;
    let mut entries = ledger.lines().map_while(|line| serde_json::from_str(line).ok());
    let Some(Entry::Host { pid, start_time, boot }) = entries.next() else {
        tracing::warn!(ledger = %run.join(FILE).display(), "skipped a ledger that cannot be read");
        return None;
    };
    let same_boot = boot == proc::boot_id();
    if same_boot && proc::start_time(pid) == start_time {
        return None;
    }
    let mut left = Vec::new();
    for entry in entries {
        match entry {
            Entry::Started { pid, start_time } => left.push((pid, start_time)),
            Entry::Ended { pid: ended } => left.retain(|(pid, _)| *pid != ended),
            Entry::Host { .. } => {}
        }
    }
    let killed =
        if same_boot { left.iter().map(|(pid, start)| kill_left(*pid, *start, run_id)).sum() } else { 0 };
    if let Err(error) = std::fs::remove_dir_all(run) {
        tracing::warn!(dir = %run.display(), %error, "failed to remove a dead host's directory");
    }
    Some(killed)
}

/// Kills one group that a dead host left, if it is still that group; returns how many processes or groups that were.
fn kill_left(pid: u32, start: Option<u64>, run_id: &str) -> usize {
    if start.is_some() && proc::start_time(pid) == start {
        proc::kill_group(pid);
        return 1;
    }
    orphaned_members(pid, run_id)
}

/// The leader is gone, perhaps its pid is another process by now: only what carries this run's id is ours.
#[cfg(target_os = "linux")]
fn orphaned_members(pgid: u32, run_id: &str) -> usize {
    let members = proc::group_members_with(pgid, &format!("{}={run_id}", launch::ENV_RUN_ID));
    members.iter().for_each(|pid| proc::kill_one(*pid));
    members.len()
}

#[cfg(not(target_os = "linux"))]
fn orphaned_members(_: u32, _: &str) -> usize {
    let _ = launch::ENV_RUN_ID;
    0
}
