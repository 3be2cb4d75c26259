//! The ledger: which processes this host started, on disk, so that the next host can reap what a crash leaves.
//!
//! One file a run, one line of JSON a process that runs. Lines have a fixed length and are overwritten in place, so the file is
//! as long as the most processes that ever ran at the same time, and no crash can lose a line: each is one write. A process is
//! known by its pid, its start time and the boot they belong to, so a process that merely got the same pid later is never
//! touched. A host is alive as long as it holds the lock on its ledger, whether it can be seen from here or not.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, Metadata, OpenOptions},
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use snakepit_proto::launch;

use super::os_process;
use crate::descendants::kill_marked;

/// The ledger's name in a run's directory.
const FILE_NAME: &str = "ledger";
/// How long the id of a run is, in hexadecimal digits.
pub(super) const ID_LENGTH: usize = 8;
/// The length of a line that names a process, its newline included: enough for the largest numbers.
const SLOT_BYTES: usize = 96;

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
    /// Written by hosts before 0.2; this one overwrites lines instead.
    Ended {
        pid: u32,
    },
}

/// The ledger of this host's run.
#[derive(Debug)]
pub(super) struct Ledger {
    file: Mutex<LedgerFile>,
}

#[derive(Debug)]
struct LedgerFile {
    /// Locked until this process ends, however it ends.
    file: Flock<File>,
    /// Where the first slot begins, behind the line of the host.
    header_len: u64,
    /// The process that each slot names.
    slots: Vec<Option<ProcessIdentity>>,
}

#[derive(Debug, Clone, Copy)]
struct ProcessIdentity {
    pid: u32,
    start_time: Option<u64>,
}

impl Ledger {
    /// Opens a new ledger and enters this process as its host.
    pub(super) fn create(run: &Path) -> std::io::Result<Self> {
        Ok(Self { file: Mutex::new(LedgerFile::create(run)?) })
    }

    /// Makes the file anew if it was removed, with the processes that run. Whoever calls this holds the lock under which hosts
    /// make such files.
    pub(super) fn restore(&self, run: &Path) -> std::io::Result<()> {
        let mut file = self.file();
        if file.is_at(run) {
            return Ok(());
        }
        let mut new = LedgerFile::create(run)?;
        for process in file.slots.iter().flatten() {
            new.insert(*process)?;
        }
        *file = new;
        Ok(())
    }

    /// Whether the file is where it belongs.
    pub(super) fn is_at(&self, run: &Path) -> bool {
        self.file().is_at(run)
    }

    /// Enters a process that leads a group of its own.
    pub(super) fn insert(&self, pid: u32) -> std::io::Result<()> {
        self.file().insert(ProcessIdentity { pid, start_time: os_process::start_time(pid) })
    }

    /// Strikes a process out. If that fails, the next host finds a dead process, which does no harm.
    pub(super) fn remove(&self, pid: u32) {
        if let Err(error) = self.file().remove(pid) {
            tracing::warn!(pid, %error, "failed to strike a worker out of the ledger");
        }
    }

    /// Whether a process was entered and not struck out.
    pub(super) fn contains(&self, pid: u32) -> bool {
        self.file().slots.iter().flatten().any(|process| process.pid == pid)
    }

    /// Whether the ledger lists no process.
    pub(super) fn is_empty(&self) -> bool {
        self.file().slots.iter().all(Option::is_none)
    }

    fn file(&self) -> MutexGuard<'_, LedgerFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LedgerFile {
    fn create(run: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(run.join(FILE_NAME))?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
        let pid = std::process::id();
        let mut line = serde_json::to_vec(&Entry::Host {
            pid,
            start_time: os_process::start_time(pid),
            boot: os_process::boot_id(),
            pid_namespace: os_process::pid_namespace(),
        })?;
        line.push(b'\n');
        file.write_all_at(&line, 0)?;
        Ok(Self { file, header_len: line.len() as u64, slots: Vec::new() })
    }

    fn is_at(&self, run: &Path) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let ours = self.file.metadata().map(identity);
        let there = std::fs::metadata(run.join(FILE_NAME)).map(identity);
        matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
    }

    fn insert(&mut self, process: ProcessIdentity) -> std::io::Result<()> {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        // Kept also when it cannot be written: this host must know its own processes.
        self.slots[slot] = Some(process);
        let ProcessIdentity { pid, start_time } = process;
        self.write_slot(slot, &serde_json::to_vec(&Entry::Started { pid, start_time })?)
    }

    fn remove(&mut self, pid: u32) -> std::io::Result<()> {
        let is_it = |slot: &Option<ProcessIdentity>| slot.is_some_and(|process| process.pid == pid);
        let Some(slot) = self.slots.iter().position(is_it) else { return Ok(()) };
        self.slots[slot] = None;
        self.write_slot(slot, b"")
    }

    /// Fills a slot, up to its end.
    fn write_slot(&self, slot: usize, entry: &[u8]) -> std::io::Result<()> {
        let mut line = [b' '; SLOT_BYTES];
        line[..entry.len()].copy_from_slice(entry);
        line[SLOT_BYTES - 1] = b'\n';
        self.file.write_all_at(&line, self.header_len + (slot * SLOT_BYTES) as u64)
    }
}

/// What a dead host left: whom to look for, and where it stands.
#[derive(Debug)]
pub(super) struct DeadRun {
    run: PathBuf,
    run_id: String,
    processes: Vec<ProcessIdentity>,
    /// The lock that says that nobody else cleans this up.
    _lock: Flock<File>,
}

