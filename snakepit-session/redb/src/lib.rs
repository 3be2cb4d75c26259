//! The durable backend: sessions in a file of this host, which outlive it however it ends.
//!
//! ```text
//!   RedbBackend ----- reads -----> a view of the file as it was committed last
//!        |
//!     writes, watches
//!        v
//!     writer (a thread) -- group -- one transaction for all that waits, one sync, then all answers
//!        |
//!     leases (in memory) <-- every use renews them
//! ```

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
mod codec;
mod file;
mod group;
mod lease;
mod open;
mod rows;
mod state;
mod writer;

use group::Group;
use lease::{Holder, Lease, Leases};
use open::in_file;
use rows::{View, damaged, failed, is_of_disk};
use writer::Writer;

/// What a read may touch, in bytes, before it is left to a thread that may block. Below it is a matter of microseconds,
/// which handing it over would cost as well.
const LARGE: usize = 1024 * 1024;
/// How many rows one transaction of a sweep removes, about: writes that come meanwhile wait for no more.
const SWEEP_ROWS: usize = 4096;

/// Sessions in a file, through [redb](https://docs.rs/redb): they outlive the host, however it ends.
///
/// An operation that changes something is answered when the file system says that it is on the disk. Until then it may
/// wait for the sync of others and then shares its own with all that came meanwhile, so one writer pays a sync for each
/// write, and many pay it together. Watchers and events tell of what is on the disk, never of anything that a crash could
/// undo. Reads go to what is on the disk, wait for no writer and are served from memory while it lasts.
///
/// # Time
/// TTLs run by the clock of the process, and every use renews them in memory only. When the backend is dropped, they are
/// written, and the next start goes on with what is left of them by the clock on the wall. After a crash, every session
/// and global program in the file gets a full TTL anew: none ends early because its last use was not written, one lives
/// at most a TTL longer, and one that had expired may be back if no [sweep](snakepit_session::SessionBackend::sweep) came since.
/// Which worker served a session last is kept the same way: a crash forgets it, but it took that worker as well.
///
/// # Failures
/// When the disk is full, or the file was deleted or replaced, writes are answered with [`SessionError::Backend`] and did
/// nothing, until there is room or the file is back; reads and watches go on.
///
/// When the disk fails, the writes of that moment are answered with [`SessionError::Backend`]; whether they are in the file
/// shows when it is opened anew, which the backend does at once, and again after a pause for as long as it takes. Watches
/// end with the error.
///
/// # Files
/// The file is made if need be, readable by its owner only; its directory must be there. One process at a time has it
/// open. It does not shrink when sessions end: their room is used again. Opening reads all of it once and verifies its
/// checksums, so a damaged file is refused. After a crash, a last write that is damaged cannot be told from one that was cut
/// off: the state before it is used, with a warning. What [`stats`](snakepit_session::SessionBackend::stats) counts of events begins at 0. The file bears the version
/// of its schema: any other is refused.
///
/// Dropping the backend blocks until what was asked is written and the file is closed.
#[derive(Debug)]
pub struct RedbBackend {
    writer: Writer,
    shared: Arc<Shared>,
}

/// What the writer and those who read have in common.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    limits: SessionLimits,
    /// Or why it cannot be opened. Who reads holds the lock, so that the writer closes nothing under a reader.
    database: Arc<RwLock<Result<Arc<Database>, SessionError>>>,
    leases: Leases,
    stats: Mutex<SessionStats>,
    events: SessionEventSender,
}

impl Shared {
    fn new(path: PathBuf, limits: SessionLimits, database: Arc<Database>) -> Self {
        Self {
            path,
            limits,
            database: Arc::new(RwLock::new(Ok(database))),
            leases: Leases::default(),
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

    /// What the file holds now.
    async fn view(&self) -> Result<View, SessionError> {
        let database = Arc::clone(&self.database).read_owned().await;
        let transaction = match &*database {
            Ok(database) => database.begin_read().map_err(failed)?,
            Err(failure) => return Err(failure.clone()),
        };
        Ok(View::new(transaction, database))
    }
}

impl RedbBackend {
    /// Opens a file of sessions, or makes it.
    ///
    /// # Errors
    /// [`SessionError::Backend`], naming the file: its directory is missing, it is open already, it holds something
    /// else or is damaged, or a version wrote it that has another schema.
    ///
    /// # Cancel safety
    /// When the future is dropped, the file is closed again.
    pub async fn open(path: impl AsRef<Path> + Send, limits: SessionLimits) -> Result<Self, SessionError> {
        let (writer, shared) = Writer::spawn(path.as_ref().to_owned(), limits, |file| file).await?;
        Ok(Self { writer, shared })
    }

    /// Changes something; it takes about so many bytes.
    async fn write<T: Send + 'static>(
        &self,
        size: usize,
        act: impl FnOnce(&mut Group<'_>) -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        self.writer.ask(size, act).await.map_err(|error| in_file(&self.shared.path, error))
    }

    /// Reads something that may be so large.
    async fn read<T: Send + 'static>(
        &self,
        size: usize,
        read: impl FnOnce() -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        if size <= LARGE {
            return read();
        }
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|error| {
            Err(SessionError::Backend { problem: format!("reading failed: {error}") })
        })
    }

    /// Whether to read once more: the disk had failed, and the writer has opened the file anew since.
    async fn is_open_again<T>(&self, is_second: &mut bool, read: &Result<T, SessionError>) -> bool {
        match read {
            Err(error) if is_of_disk(error) && !std::mem::replace(is_second, true) => {
                // The writer finds out that redb accepts nothing more, whatever it answers.
                let _ = self.writer.ask(0, |_| Ok(())).await;
                true
            }
            _ => false,
        }
    }

    /// The head of a session that has a lease.
    async fn header(&self, id: &SessionId) -> Result<(View, SessionRecord), SessionError> {
        let view = self.shared.view().await?;
        match view.record(id) {
            Err(SessionError::NotFound { .. }) => {}
            found => return Ok((view, found?)),
        }
        drop(view);
        // The writer may be about to end its lease. Otherwise the file lost it.
        self.writer.ask(0, |_| Ok(())).await?;
        match self.shared.leases.live(&Holder::Session(id.clone()), Instant::now()) {
            Some(_) => Err(damaged(&format!("session `{id}` is missing"))),
            None => Err(SessionError::NotFound { id: id.clone() }),
        }
    }

    /// The lease of a session that lives, renewed.
    fn renew(&self, id: &SessionId) -> Result<Lease, SessionError> {
        let lease = self.shared.leases.renew(&Holder::Session(id.clone()), Instant::now());
        lease.ok_or_else(|| SessionError::NotFound { id: id.clone() })
    }

    /// Uses a session without changing it.
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
        let mut is_second = false;
        loop {
            let looked = async {
                let (view, record) = self.header(id).await?;
                let (id, size, read_session) = (id.clone(), record.header.bytes, read_session.clone());
                self.read(size, move || read_session(&id, &view, record)).await
            };
            let looked = looked.await;
            if !self.is_open_again(&mut is_second, &looked).await {
                return looked.map_err(|error| in_file(&self.shared.path, error));
            }
        }
    }
}

#[cfg(test)]
mod tests;
