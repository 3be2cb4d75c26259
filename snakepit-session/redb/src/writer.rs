//! The writer thread. Operations that arrive during a disk sync share the next transaction and its sync (group commit).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use redb::{Database, StorageBackend, backends::FileBackend};
use snakepit_session::{SessionError, SessionLimits, error_chain};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    SharedState,
    checked_storage::CheckedStorage,
    file::{FileIdentity, check_free_space},
    group::Group,
    open::{Opened, open, store_expiries, with_path},
    rows::backend_error,
    state::State,
};

/// The capacity of the queue. Above it, callers wait (backpressure).
const QUEUE_CAPACITY: usize = 1024;
/// The maximum number of operations in a transaction, which bounds its latency.
const MAX_GROUP_OPERATIONS: usize = 1024;
/// The maximum size of the new values in a transaction in bytes, which bounds its latency. The rows of previous versions do not
/// count.
const MAX_GROUP_BYTES: usize = 16 * 1024 * 1024;

/// An operation to run within a transaction.
trait Operation: Send {
    /// The approximate number of bytes that it writes.
    fn size(&self) -> usize;
    /// Runs the operation. Returns an error if the backend failed.
    fn run(&mut self, group: &mut Group<'_>) -> Result<(), SessionError>;
    /// Sends the outcome to the caller after the commit.
    fn complete(self: Box<Self>, committed: Result<(), SessionError>);
}

struct Request<T, F> {
    size: usize,
    run: Option<F>,
    outcome: Option<Result<T, SessionError>>,
    reply: oneshot::Sender<Result<T, SessionError>>,
}

impl<T, F> Operation for Request<T, F>
where
    T: Send,
    F: FnOnce(&mut Group<'_>) -> Result<T, SessionError> + Send,
{
    fn size(&self) -> usize {
        self.size
    }

    fn run(&mut self, group: &mut Group<'_>) -> Result<(), SessionError> {
        self.outcome = self.run.take().map(|run| run(group));
        match &self.outcome {
            Some(Err(error @ (SessionError::Backend { .. } | SessionError::NotWritten { .. }))) => {
                Err(error.clone())
            }
            _ => Ok(()),
        }
    }

    fn complete(self: Box<Self>, committed: Result<(), SessionError>) {
        let outcome = self.outcome.unwrap_or_else(|| Err(problem("the operation did not run")));
        // Fails if the caller was dropped.
        let _ = self.reply.send(committed.and(outcome));
    }
}

fn problem(problem: &str) -> SessionError {
    SessionError::backend(problem)
}

/// A handle to the thread. Dropping it runs the queued operations and closes the file.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Box<dyn Operation>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread, which opens the file and then waits for operations.
    ///
    /// # Cancel safety
    /// If the future is dropped, the thread closes the file again.
    pub(super) async fn spawn<F: StorageBackend>(
        path: PathBuf,
        limits: SessionLimits,
        storage: impl Fn(FileBackend) -> F + Send + 'static,
    ) -> Result<(Self, Arc<SharedState>), SessionError> {
        let (queue, operations) = mpsc::channel(QUEUE_CAPACITY);
        let (opened, shared) = oneshot::channel();
        // The thread uses the runtime's clock, which tests pause.
        let runtime = Handle::try_current().ok();
        let run = move || {
            let _clock = runtime.as_ref().map(Handle::enter);
            match WriterThread::open(path, limits, storage, operations) {
                Ok(writer) => {
                    // Fails if the caller was dropped; then the queue is closed too.
                    let _ = opened.send(Ok(Arc::clone(&writer.shared)));
                    writer.run();
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("snakepit-redb".to_owned()).spawn(run);
        let thread = thread.map_err(|error| problem("cannot start its thread").with_source(error))?;
        let shared = shared.await.map_err(|_| problem("its thread ended while it opened the file"))??;
        Ok((Self { queue: Some(queue), thread: Some(thread) }, shared))
    }

    /// Runs an operation that writes about `size` bytes, and waits for the commit.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        size: usize,
        operation: impl FnOnce(&mut Group<'_>) -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        let ended = || problem("its thread has ended");
        let (reply, outcome) = oneshot::channel();
        let request = Box::new(Request { size, run: Some(operation), outcome: None, reply });
        let queue = self.queue.as_ref().ok_or_else(ended)?;
        queue.send(request).await.map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes sessions panicked");
        }
    }
}

/// The state of the thread.
struct WriterThread<S> {
    shared: Arc<SharedState>,
    state: State,
    operations: mpsc::Receiver<Box<dyn Operation>>,
    storage: S,
    identity: FileIdentity,
    guard: CheckedStorage,
    /// The database, or `None` if it could not be reopened.
    database: Option<Arc<Database>>,
    /// The last disk failure, and the time of the next attempt.
    outage: Option<(SessionError, Instant)>,
}

/// The bounds of the pause after a disk failure.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// The length of the pause, as a multiple of the time that reopening took. Reopening reads the whole file.
const PAUSE_FACTOR: u32 = 10;

impl<F: StorageBackend, S: Fn(FileBackend) -> F> WriterThread<S> {
    fn open(
        path: PathBuf,
        limits: SessionLimits,
        storage: S,
        operations: mpsc::Receiver<Box<dyn Operation>>,
    ) -> Result<Self, SessionError> {
        let Opened { database, identity, guard, totals, expiries } = open(&path, &limits, &storage, None)?;
        let database = Arc::new(database);
        let shared = Arc::new(SharedState::new(path, limits, Arc::clone(&database)));
        let mut state = State::default();
        state.resume(&shared, totals, expiries);
        Ok(Self {
            shared,
            state,
            operations,
            storage,
            identity,
            guard,
            database: Some(database),
            outage: None,
        })
    }

    fn run(mut self) {
        while let Some(first) = self.operations.blocking_recv() {
            let mut group = vec![first];
            let committed = self.commit(&mut group);
            for operation in group {
                operation.complete(committed.clone());
            }
        }
        let path = &self.shared.path;
        let closed = match &self.database {
            Some(database) => {
                let intact = self.identity.check(path).and_then(|_| self.guard.check());
                intact
                    .map_err(|reason: String| problem(&reason))
                    .and_then(|()| store_expiries(database, &self.shared.expiries))
            }
            None => self.outage.map_or(Ok(()), |(failure, _)| Err(failure)),
        };
        if let Err(error) = closed {
            tracing::error!(path = %path.display(), error = %error_chain(&error), "failed to close the session file cleanly");
        }
    }

    /// Runs the queued operations, including new arrivals, and commits all of them or none.
    fn commit(&mut self, group: &mut Vec<Box<dyn Operation>>) -> Result<(), SessionError> {
        let database = self.database()?;
        let committed = catch_unwind(AssertUnwindSafe(|| self.try_commit(&database, group)));
        let committed = committed.unwrap_or_else(|_| {
            Err(problem("an operation panicked, so the operations of its transaction were rolled back"))
        });
        let Err(error) = committed else {
            self.state.publish(&self.shared);
            return Ok(());
        };
        let path = self.shared.path.display();
        tracing::error!(%path, error = %error_chain(&error), operations = group.len(), "failed to write sessions");
        self.state.discard();
        // Redb must be reopened after a disk error, but not after other errors. An overwritten file must not be read again.
        if !self.guard.is_foreign() && database.begin_write().is_ok() {
            return Err(error);
        }
        drop(database);
        Err(self.fail(error))
    }

    /// Returns the database. Reopens it if necessary, unless the pause is still running.
    fn database(&mut self) -> Result<Arc<Database>, SessionError> {
        if let Some(database) = &self.database {
            return Ok(Arc::clone(database));
        }
        let failure = self.outage.as_ref().map(|(failure, _)| failure.clone());
        let failure = failure.unwrap_or_else(|| problem("it is closed"));
        self.check_outage()?;
        self.reopen(&failure)?;
        self.database.clone().ok_or(failure)
    }

    /// Returns an error during the pause after a disk failure.
    fn check_outage(&self) -> Result<(), SessionError> {
        match &self.outage {
            Some((failure, until)) if Instant::now() < *until => Err(failure.clone()),
            _ => Ok(()),
        }
    }

    /// Reopens the file after a disk failure, as redb requires. Until then, the outcome of the last commit is unknown, so watches
    /// end.
    fn fail(&mut self, error: SessionError) -> SessionError {
        let failure = with_path(&self.shared.path, error);
        self.state.end_watches(&failure);
        if let Err(error) = self.reopen(&failure) {
            tracing::error!(error = %error_chain(&error), "cannot reopen the sessions; retrying");
        }
        failure
    }

    /// Reopens the file. Writes then fail during a pause; reads continue if the file could be opened.
    fn reopen(&mut self, failure: &SessionError) -> Result<(), SessionError> {
        let began = Instant::now();
        let Self { shared, identity, guard, database, .. } = self;
        let mut current = shared.database.blocking_write();
        // The check disables writes to an overwritten file. Redb writes to the file on close, which must not damage foreign data.
        if let Err(problem) = guard.check() {
            tracing::error!(path = %shared.path.display(), problem, "can no longer use the session file");
        }
        // The write lock excludes readers, so this closes the file.
        *current = Err(failure.clone());
        *database = None;
        shared.row_counts.invalidate();
        let opened = open(&shared.path, &shared.limits, &self.storage, Some((*identity, guard)));
        let outcome =
            opened.map(|Opened { database: opened, guard: opened_guard, totals, expiries, .. }| {
                let opened = Arc::new(opened);
                *guard = opened_guard;
                *current = Ok(Arc::clone(&opened));
                *database = Some(opened);
                (totals, expiries)
            });
        if let Err(error) = &outcome {
            *current = Err(error.clone());
        }
        drop(current);
        let pause = (began.elapsed() * PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE);
        let until = Instant::now() + pause;
        match outcome {
            Ok((totals, expiries)) => {
                self.state.reload(shared, totals, expiries);
                tracing::warn!(path = %shared.path.display(), "reopened the sessions after a disk error");
                self.outage = Some((failure.clone(), until));
                Ok(())
            }
            Err(error) => {
                self.outage = Some((error.clone(), until));
                Err(error)
            }
        }
    }

    fn try_commit(
        &mut self,
        database: &Database,
        operations: &mut Vec<Box<dyn Operation>>,
    ) -> Result<(), SessionError> {
        let outage = self.check_outage();
        let Self { shared, state, operations: queue, identity, guard, .. } = self;
        // Redb's default durability syncs each commit.
        let transaction = database.begin_write().map_err(backend_error)?;
        let mut group = Group::begin(shared, state, &transaction)?;
        let (mut index, mut size, mut first_error) = (0, 0, None);
        while let Some(operation) = operations.get_mut(index) {
            let writes = group.writes();
            group.begin_operation();
            if let Err(error) = operation.run(&mut group) {
                // The other operations can only continue if this one failed before its first write.
                if group.writes() != writes {
                    return Err(error);
                }
                first_error.get_or_insert(error);
            }
            (index, size) = (index + 1, size + operation.size());
            if index < MAX_GROUP_OPERATIONS && size < MAX_GROUP_BYTES {
                operations.extend(queue.try_recv());
            }
        }
        let has_writes = group.writes() > 0;
        drop(group);
        let ended = if has_writes {
            // Check first, because redb rejects all further operations after a failed commit.
            let stored = state.stored_bytes();
            let not_written = |problem: String| SessionError::not_written(problem);
            let is_usable = || {
                let file = identity.check(&shared.path).map_err(not_written)?;
                guard.check().map_err(|reason: String| problem(&reason))?;
                check_free_space(&shared.path, &file, stored, size).map_err(not_written)
            };
            match outage.and_then(|()| is_usable()) {
                Ok(()) => {
                    shared.row_counts.invalidate();
                    let committed = transaction.commit().map_err(backend_error);
                    shared.row_counts.invalidate();
                    committed.inspect(|()| self.outage = None)
                }
                Err(error) => {
                    // If the abort fails too, the next transaction cannot begin.
                    let _ = transaction.abort();
                    Err(error)
                }
            }
        } else {
            transaction.abort().map_err(backend_error)
        };
        // The first error explains more than the rejections that follow from it.
        ended.map_err(|error| first_error.unwrap_or(error))
    }
}
