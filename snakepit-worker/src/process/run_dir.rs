//! A host's private directory: its sockets, its workers' sockets, its ledger.

use std::{
    fs::{DirBuilder, File, Metadata},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

use super::ledger::{self, Ledger};
use crate::{WorkerError, WorkerId};

/// Sockets must fit into `sockaddr_un`, which is 104 bytes on the tightest system.
const MAX_SOCKET_PATH: usize = 103;

/// A host's private directory, removed when dropped, unless processes are still entered in its ledger.
#[derive(Debug)]
pub struct RunDir {
    id: String,
    path: PathBuf,
    host_socket: PathBuf,
    ledger: Ledger,
    reaped: usize,
}

/// The files of one worker.
#[derive(Debug, Clone)]
pub(super) struct WorkerFiles {
    pub(super) socket: PathBuf,
    pub(super) ready: PathBuf,
    pub(super) progress: PathBuf,
}

impl RunDir {
    /// Reaps what dead hosts left below `base`, and makes a directory for this one. Without a base it is
    /// `$XDG_RUNTIME_DIR/snakepit`, else `snakepit-<uid>` in the temporary directory.
    ///
    /// # Errors
    /// [`WorkerError::Io`] when the base is not this user's, others may write to it, or its path is too long for
    /// sockets.
    pub fn create(base: Option<&Path>) -> Result<Self, WorkerError> {
        let base = base.map_or_else(default_base, Path::to_owned);
        let failed = |error: std::io::Error| io_error(&base, &error.to_string());
        DirBuilder::new().recursive(true).mode(0o700).create(&base).map_err(failed)?;
        let base = base.canonicalize().map_err(failed)?;
        check_owner(&base, &std::fs::metadata(&base).map_err(failed)?)?;

        // Hosts that start at the same time take turns, so that none reaps what another is about to enter.
        let lock = File::create(base.join("lock")).map_err(failed)?;
        let _turn = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))?;
        let reaped = reap_dead(&base).map_err(failed)?;

        let id = uuid::Uuid::new_v4().simple().to_string()[..ledger::ID_LENGTH].to_owned();
        let path = base.join(&id);
        let host_socket = path.join("host.sock");
        // The longest name below is that of a worker's socket.
        if path.as_os_str().len() + "/w-1234567890123456.sock".len() > MAX_SOCKET_PATH {
            return Err(io_error(&path, "its path is too long for Unix sockets; choose a shorter --run-dir"));
        }
        let failed = |error: std::io::Error| io_error(&path, &error.to_string());
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let ledger = Ledger::create(&path).map_err(failed)?;
        Ok(Self { id, path, host_socket, ledger, reaped })
    }

    /// Identifies this host's run; every process it starts carries it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory, which only this user can enter.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the host serves its workers, and this user's other programs.
    #[must_use]
    pub fn host_socket(&self) -> &Path {
        &self.host_socket
    }

    /// How many processes of dead hosts were killed when this directory was made.
    #[must_use]
    pub const fn reaped(&self) -> usize {
        self.reaped
    }

    pub(super) const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// A worker's files. Ids can be long and hold anything, so the names are made of their hash.
    pub(super) fn worker_files(&self, id: &WorkerId) -> WorkerFiles {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let name = format!("w-{:016x}", hasher.finish());
        WorkerFiles {
            socket: self.path.join(format!("{name}.sock")),
            ready: self.path.join(format!("{name}.port")),
            progress: self.path.join(format!("{name}.call")),
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.ledger.has_open_entries() {
            tracing::warn!(dir = %self.path.display(), "left the ledger: workers may still run; the next host reaps them");
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(dir = %self.path.display(), %error, "failed to remove the run directory");
        }
    }
}

impl WorkerFiles {
    /// Removes them; those that are not there are no error.
    pub(super) fn remove(&self) {
        for path in [&self.socket, &self.ready, &self.progress] {
            match std::fs::remove_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "failed to remove a worker's file");
                }
            }
        }
    }
}

