//! The one thread that writes. Operations that come while it waits for the disk share the next transaction, and so the
//! next wait: the more there are, the less each of them costs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

use redb::CommitError;
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
/// How many operations share a transaction at most, and how many bytes: what one of them waits for is bounded.
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

impl std::fmt::Debug for dyn Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Operation")
    }
}

impl Writer {
    /// Opens the file in a thread that then waits for operations on it.
    pub(super) async fn spawn(
        path: std::path::PathBuf,
        limits: SessionLimits,
    ) -> Result<(Self, Arc<Shared>), SessionError> {
        let (queue, operations) = mpsc::channel(QUEUE);
        let (opened, answer) = oneshot::channel();
        // Its clock is that of the runtime, which tests pause.
        let runtime = Handle::try_current().ok();
        let run = move || {
            let _clock = runtime.as_ref().map(Handle::enter);
            let mut state = State::default();
            match open(path, limits, &mut state) {
                Ok(shared) => {
                    let shared = Arc::new(shared);
                    if opened.send(Ok(Arc::clone(&shared))).is_ok() {
                        Work { shared, state, operations }.run();
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name("snakepit-redb".to_owned()).spawn(run);
        let thread = thread.map_err(|error| problem(&format!("cannot start its thread: {error}")))?;
        let writer = Self { queue: Some(queue), thread: Some(thread) };
        let shared = answer.await.map_err(|_| problem("its thread ended while it opened the file"))??;
        Ok((writer, shared))
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
        let committed = self.shared.check().and_then(|()| {
            let ran = catch_unwind(AssertUnwindSafe(|| self.try_commit(group)));
            ran.unwrap_or_else(|_| Err(problem("an operation panicked, and those with it were not done")))
        });
        match &committed {
            Ok(()) => self.state.settle(&self.shared),
            Err(error) => {
                tracing::error!(
                    path = %self.shared.path.display(), %error, operations = group.len(),
                    "failed to write sessions"
                );
                self.state.forget();
                if self.shared.check().is_err() {
                    self.state.end_watches(error);
                }
            }
        }
        committed
    }

    fn try_commit(&mut self, operations: &mut Vec<Box<dyn Operation>>) -> Result<(), SessionError> {
        let Self { shared, state, operations: queue } = self;
        // Durable once it is committed: that is redb's default.
        let begun = shared.database.begin_write();
        let transaction = begun.map_err(|error| shared.fail(error))?;
        let mut group = Group::begin(shared, state, &transaction)?;
        let (mut at, mut size) = (0, 0);
        while let Some(operation) = operations.get_mut(at) {
            let writes = group.writes();
            group.begin_operation();
            if let Err(error) = operation.run(&mut group)
                && group.writes() != writes
            {
                return Err(error);
            }
            (at, size) = (at + 1, size + operation.size());
            if at < MAX_OPERATIONS && size < MAX_BYTES {
                operations.extend(queue.try_recv());
            }
        }
        let wrote = group.writes() > 0;
        drop(group);
        if !wrote {
            return transaction.abort().map_err(failed);
        }
        transaction.commit().map_err(|error| match error {
            // Redb gave up the transaction, nothing else.
            CommitError::TransactionPoisoned => failed(error),
            error => shared.fail(error),
        })
    }
}
