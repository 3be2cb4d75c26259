//! The ledger: which processes this host started, on disk, so that the next host can reap what a crash leaves.
//!
//! One file a run, one line of JSON an event. A process is known by its pid, its start time and the boot they belong
//! to, so a process that merely got the same pid later is never touched. A host is alive as long as it holds the lock on its
//! ledger, whether it can be seen from here or not.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use snakepit_proto::launch;

use super::proc;

/// The ledger's name in a run's directory.
const FILE: &str = "ledger";
/// How long the id of a run is, in hexadecimal digits.
pub(super) const ID_LENGTH: usize = 8;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    /// The first line. The process is named for people to read; the lock tells whether it lives.
    Host {
        pid: u32,
        start_time: Option<u64>,
        boot: String,
        #[serde(default)]
        pid_namespace: Option<String>,
    },
    Started {
        pid: u32,
        start_time: Option<u64>,
    },
    Ended {
        pid: u32,
    },
}

/// The ledger of this host's run.
#[derive(Debug)]
pub(super) struct Ledger {
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    /// Locked until this process ends, however it ends.
    file: Flock<File>,
    /// Processes that were entered and not struck out.
    open: BTreeSet<u32>,
    /// Whether the last line may be incomplete.
    torn: bool,
}

impl Ledger {
    /// Opens a new ledger and enters this process as its host.
    pub(super) fn create(run: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(run.join(FILE))?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
        let mut book = Book { file, open: BTreeSet::new(), torn: false };
        let pid = std::process::id();
        book.enter(&Entry::Host {
            pid,
            start_time: proc::start_time(pid),
            boot: proc::boot_id(),
            pid_namespace: proc::pid_namespace(),
        })?;
        Ok(Self { book: Mutex::new(book) })
    }

    /// Enters a process that leads a group of its own.
    pub(super) fn started(&self, pid: u32) -> std::io::Result<()> {
        let mut book = self.book();
        book.open.insert(pid);
        book.enter(&Entry::Started { pid, start_time: proc::start_time(pid) })
    }

    /// Strikes a process out. If that fails, the next host finds a dead process, which does no harm.
    pub(super) fn ended(&self, pid: u32) {
        let mut book = self.book();
        book.open.remove(&pid);
        if let Err(error) = book.enter(&Entry::Ended { pid }) {
            tracing::warn!(pid, %error, "failed to strike a worker out of the ledger");
        }
    }

    /// Whether a process was entered and not struck out.
    pub(super) fn has_open_entries(&self) -> bool {
        !self.book().open.is_empty()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn enter(&mut self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if self.torn {
            // What was written only in part must not swallow this line too.
            line.insert(0, b'\n');
        }
        // One write a line: whole lines survive a crash between two of them, and torn ones are skipped.
        let written = self.file.write_all(&line);
        self.torn = written.is_err();
        written
    }
}

/// Kills what a dead host's run left, and removes its directory. Returns how many processes were killed; `None` when
/// the run's host lives, or nothing is known about it.
pub(super) fn reap(run: &Path, run_id: &str) -> Option<usize> {
    let file = match File::open(run.join(FILE)) {
        Ok(file) => file,
        Err(error) => {
            if error.kind() == std::io::ErrorKind::NotFound {
                remove_unbegun(run, run_id);
            }
            return None;
        }
    };
    // A live host holds the lock, be it in a PID namespace of its own; a dead one does not, be it not yet reaped.
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    let mut ledger = Vec::new();
    file.read_to_end(&mut ledger).ok()?;
    if ledger.is_empty() {
        remove_unbegun(run, run_id);
        return None;
    }
    let mut entries =
        ledger.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let Some(Entry::Host { boot, pid_namespace, .. }) = entries.next() else {
        tracing::warn!(ledger = %run.join(FILE).display(), "skipped a ledger that cannot be read");
        return None;
    };
    let same_boot = boot == proc::boot_id();
    if same_boot && pid_namespace.is_some() && pid_namespace != proc::pid_namespace() {
        tracing::debug!(run_id, "left the leftovers of a host of another PID namespace to the hosts there");
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

/// Removes the directory of a host that died before it had entered itself into a ledger, and so before it started anything.
/// Whoever calls this holds the lock under which hosts make both. Only what looks like such a directory is touched: hosts
/// put nothing else into it before.
fn remove_unbegun(run: &Path, run_id: &str) {
    let only_ledger = |mut entries: std::fs::ReadDir| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == FILE))
    };
    let is_id = run_id.len() == ID_LENGTH && run_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id || !std::fs::read_dir(run).is_ok_and(only_ledger) {
        return;
    }
    match std::fs::remove_dir_all(run) {
        Ok(()) => tracing::debug!(run_id, "removed the directory of a host that died while it made it"),
        Err(error) => {
            tracing::warn!(dir = %run.display(), %error, "failed to remove a dead host's directory");
        }
    }
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
