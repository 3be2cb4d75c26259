//! The ledger: a file that lists a host's worker processes, so that the next host can kill them after a crash.
//!
//! - Each run has one file, with one line of JSON per running process. Lines have a fixed length and are overwritten in place,
//!   so the file grows only to the largest number of concurrent processes. Each line is one write, so a crash does not lose a
//!   line.
//! - A process is identified by pid, start time and boot id. A later process with the same pid is not affected.
//! - A host is alive while it holds the lock on its ledger, even if its pid is not visible in this PID namespace.

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

/// The name of the ledger in a run directory.
const FILE_NAME: &str = "ledger";
/// The length of a run id, in hexadecimal digits.
pub(super) const ID_LENGTH: usize = 8;
/// The length of a line for a process in bytes, including its newline. Fits an entry with the largest numbers.
const SLOT_BYTES: usize = 96;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    /// The first line. The pid is informational; the lock on the file shows whether the host is alive.
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
    /// Hosts before 0.2 appended this line. Later hosts overwrite the line of the process instead.
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
    /// The kernel releases the lock when this process exits.
    file: Flock<File>,
    /// The length of the host's line, in bytes. The first slot follows it.
    header_len: u64,
    /// The process in each slot of the file.
    slots: Vec<Option<ProcessIdentity>>,
}

#[derive(Debug, Clone, Copy)]
struct ProcessIdentity {
    pid: u32,
    start_time: Option<u64>,
}

impl Ledger {
    /// Creates a ledger with this process as its host.
    pub(super) fn create(run: &Path) -> std::io::Result<Self> {
        Ok(Self { file: Mutex::new(LedgerFile::create(run)?) })
    }

    /// Creates the file again if it was removed, with all current entries. The caller must hold the lock of the base directory.
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

    /// Whether the run directory still contains this ledger's file.
    pub(super) fn is_at(&self, run: &Path) -> bool {
        self.file().is_at(run)
    }

    /// Adds a process, which must lead its process group.
    pub(super) fn insert(&self, pid: u32) -> std::io::Result<()> {
        self.file().insert(ProcessIdentity { pid, start_time: os_process::start_time(pid) })
    }

    /// Removes a process. If the write fails, the file still lists the process. The next host then finds that it is dead, which is
    /// harmless.
    pub(super) fn remove(&self, pid: u32) {
        if let Err(error) = self.file().remove(pid) {
            tracing::warn!(pid, %error, "failed to remove a worker from the ledger");
        }
    }

    /// Whether the ledger lists this process.
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
        let own = self.file.metadata().map(identity);
        let at_path = std::fs::metadata(run.join(FILE_NAME)).map(identity);
        matches!((own, at_path), (Ok(own), Ok(at_path)) if own == at_path)
    }

    fn insert(&mut self, process: ProcessIdentity) -> std::io::Result<()> {
        let free_slot = self.slots.iter().position(Option::is_none);
        let slot = free_slot.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        // The entry stays in memory if the write fails, because this host must not reap its own workers as orphans.
        self.slots[slot] = Some(process);
        let ProcessIdentity { pid, start_time } = process;
        self.write_slot(slot, &serde_json::to_vec(&Entry::Started { pid, start_time })?)
    }

    fn remove(&mut self, pid: u32) -> std::io::Result<()> {
        let has_pid = |slot: &Option<ProcessIdentity>| slot.is_some_and(|process| process.pid == pid);
        let Some(slot) = self.slots.iter().position(has_pid) else { return Ok(()) };
        self.slots[slot] = None;
        self.write_slot(slot, b"")
    }

    /// Overwrites a slot, and pads it with spaces.
    fn write_slot(&self, slot: usize, entry: &[u8]) -> std::io::Result<()> {
        let mut line = [b' '; SLOT_BYTES];
        line[..entry.len()].copy_from_slice(entry);
        line[SLOT_BYTES - 1] = b'\n';
        self.file.write_all_at(&line, self.header_len + (slot * SLOT_BYTES) as u64)
    }
}