fn default_base() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir()) {
        Some(dir) => dir.join("snakepit"),
        None => std::env::temp_dir().join(format!("snakepit-{}", geteuid())),
    }
}

/// Others who could write here could plant sockets or ledgers.
fn check_owner(base: &Path, metadata: &Metadata) -> Result<(), WorkerError> {
    let me = geteuid().as_raw();
    if metadata.uid() != me {
        return Err(io_error(
            base,
            &format!("it belongs to user {}, not to {me}; choose another --run-dir", metadata.uid()),
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io_error(
            base,
            "other users may write to it; choose another --run-dir or take that right away",
        ));
    }
    Ok(())
}

fn reap_dead(base: &Path) -> std::io::Result<usize> {
    let mut reaped = 0;
    for entry in std::fs::read_dir(base)?.filter_map(Result::ok) {
        let Some(killed) = entry.file_name().to_str().and_then(|run_id| ledger::reap(&entry.path(), run_id))
        else {
            continue;
        };
        tracing::info!(run = ?entry.file_name(), killed, "cleaned up after a dead host");
        reaped += killed;
    }
    Ok(reaped)
}

fn io_error(path: &Path, problem: &str) -> WorkerError {
    WorkerError::Io { path: path.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};

    use super::*;

    #[test]
    fn the_directory_is_private_and_goes_with_its_host() {
        let base = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(base.path())).unwrap();
        let path = run.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(run);
        assert!(!path.exists());
    }

    #[test]
    fn a_base_that_others_can_write_to_is_refused() {
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = RunDir::create(Some(base.path())).unwrap_err().to_string();
        assert!(error.contains("other users"), "{error}");
    }

    #[test]
    fn live_hosts_leave_each_other_alone() {
        let base = tempfile::tempdir().unwrap();
        let first = RunDir::create(Some(base.path())).unwrap();
        let second = RunDir::create(Some(base.path())).unwrap();
        assert_ne!(first.id(), second.id());
        assert!(first.path().exists());
        assert_eq!(second.reaped(), 0);
    }

    /// A process that outlives its (pretended) host, in a group of its own.
    #[allow(clippy::disallowed_methods, reason = "a stand-in for a worker that a crash left")]
    fn leftover(run_id: &str) -> std::process::Child {
        let mut command = std::process::Command::new("sleep");
        command.arg("60").env("SNAKEPIT_RUN_ID", run_id).process_group(0).spawn().unwrap()
    }

    /// The directory of a host that is dead, with these lines in its ledger.
    fn dead_run(base: &Path, run_id: &str, lines: &[String]) -> PathBuf {
        let run = base.join(run_id);
        std::fs::create_dir(&run).unwrap();
        let host = format!(
            r#"{{"host":{{"pid":1,"start_time":424242,"boot":"{}"}}}}"#,
            super::super::proc::boot_id()
        );
        std::fs::write(run.join("ledger"), format!("{host}\n{}\n", lines.join("\n"))).unwrap();
        run
    }

    fn started(pid: u32, start_time: u64) -> String {
        format!(r#"{{"started":{{"pid":{pid},"start_time":{start_time}}}}}"#)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_dead_host_left_is_killed_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let (mut left, mut foreign, mut ended) = (leftover("dead0001"), leftover("other"), leftover("other"));
        let start = |child: &std::process::Child| super::super::proc::start_time(child.id()).unwrap();
        let lines = [
            started(left.id(), start(&left)),
            // The same pid as a worker of old, but another process: it started at another time.
            started(foreign.id(), start(&foreign) - 1),
            started(ended.id(), start(&ended)),
            format!(r#"{{"ended":{{"pid":{}}}}}"#, ended.id()),
            r#"{"started":{"pid":1"#.to_owned(),
        ];
        let run = dead_run(base.path(), "dead0001", &lines);
        let host = RunDir::create(Some(base.path())).unwrap();
        assert_eq!(host.reaped(), 1);
        assert!(!run.exists());
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        for child in [&mut foreign, &mut ended] {
            assert!(
                child.try_wait().unwrap().is_none(),
                "a process that was not left by the dead host was killed"
            );
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn what_died_before_it_had_a_ledger_is_removed_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let unbegun = base.path().join("dead0005");
        let empty = base.path().join("dead0007");
        let (foreign, full) = (base.path().join("projects"), base.path().join("dead0006"));
        for dir in [&unbegun, &empty, &foreign, &full] {
            std::fs::create_dir(dir).unwrap();
        }
        for dir in [&empty, &foreign, &full] {
            std::fs::write(dir.join("ledger"), "").unwrap();
        }
        std::fs::write(full.join("notes"), "somebody's").unwrap();
        let host = RunDir::create(Some(base.path())).unwrap();
        assert_eq!(host.reaped(), 0);
        assert!(!unbegun.exists() && !empty.exists() && foreign.exists() && full.exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_torn_line_hides_nothing() {
        let base = tempfile::tempdir().unwrap();
        let mut left = leftover("dead0003");
        let start = super::super::proc::start_time(left.id()).unwrap();
        dead_run(base.path(), "dead0003", &[r#"{"started":{"pid":1"#.to_owned(), started(left.id(), start)]);
        assert_eq!(RunDir::create(Some(base.path())).unwrap().reaped(), 1);
        left.wait().unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_host_lives_as_long_as_it_holds_its_ledger() {
        let base = tempfile::tempdir().unwrap();
        let live = RunDir::create(Some(base.path())).unwrap();
        // It looks dead: it runs in a PID namespace of its own, where this number names it.
        let ledger = live.path().join("ledger");
        let seen_from_here =
            std::fs::read_to_string(&ledger).unwrap().replace(&std::process::id().to_string(), "1");
        std::fs::write(&ledger, seen_from_here).unwrap();
        let mut worker = leftover(live.id());
        live.ledger().started(worker.id()).unwrap();
        assert_eq!(RunDir::create(Some(base.path())).unwrap().reaped(), 0);
        assert!(worker.try_wait().unwrap().is_none() && live.path().exists());

        // It is gone, but its process, this one, is not reaped: that is how a zombie looks.
        let (path, locked) = (live.path().to_owned(), live);
        drop(locked);
        assert!(path.join("ledger").exists(), "an open entry keeps the ledger");
        assert_eq!(RunDir::create(Some(base.path())).unwrap().reaped(), 1);
        worker.wait().unwrap();
        assert!(!path.exists());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn pids_of_another_namespace_name_nothing_here() {
        let base = tempfile::tempdir().unwrap();
        let mut foreign = leftover("dead0004");
        let start = super::super::proc::start_time(foreign.id()).unwrap();
        let run = dead_run(base.path(), "dead0004", &[started(foreign.id(), start)]);
        let ledger = std::fs::read_to_string(run.join("ledger")).unwrap();
        let elsewhere = ledger.replacen(r#""pid":1,"#, r#""pid":1,"pid_namespace":"pid:[1]","#, 1);
        std::fs::write(run.join("ledger"), elsewhere).unwrap();
        assert_eq!(RunDir::create(Some(base.path())).unwrap().reaped(), 0);
        assert!(foreign.try_wait().unwrap().is_none() && run.exists());
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn members_of_a_group_whose_leader_is_gone_are_known_by_their_run() {
        let base = tempfile::tempdir().unwrap();
        let (mut ours, mut foreign) = (leftover("dead0002"), leftover("other"));
        // Both ledger entries name groups whose leader's start time is not what the ledger says any more.
        let lines = [started(ours.id(), 1), started(foreign.id(), 1)];
        dead_run(base.path(), "dead0002", &lines);
        let host = RunDir::create(Some(base.path())).unwrap();
        assert_eq!(host.reaped(), 1);
        ours.wait().unwrap();
        assert!(foreign.try_wait().unwrap().is_none());
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }
}
