//! A durable session backend: one file, which survives crashes of the host.
//!
//! ```text
//!   RedbBackend ----- reads -----> a snapshot of the last commit
//!        |
//!     writes, watches
//!        v
//!     writer (a thread) -- group commit: one transaction and one sync for all queued operations
//!        |
//!     expiries (in memory) <-- every use renews them
//! ```
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use redb::{Database, ReadableDatabase};
use snakepit_session::{
    SessionError, SessionEventSender, SessionId, SessionLimits, SessionStats, kit::SessionRecord,
};
use tokio::{sync::RwLock, time::Instant};

mod backend;
mod checked_storage;
mod expiry;
mod file;
mod group;
mod open;
mod row_counts;
mod rows;
mod state;
mod writer;

use expiry::{Expiries, Expiry, ExpiryKey};
use group::Group;
use open::with_path;
use row_counts::RowCounts;
use rows::{View, backend_error, damaged_error, is_disk_error};
use writer::Writer;

/// Reads larger than this size in bytes run on a blocking thread. Smaller reads take microseconds, about as long as the handover.
const LARGE_READ_BYTES: usize = 1024 * 1024;
/// The approximate number of rows that one transaction of a sweep removes, which bounds the delay of concurrent writes.
const SWEEP_ROWS: usize = 4096;

/// Sessions in a file, stored with [redb](https://docs.rs/redb). They survive crashes of the host.
///
/// A write returns after the file system has synced it to disk. Operations that arrive during a sync share the next one (group
/// commit). Watchers and events report only committed changes, which a crash cannot undo. Reads see the last commit, never wait
/// for writers, and usually hit redb's cache.
///
/// # Time
/// TTLs use a monotonic clock, and renewals stay in memory. A clean shutdown stores the remaining TTLs, and the next start
/// continues them by the wall clock. After a crash, every session and global program gets a full TTL. None expires early, and
/// each may live up to one TTL longer. An expired session may return if no
/// [sweep](snakepit_session::SessionBackend::sweep) removed it. The last worker of a session is in memory only, too. A crash
/// loses it, together with the worker.
///
/// # Failures
/// If the disk is full, or the file was deleted or replaced, writes fail with [`SessionError::NotWritten`] and change nothing
/// until there is space or the file is back. Reads and watches continue.
///
/// If another process overwrites or truncates the file in place, all operations fail with [`SessionError::Backend`] from the next
/// write on, and watches end, because the file no longer contains the acknowledged writes. The backend stops writing to the file.
/// You can therefore restore a copy before you restart the host.
///
/// If the disk fails, concurrent writes fail with [`SessionError::Backend`], but may be in the file. The backend reopens the file
/// immediately, and retries with pauses until it succeeds. Watches end with the error.
///
/// # Files
/// - The backend creates a missing file, readable by its owner only. The directory must exist. The file gets its name after the
///   first commit. A crash before that can leave a file `.snakepit-unfinished-*`, which you can delete.
/// - The backend rejects an empty file, because it has lost its sessions. Delete the file to start without sessions.
/// - Only one process can open the file at a time.
/// - The file does not shrink; new sessions reuse the space of deleted ones.
/// - Opening reads the whole file and verifies its checksums, and rejects a damaged file. After a crash, a damaged last commit
///   looks like an incomplete one; the backend then uses the previous commit and logs a warning.
/// - Reads and commits do not verify checksums. If another process overwrites a part of the file in place, or the disk damages
///   it, a read of a damaged row fails, and the next start rejects the file. To check a file, close the backend, copy the file,
///   and open the copy.
/// - The backend rejects files with another schema version.
///
/// Event counters in [`stats`](snakepit_session::SessionBackend::stats) start at 0.
///
/// Dropping the backend blocks until queued operations are written and the file is closed.
///
/// # Example
/// ```
/// use snakepit_session::{NewSession, SessionBackend, SessionId, SessionLimits};
/// use snakepit_session_redb::RedbBackend;
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("sessions.redb");
/// let alice = SessionId::try_new("alice")?;
/// let backend = RedbBackend::open(&path, SessionLimits::default()).await?;
/// backend.create(&alice, NewSession::default()).await?;
/// drop(backend);
///
/// let reopened = RedbBackend::open(&path, SessionLimits::default()).await?;
/// assert_eq!(reopened.get(&alice).await?.id, alice);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RedbBackend {
    writer: Writer,
    shared: Arc<SharedState>,
}