/// The run of a dead host, with the processes in its ledger.
#[derive(Debug)]
pub(super) struct DeadRun {
    run: PathBuf,
    run_id: String,
    processes: Vec<ProcessIdentity>,
    /// Keeps other hosts from cleaning up the same run.
    _lock: Flock<File>,
}

/// Reads the ledger of a dead host. Returns `None` if the host is alive, or the ledger is missing or unreadable.
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
    // A live host holds the lock, even in another PID namespace. A dead one does not, even as a zombie.
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
    let is_same_boot = boot == os_process::boot_id();
    if is_same_boot && pid_namespace.is_some() && pid_namespace != os_process::pid_namespace() {
        tracing::debug!(run_id, "skipped the run of a dead host in another PID namespace");
        return None;
    }
    let mut processes = Vec::new();
    for entry in entries.filter(|_| is_same_boot) {
        match entry {
            Entry::Started { pid, start_time } => processes.push(ProcessIdentity { pid, start_time }),
            Entry::Ended { pid } => processes.retain(|process: &ProcessIdentity| process.pid != pid),
            Entry::Host { .. } => {}
        }
    }
    Some(DeadRun { run: run.to_owned(), run_id: run_id.to_owned(), processes, _lock: file })
}

/// Kills the processes of dead hosts and removes their run directories. Returns the number of killed processes and process
/// groups.
pub(super) fn clean_up(dead: &[DeadRun]) -> usize {
    let mut killed = vec![0; dead.len()];
    // Descendants that inherited a worker's mark.
    let marked: HashSet<u32> = match dead {
        [] => HashSet::new(),
        _ => kill_marked(|mark| dead.iter().any(|dead| mark.belongs_to_run(&dead.run_id))),
    };
    // Groups whose leader has exited. Another process may have its pid by now, so only members with the run id in their
    // environment belong to the run.
    let mut leaderless: HashMap<u32, Vec<(usize, String)>> = HashMap::new();
    for (index, DeadRun { run_id, processes, .. }) in dead.iter().enumerate() {
        for ProcessIdentity { pid, start_time } in processes {
            if marked.contains(pid) {
                continue;
            }
            if start_time.is_some() && os_process::start_time(*pid) == *start_time {
                let is_alive = !os_process::is_zombie(*pid);
                // Other processes of the group may still run, even if its leader has ended.
                os_process::kill_group(*pid);
                killed[index] += usize::from(is_alive);
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

/// Removes the directory of a host that died before it wrote its ledger, and so before it started a process.
///
/// Only removes a directory whose name is a run id and that contains at most an empty ledger. The caller must hold the lock of
/// the base directory, under which hosts create both.
fn remove_unstarted(run: &Path, run_id: &str) {
    let contains_only_ledger = |mut entries: std::fs::ReadDir| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == FILE_NAME))
    };
    let is_run_id = run_id.len() == ID_LENGTH && run_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_run_id || !std::fs::read_dir(run).is_ok_and(contains_only_ledger) {
        return;
    }
    match std::fs::remove_dir_all(run) {
        Ok(()) => {
            tracing::debug!(run_id, "removed the directory of a host that died before it wrote its ledger");
        }
        Err(error) => {
            tracing::warn!(dir = %run.display(), %error, "failed to remove a dead host's directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_grows_to_the_largest_number_of_concurrent_processes() {
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
        let pids =
            |file: &LedgerFile| file.slots.iter().flatten().map(|process| process.pid).collect::<Vec<_>>();
        assert_eq!(pids(&ledger.file()).len(), 3);
        let text = std::fs::read_to_string(&path).unwrap();
        for pid in pids(&ledger.file()) {
            assert!(text.contains(&format!("\"pid\":{pid},")), "{pid}: {text}");
        }
        let largest = Entry::Started { pid: u32::MAX, start_time: Some(u64::MAX) };
        assert!(serde_json::to_vec(&largest).unwrap().len() < SLOT_BYTES);
    }

    #[test]
    fn a_removed_ledger_is_restored_with_its_entries() {
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
        assert!(dead_run(run.path(), "id").is_none(), "its host is alive");
        drop(ledger);
        assert_eq!(dead_run(run.path(), "id").unwrap().processes.len(), 1);
    }
}