/// Reads what a dead host's run left. `None` when the run's host lives, or nothing is known about it.
pub(super) fn dead_run(run: &Path, run_id: &str) -> Option<DeadRun> {
    let file = match File::open(run.join(FILE_NAME)) {
        Ok(file) => file,
        Err(error) => {
            if error.kind() == std::io::ErrorKind::NotFound {
                remove_unstarted(run, run_id);
            }
            return None;
        }
    };
    // A live host holds the lock, be it in a PID namespace of its own; a dead one does not, be it not yet reaped.
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    let mut ledger = Vec::new();
    file.read_to_end(&mut ledger).ok()?;
    if ledger.is_empty() {
        remove_unstarted(run, run_id);
        return None;
    }
    let mut entries =
        ledger.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let Some(Entry::Host { boot, pid_namespace, .. }) = entries.next() else {
        tracing::warn!(ledger = %run.join(FILE_NAME).display(), "skipped a ledger that cannot be read");
        return None;
    };
    let same_boot = boot == os_process::boot_id();
    if same_boot && pid_namespace.is_some() && pid_namespace != os_process::pid_namespace() {
        tracing::debug!(run_id, "left the leftovers of a host of another PID namespace to the hosts there");
        return None;
    }
    let mut processes = Vec::new();
    for entry in entries.filter(|_| same_boot) {
        match entry {
            Entry::Started { pid, start_time } => processes.push(ProcessIdentity { pid, start_time }),
            Entry::Ended { pid } => processes.retain(|process: &ProcessIdentity| process.pid != pid),
            Entry::Host { .. } => {}
        }
    }
    Some(DeadRun { run: run.to_owned(), run_id: run_id.to_owned(), processes, _lock: file })
}

/// Kills what dead hosts left, and removes their directories. Returns how many processes, or groups of them, were killed.
pub(super) fn reap(dead: &[DeadRun]) -> usize {
    let mut killed = vec![0; dead.len()];
    // All that descends from their workers, wherever the marks of those were inherited.
    let marked: HashSet<u32> = match dead {
        [] => HashSet::new(),
        _ => kill_marked(|mark| dead.iter().any(|dead| mark.is_of(&dead.run_id))),
    };
    // Groups whose leader is gone, perhaps its pid is another process by now: only what carries the id of the run is ours.
    let mut leaderless: HashMap<u32, Vec<(usize, String)>> = HashMap::new();
    for (index, DeadRun { run_id, processes, .. }) in dead.iter().enumerate() {
        for ProcessIdentity { pid, start_time } in processes {
            if marked.contains(pid) {
                continue;
            }
            if start_time.is_some() && os_process::start_time(*pid) == *start_time {
                os_process::kill_group(*pid);
                killed[index] += 1;
            } else {
                leaderless.entry(*pid).or_default().push((index, format!("{}={run_id}", launch::ENV_RUN_ID)));
            }
        }
    }
    for (index, member) in os_process::members_of(&leaderless) {
        os_process::kill_one(member);
        killed[index] += 1;
    }
    for (DeadRun { run, run_id, .. }, killed) in dead.iter().zip(&killed) {
        if let Err(error) = std::fs::remove_dir_all(run) {
            tracing::warn!(dir = %run.display(), %error, "failed to remove a dead host's directory");
        }
        tracing::info!(run = run_id, killed, "cleaned up after a dead host");
    }
    killed.iter().sum::<usize>() + marked.len()
}

/// Removes the directory of a host that died before it had entered itself into a ledger, and so before it started anything.
/// Whoever calls this holds the lock under which hosts make both. Only what looks like such a directory is touched: hosts
/// put nothing else into it before.
fn remove_unstarted(run: &Path, run_id: &str) {
    let only_ledger = |mut entries: std::fs::ReadDir| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == FILE_NAME))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_is_as_long_as_the_most_processes_at_a_time() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join(FILE_NAME);
        let ledger = Ledger::create(run.path()).unwrap();
        let header_len = std::fs::metadata(&path).unwrap().len();
        for pid in 0..5000_u32 {
            ledger.insert(u32::MAX - pid).unwrap();
            if pid >= 3 {
                ledger.remove(u32::MAX - (pid - 3));
            }
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), header_len + 4 * SLOT_BYTES as u64);
        let open =
            |file: &LedgerFile| file.slots.iter().flatten().map(|process| process.pid).collect::<Vec<_>>();
        assert_eq!(open(&ledger.file()).len(), 3);
        let text = std::fs::read_to_string(&path).unwrap();
        for pid in open(&ledger.file()) {
            assert!(text.contains(&format!("\"pid\":{pid},")), "{pid}: {text}");
        }
        let largest = Entry::Started { pid: u32::MAX, start_time: Some(u64::MAX) };
        assert!(serde_json::to_vec(&largest).unwrap().len() < SLOT_BYTES);
    }

    #[test]
    fn a_ledger_that_was_removed_is_made_anew_with_what_runs() {
        let run = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(run.path()).unwrap();
        ledger.insert(7).unwrap();
        assert!(ledger.is_at(run.path()));
        std::fs::remove_file(run.path().join(FILE_NAME)).unwrap();
        assert!(!ledger.is_at(run.path()));
        ledger.restore(run.path()).unwrap();
        assert!(ledger.is_at(run.path()) && ledger.contains(7));
        let text = std::fs::read_to_string(run.path().join(FILE_NAME)).unwrap();
        assert!(text.contains(r#""started":{"pid":7,"#), "{text}");
        assert!(dead_run(run.path(), "id").is_none(), "its host lives");
        drop(ledger);
        assert_eq!(dead_run(run.path(), "id").unwrap().processes.len(), 1);
    }
}
