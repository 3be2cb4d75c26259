//! [`RunDir`], a host's private directory. It contains the host's socket, the sockets of its workers, and the ledger.

use std::{
    fmt,
    fs::{DirBuilder, File, Metadata},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use tokio_util::task::TaskTracker;

use super::ledger::{self, Ledger};
use crate::{WorkerError, WorkerId, error_chain, settings::RUN_DIR};

/// The maximum length of a socket path, in bytes. The smallest `sockaddr_un`, that of macOS, holds 104 bytes including a NUL.
const MAX_SOCKET_PATH_BYTES: usize = 103;

/// A host's private directory. Dropping it removes the directory, unless the ledger still lists processes.
#[derive(Debug)]
pub struct RunDir {
    id: String,
    base: PathBuf,
    path: PathBuf,
    host_socket: PathBuf,
    ledger: Ledger,
    killed_leftovers: usize,
    serve: OnceLock<ServeSocket>,
}

/// The function that binds and serves the host's socket.
struct ServeSocket(Box<Serve>);

type Serve = dyn Fn(&Path) -> std::io::Result<()> + Send + Sync;

impl fmt::Debug for ServeSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServeSocket")
    }
}

/// The files of one worker.
#[derive(Debug, Clone)]
pub(super) struct WorkerFiles {
    pub(super) socket: PathBuf,
    pub(super) ready: PathBuf,
    pub(super) progress: PathBuf,
}

impl RunDir {
    /// Cleans up after dead hosts in `base`, and creates a directory for this host.
    ///
    /// Without a base, uses the first usable one of `$XDG_RUNTIME_DIR/snakepit` and `snakepit-<uid>` in `$TMPDIR`, `/tmp` and
    /// `/var/tmp`. Skips missing directories instead of creating them.
    ///
    /// Blocks: waits for other hosts that start at the same time, and scans all processes of the machine after a crash.
    ///
    /// # Errors
    /// [`WorkerError::Io`] if the base belongs to another user, other users may write to it, or its path is too long for
    /// sockets or not UTF-8.
    pub fn create(base: Option<&Path>) -> Result<Self, WorkerError> {
        match base {
            Some(base) => Self::create_in(base),
            None => Self::create_in_first(&default_bases()),
        }
    }

    /// Tries default bases in order. Skips unusable ones, because the user did not choose them.
    fn create_in_first(bases: &[PathBuf]) -> Result<Self, WorkerError> {
        let mut problems = Vec::new();
        for base in bases {
            // Checks the path first, so that nothing is created in an unusable base.
            let usable = check_parent(base).and_then(|()| check_path(base));
            match usable.and_then(|()| Self::create_in(base)) {
                Ok(run_dir) => return Ok(run_dir),
                Err(error) => {
                    let problem = error_chain(&error).to_string();
                    tracing::warn!(error = %problem, "skipped a default run directory");
                    problems.push(problem);
                }
            }
        }
        let path = bases.first().map_or_else(PathBuf::new, Clone::clone);
        let problems = problems.join("; ");
        Err(WorkerError::io(
            path,
            format!("no default run directory is usable; choose one with {RUN_DIR} ({problems})"),
        ))
    }

    fn create_in(base: &Path) -> Result<Self, WorkerError> {
        // Checks the length before creating the directory, and again below, because the path without symbolic links may be
        // longer.
        if !base.exists() {
            let absolute = std::path::absolute(base).unwrap_or_else(|_| base.to_owned());
            check_path(&absolute)?;
        }
        let base = prepare_base(base)?;
        check_path(&base)?;
        let _lock = lock_base(&base)?;
        let killed_leftovers = clean_up_dead_runs(&base)
            .map_err(io_error(&base, "the runs of dead hosts in it cannot be read"))?;

        let id = uuid::Uuid::new_v4().simple().to_string()[..ledger::ID_LENGTH].to_owned();
        let path = base.join(&id);
        let host_socket = path.join("host.sock");
        DirBuilder::new().mode(0o700).create(&path).map_err(io_error(&path, "it cannot be created"))?;
        let ledger = Ledger::create(&path).map_err(io_error(&path, "its ledger cannot be created"))?;
        Ok(Self { id, base, path, host_socket, ledger, killed_leftovers, serve: OnceLock::new() })
    }

