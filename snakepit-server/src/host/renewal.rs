//! Renews sessions while calls use them, so that none expires during a call that takes longer than its TTL.
//!
//! A lookup renews a session for its whole TTL, which suffices for calls with an earlier deadline. This module counts all other calls,
//! and one task renews their sessions until the last call has ended.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_util::{StreamExt, stream::FuturesUnordered};
use snakepit_registry::{Chunk, ChunkStream, ReplyBody, ToolError, ToolReply};
use snakepit_session::{SessionBackend, SessionError, SessionId, error_chain};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// The number of renewals per TTL. A session survives a failed renewal.
const RENEWALS_PER_TTL: u32 = 3;

/// The minimum time between renewals of a session with a very short TTL.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The maximum number of concurrent renewals.
const MAX_CONCURRENT: usize = 32;

/// Renews the sessions of calls that may outlast the TTL.
#[derive(Debug, Default)]
pub(crate) struct SessionRenewer {
    sessions: Mutex<HashMap<SessionId, UsedSession>>,
    /// Notified when a session is added, because it may be due before the others.
    added: Notify,
}

/// A session that calls use.
#[derive(Debug)]
struct UsedSession {
    /// The number of calls that use the session.
    calls: usize,
    ttl: Duration,
    /// The time of the next renewal.
    due: Instant,
}

/// One call's use of a session. Dropping it ends the use.
#[derive(Debug)]
pub(crate) struct SessionUse {
    renewer: Arc<SessionRenewer>,
    id: SessionId,
}

impl SessionRenewer {
    /// Registers a call in a session that was just renewed. Returns `None` if the call ends before the session must be renewed.
    pub(crate) fn begin_use(
        self: &Arc<Self>,
        id: &SessionId,
        ttl: Duration,
        deadline: Option<Instant>,
    ) -> Option<SessionUse> {
        let due = Instant::now().checked_add(renewal_interval(ttl))?;
        if deadline.is_some_and(|at| at <= due) {
            return None;
        }
        let mut is_first = false;
        self.lock().entry(id.clone()).and_modify(|used| used.calls += 1).or_insert_with(|| {
            is_first = true;
            UsedSession { calls: 1, ttl, due }
        });
        if is_first {
            self.added.notify_one();
        }
        Some(SessionUse { renewer: Arc::clone(self), id: id.clone() })
    }

    /// Renews sessions in use until the stop.
    pub(crate) async fn run(self: Arc<Self>, backend: Arc<dyn SessionBackend>, stop: CancellationToken) {
        let renewing = async {
            let mut renewals = FuturesUnordered::new();
            let mut next = self.next_due();
            loop {
                tokio::select! {
                    () = self.added.notified() => {}
                    Some(()) = renewals.next() => continue,
                    () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)),
                        if next.is_some() && renewals.len() < MAX_CONCURRENT =>
                    {
                        let due = self.take_due(MAX_CONCURRENT - renewals.len());
                        renewals.extend(due.into_iter().map(|id| renew(&*backend, id)));
                    }
                }
                next = self.next_due();
            }
        };
        stop.run_until_cancelled(renewing).await;
    }

    fn next_due(&self) -> Option<Instant> {
        self.lock().values().map(|used| used.due).min()
    }

    /// Takes up to `limit` sessions that are due now or very soon. Including those due soon avoids frequent passes over the map.
    fn take_due(&self, limit: usize) -> Vec<SessionId> {
        let now = Instant::now();
        let mut sessions = self.lock();
        let due = sessions.iter_mut().filter(|(_, used)| used.due <= now + MIN_INTERVAL / 2);
        due.take(limit)
            .map(|(id, used)| {
                used.due = now + renewal_interval(used.ttl);
                id.clone()
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, UsedSession>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn renew(backend: &dyn SessionBackend, id: SessionId) {
    match backend.get(&id).await {
        // A client deleted the session. The call gets an error when it next uses the session.
        Ok(_) | Err(SessionError::NotFound { .. }) => {}
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(session = %id, %error, "failed to renew a session that a call uses");
        }
    }
}

fn renewal_interval(ttl: Duration) -> Duration {
    (ttl / RENEWALS_PER_TTL).max(MIN_INTERVAL)
}

impl SessionUse {
    /// Extends the use until the reply is complete. A stream is complete at its end.
    pub(crate) fn until_complete(self, reply: ToolReply) -> ToolReply {
        let ReplyBody::Stream(chunks) = reply.body else { return reply };
        let stream = SessionStream { chunks, session_use: Some(self) };
        ToolReply { body: ReplyBody::Stream(Box::pin(stream)), ..reply }
    }
}

impl Drop for SessionUse {
    fn drop(&mut self) {
        let mut sessions = self.renewer.lock();
        if let Some(used) = sessions.get_mut(&self.id) {
            used.calls -= 1;
            if used.calls == 0 {
                sessions.remove(&self.id);
            }
        }
    }
}

/// The stream of a call that uses a session.
struct SessionStream {
    chunks: ChunkStream,
    /// `None` after the end.
    session_use: Option<SessionUse>,
}

impl Stream for SessionStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.chunks.as_mut().poll_next(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.session_use = None;
        }
        polled
    }
}