/// State that the writer and readers share.
#[derive(Debug)]
struct SharedState {
    path: PathBuf,
    limits: SessionLimits,
    /// The database, or the error of the last attempt to open it. Readers hold the lock, so the writer cannot close the database
    /// during a read.
    database: Arc<RwLock<Result<Arc<Database>, SessionError>>>,
    expiries: Expiries,
    row_counts: Arc<RowCounts>,
    stats: Mutex<SessionStats>,
    events: SessionEventSender,
}

impl SharedState {
    fn new(path: PathBuf, limits: SessionLimits, database: Arc<Database>) -> Self {
        Self {
            path,
            limits,
            database: Arc::new(RwLock::new(Ok(database))),
            expiries: Expiries::default(),
            row_counts: Arc::default(),
            stats: Mutex::default(),
            events: SessionEventSender::new(),
        }
    }

    fn publish(&self, stats: SessionStats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    fn stats(&self) -> SessionStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a snapshot of the last commit.
    async fn view(&self) -> Result<View, SessionError> {
        let database = Arc::clone(&self.database).read_owned().await;
        let commits = self.row_counts.commits();
        let transaction = match &*database {
            Ok(database) => database.begin_read().map_err(backend_error)?,
            Err(failure) => return Err(failure.clone()),
        };
        Ok(View::new(transaction, Arc::clone(&self.row_counts), commits, database))
    }
}

impl RedbBackend {
    /// Opens a session file, or creates it.
    ///
    /// # Errors
    /// [`SessionError::Backend`] with the name of the file: the directory is missing, a process has the file open, it is damaged
    /// or contains something else, or it has another schema version.
    ///
    /// # Cancel safety
    /// If the future is dropped, the file is closed again.
    pub async fn open(path: impl AsRef<Path> + Send, limits: SessionLimits) -> Result<Self, SessionError> {
        let (writer, shared) = Writer::spawn(path.as_ref().to_owned(), limits, |file| file).await?;
        Ok(Self { writer, shared })
    }

    /// Runs an operation that writes about `size` bytes.
    async fn write<T: Send + 'static>(
        &self,
        size: usize,
        operation: impl FnOnce(&mut Group<'_>) -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        self.writer.run(size, operation).await.map_err(|error| with_path(&self.shared.path, error))
    }

    /// Runs a read of at most `size` bytes.
    async fn read<T: Send + 'static>(
        &self,
        size: usize,
        read: impl FnOnce() -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        if size <= LARGE_READ_BYTES {
            return read();
        }
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|error| Err(SessionError::backend("reading failed").with_source(error)))
    }

    /// Returns true if the first attempt of a read failed because of the disk. Waits until the writer has tried to reopen the
    /// file, so that the caller can retry.
    async fn should_retry<T>(&self, has_retried: &mut bool, read: &Result<T, SessionError>) -> bool {
        match read {
            Err(error) if is_disk_error(error) && !std::mem::replace(has_retried, true) => {
                // Any operation makes the writer detect the failure and reopen the file.
                let _ = self.writer.run(0, |_| Ok(())).await;
                true
            }
            _ => false,
        }
    }

    /// Reads the header of a session that has not expired. Also returns the snapshot.
    async fn header(&self, id: &SessionId) -> Result<(View, SessionRecord), SessionError> {
        let view = self.shared.view().await?;
        match view.record(id) {
            Err(SessionError::NotFound { .. }) => {}
            found => return Ok((view, found?)),
        }
        drop(view);
        // The session may end with the current group of the writer. If it does not, the file has lost the session.
        self.writer.run(0, |_| Ok(())).await?;
        match self.shared.expiries.live(&ExpiryKey::Session(id.clone()), Instant::now()) {
            Some(_) => Err(damaged_error(&format!("session `{id}` is missing"))),
            None => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    /// Renews a live session and returns its expiry.
    fn renew(&self, id: &SessionId) -> Result<Expiry, SessionError> {
        let expiry = self.shared.expiries.renew(&ExpiryKey::Session(id.clone()), Instant::now());
        expiry.ok_or_else(|| SessionError::NotFound { id: id.clone() })
    }

    /// Reads from a session and renews it.
    async fn read_session<T: Send + 'static>(
        &self,
        id: &SessionId,
        read_session: impl Fn(&SessionId, &View, SessionRecord) -> Result<T, SessionError>
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> Result<T, SessionError> {
        self.renew(id)?;
        let mut has_retried = false;
        loop {
            let outcome = async {
                let (view, record) = self.header(id).await?;
                let (id, size, read_session) = (id.clone(), record.header.bytes, read_session.clone());
                self.read(size, move || read_session(&id, &view, record)).await
            };
            let outcome = outcome.await;
            if !self.should_retry(&mut has_retried, &outcome).await {
                return outcome.map_err(|error| with_path(&self.shared.path, error));
            }
        }
    }
}

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests;