    /// Binds and serves the host's socket with `serve`, now and again whenever the socket is removed. `serve` runs within the
    /// runtime and may block.
    ///
    /// # Errors
    /// Returns the error of `serve`.
    pub fn serve_host_socket(
        &self,
        serve: impl Fn(&Path) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> std::io::Result<()> {
        serve(&self.host_socket)?;
        self.serve.get_or_init(|| ServeSocket(Box::new(serve)));
        Ok(())
    }

    /// Restores removed parts of the directory, because no worker could start without them. A cleaner of temporary files may have
    /// removed them.
    pub(super) async fn restore(self: &Arc<Self>, tasks: &TaskTracker) -> Result<(), WorkerError> {
        if self.is_intact() {
            return Ok(());
        }
        let run_dir = Arc::clone(self);
        let restored = tasks.spawn_blocking(move || run_dir.restore_now()).await;
        restored.unwrap_or_else(|error| {
            Err(WorkerError::io(&self.path, "it cannot be created again").with_source(error))
        })
    }

    fn is_intact(&self) -> bool {
        self.ledger.is_at(&self.path) && (self.serve.get().is_none() || self.host_socket.exists())
    }

    fn restore_now(&self) -> Result<(), WorkerError> {
        let io_error = io_error(&self.path, "it was removed and cannot be created again");
        let base = prepare_base(&self.base)?;
        let _lock = lock_base(&base)?;
        if self.is_intact() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(&io_error)?;
        check_owner(&self.path, &std::fs::metadata(&self.path).map_err(&io_error)?)?;
        self.ledger.restore(&self.path).map_err(&io_error)?;
        if let Some(ServeSocket(serve)) = self.serve.get()
            && !self.host_socket.exists()
        {
            serve(&self.host_socket).map_err(&io_error)?;
        }
        tracing::warn!(dir = %self.path.display(), "the run directory, or a file in it, was removed; created it again");
        Ok(())
    }

    /// The run id of this host. All processes that it starts have it in their environment.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The path of the directory, which only this user can access.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the socket on which the host serves its workers and this user's other programs.
    #[must_use]
    pub fn host_socket(&self) -> &Path {
        &self.host_socket
    }

    /// The number of processes and process groups of dead hosts that [`create`](Self::create) killed.
    #[must_use]
    pub const fn killed_leftovers(&self) -> usize {
        self.killed_leftovers
    }

    pub(super) const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The paths of a worker's files. Ids may be long and contain any character, so the file names contain their hash.
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
        if !self.ledger.is_empty() {
            tracing::warn!(dir = %self.path.display(), "kept the run directory, because workers may still run; the next host kills them");
            return;
        }
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(dir = %self.path.display(), %error, "failed to remove the run directory");
            }
            _ => {}
        }
    }
}

impl WorkerFiles {
    /// Removes the files that exist.
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

/// Creates the base if it does not exist, and returns its path without symbolic links.
fn prepare_base(base: &Path) -> Result<PathBuf, WorkerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(base)
        .map_err(io_error(base, "it cannot be created"))?;
    let unreadable = io_error(base, "it cannot be read");
    let base = base.canonicalize().map_err(&unreadable)?;
    check_owner(&base, &std::fs::metadata(&base).map_err(&unreadable)?)?;
    Ok(base)
}

/// Waits for the lock of a base. The lock serializes hosts that start at the same time. Otherwise one could clean up the
/// directory of another that has not written its ledger yet.
fn lock_base(base: &Path) -> Result<Flock<File>, WorkerError> {
    let io_error = io_error(base, "it cannot be locked");
    let lock = File::create(base.join("lock")).map_err(&io_error)?;
    Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| io_error(error.into()))
}

/// Checks that the longest socket path below this base, that of a worker, fits [`MAX_SOCKET_PATH_BYTES`], and that workers can
/// receive it as an argument, which is UTF-8.
fn check_path(base: &Path) -> Result<(), WorkerError> {
    let suffix_bytes = "/".len() + ledger::ID_LENGTH + "/w-1234567890123456.sock".len();
    if base.as_os_str().len() + suffix_bytes > MAX_SOCKET_PATH_BYTES {
        let problem = format!("its path is too long for Unix sockets; choose a shorter one with {RUN_DIR}");
        return Err(WorkerError::io(base, problem));
    }
    if base.to_str().is_none() {
        return Err(WorkerError::io(
            base,
            format!("its path is not UTF-8; choose another one with {RUN_DIR}"),
        ));
    }
    Ok(())
}

/// Checks that the directory exists in which a default base would be created.
fn check_parent(base: &Path) -> Result<(), WorkerError> {
    match base.parent() {
        Some(parent) if !parent.is_dir() => {
            Err(WorkerError::io(base, format!("the directory {} does not exist", parent.display())))
        }
        _ => Ok(()),
    }
}

fn default_bases() -> Vec<PathBuf> {
    let dir_name = format!("snakepit-{}", geteuid());
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let runtime = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("snakepit"));
    // Relative paths are skipped, because the working directory may change.
    let temporary = variable("TMPDIR").map(|dir| dir.join(&dir_name));
    let fixed = ["/tmp", "/var/tmp"].map(|dir| Path::new(dir).join(&dir_name));
    let from_environment = runtime.into_iter().chain(temporary).filter(|dir| dir.is_absolute());
    let mut bases: Vec<_> = from_environment.chain(fixed).collect();
    bases.dedup();
    bases
}

/// Rejects directories of other users, and those in which other users could create sockets or ledgers.
fn check_owner(base: &Path, metadata: &Metadata) -> Result<(), WorkerError> {
    let user = geteuid().as_raw();
    if metadata.uid() != user {
        let owner = metadata.uid();
        let problem = format!("it belongs to user {owner}, not to {user}; choose another one with {RUN_DIR}");
        return Err(WorkerError::io(base, problem));
    }
    if metadata.mode() & 0o022 != 0 {
        let problem = format!(
            "other users may write to it; choose another one with {RUN_DIR}, or remove that permission (chmod go-w)"
        );
        return Err(WorkerError::io(base, problem));
    }
    Ok(())
}

fn clean_up_dead_runs(base: &Path) -> std::io::Result<usize> {
    let entries = std::fs::read_dir(base)?.filter_map(Result::ok);
    let dead: Vec<_> =
        entries.filter_map(|entry| ledger::dead_run(&entry.path(), entry.file_name().to_str()?)).collect();
    Ok(ledger::clean_up(&dead))
}

/// Returns a function that converts an error of the operating system to a [`WorkerError::Io`] with this problem.
fn io_error(path: &Path, problem: &'static str) -> impl Fn(std::io::Error) -> WorkerError {
    move |error| WorkerError::io(path, problem).with_source(error)
}

#[cfg(test)]
mod tests;
