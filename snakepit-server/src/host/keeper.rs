//! Renews sessions while calls use them, so that none expires under a call that takes longer than its TTL.
//!
//! A lookup renews a session for its whole TTL. Calls whose deadline comes well before that need nothing more. The others
//! are counted here, and one task renews their sessions until the last of them has ended.

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
use snakepit_session::{SessionBackend, SessionError, SessionId};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// A session is renewed this many times per TTL, so that one renewal may fail.
const RENEWALS: u32 = 3;

/// Sessions are not renewed more often than this, however short their TTL.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// How many renewals are under way at the same time.
const AT_ONCE: usize = 32;

/// The sessions in use by calls that may outlive them.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    uses: Mutex<HashMap<SessionId, Use>>,
    /// Notified when a use may have to be renewed earlier than those before it.
    added: Notify,
}

#[derive(Debug)]
struct Use {
    calls: usize,
    ttl: Duration,
    /// When to renew it next.
    due: Instant,
}

/// Keeps one session for one call.
#[derive(Debug)]
pub(crate) struct InUse {
    keeper: Arc<Keeper>,
    id: SessionId,
}

impl Keeper {
    /// A call begins in a session that was renewed just now. `None`: the call ends before the session needs anything.
    pub(crate) fn hold(
        self: &Arc<Self>,
        id: &SessionId,
        ttl: Duration,
        deadline: Option<Instant>,
    ) -> Option<InUse> {
        let due = Instant::now().checked_add(pause(ttl))?;
        if deadline.is_some_and(|at| at <= due) {
            return None;
        }
        let mut is_first = false;
        self.uses().entry(id.clone()).and_modify(|used| used.calls += 1).or_insert_with(|| {
            is_first = true;
            Use { calls: 1, ttl, due }
        });
        if is_first {
            self.added.notify_one();
        }
        Some(InUse { keeper: Arc::clone(self), id: id.clone() })
    }

    /// Renews what is in use until the stop.
    pub(crate) async fn run(self: Arc<Self>, sessions: Arc<dyn SessionBackend>, stop: CancellationToken) {
        let renewing = async {
            let mut renewals = FuturesUnordered::new();
            let mut next = self.next_due();
            loop {
                tokio::select! {
                    () = self.added.notified() => {}
                    Some(()) = renewals.next() => continue,
                    () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)),
                        if next.is_some() && renewals.len() < AT_ONCE =>
                    {
                        let due = self.take_due(AT_ONCE - renewals.len());
                        renewals.extend(due.into_iter().map(|id| renew(&*sessions, id)));
                    }
                }
                next = self.next_due();
            }
        };
        stop.run_until_cancelled(renewing).await;
    }

    fn next_due(&self) -> Option<Instant> {
        self.uses().values().map(|used| used.due).min()
    }

    /// Some of the sessions that are due now or very soon, which bounds how often the books are gone through.
    fn take_due(&self, most: usize) -> Vec<SessionId> {
        let now = Instant::now();
        let mut uses = self.uses();
        let due = uses.iter_mut().filter(|(_, used)| used.due <= now + SHORTEST_PAUSE / 2);
        due.take(most)
            .map(|(id, used)| {
                used.due = now + pause(used.ttl);
                id.clone()
            })
            .collect()
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<SessionId, Use>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn renew(sessions: &dyn SessionBackend, id: SessionId) {
    match sessions.get(&id).await {
        // Whoever deleted it did so on purpose, and the call will hear of it.
        Ok(_) | Err(SessionError::NotFound { .. }) => {}
        Err(error) => tracing::warn!(session = %id, %error, "failed to renew a session that a call uses"),
    }
}

fn pause(ttl: Duration) -> Duration {
    (ttl / RENEWALS).max(SHORTEST_PAUSE)
}

impl InUse {
    /// Keeps the session until the reply is complete: for a stream, to its end.
    pub(crate) fn until_complete(self, reply: ToolReply) -> ToolReply {
        let ReplyBody::Stream(chunks) = reply.body else { return reply };
        let kept = Kept { chunks, in_use: Some(self) };
        ToolReply { body: ReplyBody::Stream(Box::pin(kept)), ..reply }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut uses = self.keeper.uses();
        if let Some(used) = uses.get_mut(&self.id) {
            used.calls -= 1;
            if used.calls == 0 {
                uses.remove(&self.id);
            }
        }
    }
}

/// A stream of a call that uses a session.
struct Kept {
    chunks: ChunkStream,
    /// `None` after the end.
    in_use: Option<InUse>,
}

impl Stream for Kept {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.chunks.as_mut().poll_next(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.in_use = None;
        }
        polled
    }
}
