//! Stores the worker that served a session last, without delaying the reply.
//!
//! Affinity is a hint. The memory backend stores it at the first poll, and therefore before the reply. Other backends continue in a
//! background task. Each session has at most one such task, which writes only the latest worker, and their total number is bounded.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use snakepit_session::{SessionBackend, SessionError, SessionId, error_chain};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The maximum number of sessions with a write in progress. Hints for further sessions are dropped.
const MAX_WRITES: usize = 1024;

/// The time that a backend may take to store one hint.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes affinity hints to the session backend.
#[derive(Debug, Clone)]
pub(crate) struct AffinityWriter {
    sessions: Arc<dyn SessionBackend>,
    /// The sessions with a write in progress, each with the worker to store after it.
    writes: Arc<Mutex<HashMap<SessionId, Option<Arc<str>>>>>,
    tasks: TaskTracker,
    runtime: Handle,
    stop: CancellationToken,
}

impl AffinityWriter {
    /// Background tasks run on `runtime`, belong to `tasks`, and end at the stop.
    pub(crate) fn new(
        sessions: Arc<dyn SessionBackend>,
        tasks: TaskTracker,
        runtime: Handle,
        stop: CancellationToken,
    ) -> Self {
        Self { sessions, writes: Arc::default(), tasks, runtime, stop }
    }

    /// Stores the worker of a session: immediately if the backend does not have to wait, otherwise in the background.
    pub(crate) fn store(&self, id: SessionId, worker: Arc<str>) {
        if let Some(next) = self.writes().get_mut(&id) {
            *next = Some(worker);
            return;
        }
        let mut write: Pin<Box<dyn Future<Output = ()> + Send>> = {
            let (sessions, id) = (Arc::clone(&self.sessions), id.clone());
            Box::pin(async move { write_hint(&*sessions, &id, worker).await })
        };
        if write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        {
            let mut writes = self.writes();
            if writes.len() >= MAX_WRITES || writes.contains_key(&id) {
                return;
            }
            writes.insert(id.clone(), None);
        }
        let this = self.clone();
        let task = async move {
            let stop = this.stop.clone();
            // The stop also ends the workers, so hints that are not stored yet have no use.
            let _done = stop.run_until_cancelled(this.write_latest(&id, write)).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Completes a write, and then stores the latest of the hints that arrived meanwhile, until there are none.
    async fn write_latest(&self, id: &SessionId, mut write: Pin<Box<dyn Future<Output = ()> + Send>>) {
        loop {
            if timeout(WRITE_TIMEOUT, write).await.is_err() {
                tracing::warn!(session = %id, within = ?WRITE_TIMEOUT, "failed to store the last worker of a session in time");
            }
            let Some(worker) = self.take_next(id) else { return };
            let (sessions, id) = (Arc::clone(&self.sessions), id.clone());
            write = Box::pin(async move { write_hint(&*sessions, &id, worker).await });
        }
    }

    /// Takes the worker to store next. If there is none, removes the session under the same lock, so that no later hint is lost.
    fn take_next(&self, id: &SessionId) -> Option<Arc<str>> {
        let mut writes = self.writes();
        let next = writes.get_mut(id)?.take();
        if next.is_none() {
            writes.remove(id);
        }
        next
    }

    fn writes(&self) -> MutexGuard<'_, HashMap<SessionId, Option<Arc<str>>>> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_hint(sessions: &dyn SessionBackend, id: &SessionId, worker: Arc<str>) {
    match sessions.set_last_worker(id, worker).await {
        Ok(()) | Err(SessionError::NotFound { .. }) => {}
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(session = %id, %error, "failed to store the last worker of a session");
        }
    }
}
