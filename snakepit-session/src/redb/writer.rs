//! The one thread that writes. Operations that come while it waits for the disk share the next transaction, and so the
//! next wait: the more there are, the less each of them costs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
};

use redb::{StorageBackend, backends::FileBackend};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use super::{
    Shared,
    group::Group,
    open::{close, open},
    rows::failed,
    state::State,
};
use crate::{SessionError, SessionLimits};

/// How many operations wait before those who bring more wait themselves.
const QUEUE: usize = 1024;
/// How many operations share a transaction at most, and how many bytes of new values, so that what one of them waits for is
/// bounded. A write to a variable writes the value before it too, into a row of its own, which this does not count.
const MAX_OPERATIONS: usize = 1024;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Something to do within a transaction.
trait Operation: Send {
    /// About how much it writes, in bytes.
    fn size(&self) -> usize;
    /// Does it. `Err`: the backend failed.
    fn run(&mut self, group: &mut Group<'_>) -> Result<(), SessionError>;
    /// Says how it went, now that it is certain.
    fn answer(self: Box<Self>, committed: Result<(), SessionError>);
}

struct Asked<T, F> {
    size: usize,
    act: Option<F>,
    outcome: Option<Result<T, SessionError>>,
    answer: oneshot::Sender<Result<T, SessionError>>,
}

impl<T, F> Operation for Asked<T, F>
where
    T: Send,
    F: FnOnce(&mut Group<'_>) -> Result<T, SessionError> + Send,
{
    fn size(&self) -> usize {
        self.size
    }

    fn run(&mut self, group: &mut Group<'_>) -> Result<(), SessionError> {
        self.outcome = self.act.take().map(|act| act(group));
        match &self.outcome {
            Some(Err(error @ SessionError::Backend { .. })) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn answer(self: Box<Self>, committed: Result<(), SessionError>) {
        let outcome = self.outcome.unwrap_or_else(|| Err(problem("the operation did not run")));
        // Fails when nobody waits for it any more, which is all the same.
        let _ = self.answer.send(committed.and(outcome));
    }
}

fn problem(problem: &str) -> SessionError {
    SessionError::Backend { problem: problem.to_owned() }
}

/// The thread, and the way to it. When this is dropped, what was asked is done first, and the file is let go.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Box<dyn Operation>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Opens a file in a thread that then waits for operations on it.
    ///
    /// # Cancel safety
    /// When the future is dropped, the thread closes the file again.
    pub(super) async fn spawn<F: StorageBackend>(
        path: PathBuf,
        limits: SessionLimits,
        storage: impl FnOnce(FileBackend) -> F + Send + 'static,
    ) -> Result<(Self, Arc<Shared>), SessionError> {
        let (queue, operations) = mpsc::channel(QUEUE);
        let (opened, answer) = oneshot::channel();
        // Its clock is that of the runtime, which tests pause.
        let runtime = Handle::try_current().ok();
        let run = move || {
            let _clock = runtime.as_ref().map(Handle::enter);
            let mut state = State::default();
            match open(path, limits, storage, &mut state) {
                Ok(shared) => {
                    let shared = Arc::new(shared);
                    // Fails when nobody waits for it any more, and then there are no operations either.
                    let _ = opened.send(Ok(Arc::clone(&shared)));
                    Work { shared, state, operations }.run();
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("snakepit-redb".to_owned()).spawn(run);
        let thread = thread.map_err(|error| problem(&format!("cannot start its thread: {error}")))?;
        let shared = answer.await.map_err(|_| problem("its thread ended while it opened the file"))??;
        Ok((Self { queue: Some(queue), thread: Some(thread) }, shared))
    }

    /// Does something that writes about so many bytes, and waits until it is certain.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        size: usize,
        act: impl FnOnce(&mut Group<'_>) -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        let ended = || problem("its thread has ended");
        let (answer, answered) = oneshot::channel();
        let asked = Box::new(Asked { size, act: Some(act), outcome: None, answer });
        let queue = self.queue.as_ref().ok_or_else(ended)?;
        queue.send(asked).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
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

struct Work {
    shared: Arc<Shared>,
    state: State,
    operations: mpsc::Receiver<Box<dyn Operation>>,
}

impl Work {
    fn run(mut self) {
        while let Some(first) = self.operations.blocking_recv() {
            let mut group = vec![first];
            let committed = self.commit(&mut group);
            for operation in group {
                operation.answer(committed.clone());
            }
        }
        let closed = self.shared.check().and_then(|()| close(&self.shared.database, &self.shared.leases));
        if let Err(error) = closed {
            tracing::error!(path = %self.shared.path.display(), %error, "failed to close the sessions in order");
        }
    }

    /// Runs operations and those that come meanwhile, and commits what they did: all of it, or nothing.
    fn commit(&mut self, group: &mut Vec<Box<dyn Operation>>) -> Result<(), SessionError> {
        self.shared.check()?;
        let ran = catch_unwind(AssertUnwindSafe(|| self.try_commit(group)));
        let ran =
            ran.unwrap_or_else(|_| Err(problem("an operation panicked, and those with it were not done")));
        let Err(error) = ran else {
            self.state.settle(&self.shared);
            return Ok(());
        };
        let path = self.shared.path.display();
        tracing::error!(%path, %error, operations = group.len(), "failed to write sessions");
        self.state.forget();
        // After an error of the disk, redb refuses to go on; after any other, it does.
        if self.shared.database.begin_write().is_ok() {
            return Err(error);
        }
        let failure = self.shared.fail(error);
        self.state.end_watches(&failure);
        Err(failure)
    }

    fn try_commit(&mut self, operations: &mut Vec<Box<dyn Operation>>) -> Result<(), SessionError> {
        let Self { shared, state, operations: queue } = self;
        // What it commits is durable: that is redb's default.
        let transaction = shared.database.begin_write().map_err(failed)?;
        let mut group = Group::begin(shared, state, &transaction)?;
        let (mut at, mut size, mut first_error) = (0, 0, None);
        while let Some(operation) = operations.get_mut(at) {
            let writes = group.writes();
            group.begin_operation();
            if let Err(error) = operation.run(&mut group) {
                // One that failed before it wrote did nothing, and the others can go on.
                if group.writes() != writes {
                    return Err(error);
                }
                first_error.get_or_insert(error);
            }
            (at, size) = (at + 1, size + operation.size());
            if at < MAX_OPERATIONS && size < MAX_BYTES {
                operations.extend(queue.try_recv());
            }
        }
        let wrote = group.writes() > 0;
        drop(group);
        let ended =
            if wrote { transaction.commit().map_err(failed) } else { transaction.abort().map_err(failed) };
        // What redb refuses after an error says less than the error.
        ended.map_err(|error| first_error.unwrap_or(error))
    }
}
