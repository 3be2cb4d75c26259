//! Stores which worker served a session last, without delaying the answer.
//!
//! Affinity is a hint. A backend that stores it at the first poll, as memory does, does so on the path of the answer. For
//! all others a background task goes on: one per session, which writes only the latest worker, and a bounded number in all.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use snakepit_session::{SessionBackend, SessionError, SessionId};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Sessions whose worker is being stored. The hints of more are dropped.
const MOST_WRITES: usize = 1024;

/// How long a backend may take to store one hint.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// Where hints go.
#[derive(Debug, Clone)]
pub(crate) struct Affinity {
    sessions: Arc<dyn SessionBackend>,
    /// For each session whose worker is being stored: the worker to store after that.
    writes: Arc<Mutex<HashMap<SessionId, Option<Arc<str>>>>>,
    tasks: TaskTracker,
    runtime: Handle,
    stop: CancellationToken,
}

impl Affinity {
    /// Background tasks run in this runtime, are tracked, and end at the stop.
    pub(crate) fn new(
        sessions: Arc<dyn SessionBackend>,
        tasks: TaskTracker,
        runtime: Handle,
        stop: CancellationToken,
    ) -> Self {
        Self { sessions, writes: Arc::default(), tasks, runtime, stop }
    }

    /// Stores the worker of a session, now if the backend can, else in the background.
    pub(crate) fn remember(&self, id: SessionId, worker: Arc<str>) {
        if let Some(next) = self.writes().get_mut(&id) {
            *next = Some(worker);
            return;
        }
        let mut write: Pin<Box<dyn Future<Output = ()> + Send>> = {
            let (sessions, id) = (Arc::clone(&self.sessions), id.clone());
            Box::pin(async move { store(&*sessions, &id, worker).await })
        };
        if write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        {
            let mut writes = self.writes();
            if writes.len() >= MOST_WRITES || writes.contains_key(&id) {
                return;
            }
            writes.insert(id.clone(), None);
        }
        let this = self.clone();
        let task = async move {
            let stop = this.stop.clone();
            // A hint that is not stored by the stop is lost, like the session's worker itself.
            let _done = stop.run_until_cancelled(this.write_latest(&id, write)).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    async fn write_latest(&self, id: &SessionId, mut write: Pin<Box<dyn Future<Output = ()> + Send>>) {
        loop {
            if timeout(WRITE_WITHIN, write).await.is_err() {
                tracing::warn!(session = %id, within = ?WRITE_WITHIN, "failed to remember the session's worker in time");
            }
            let Some(worker) = self.next(id) else { return };
            let (sessions, id) = (Arc::clone(&self.sessions), id.clone());
            write = Box::pin(async move { store(&*sessions, &id, worker).await });
        }
    }

    /// The worker to store next. Without one the write is over, in the same step, so that no later hint is lost.
    fn next(&self, id: &SessionId) -> Option<Arc<str>> {
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

async fn store(sessions: &dyn SessionBackend, id: &SessionId, worker: Arc<str>) {
    match sessions.set_last_worker(id, worker).await {
        Ok(()) | Err(SessionError::NotFound { .. }) => {}
        Err(error) => tracing::warn!(session = %id, %error, "failed to remember the session's worker"),
    }
}
