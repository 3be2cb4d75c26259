//! [`Call`]: the handle of an open call.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use super::{CallEvent, SharedCalls};
use crate::pb::CallCredit;

/// The handle of one call. Dropping it before the end cancels the call.
pub struct Call {
    pub(super) shared: Arc<SharedCalls>,
    pub(super) id: u64,
    pub(super) has_ended: bool,
}

impl Call {
    /// The id of the call on its stream. Ids start at 1 and increase from call to call.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Polls for the next event. Must not be called again after [`CallEvent::End`].
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<CallEvent> {
        let mut stale = None;
        let mut state = self.shared.lock();
        let Some(entry) = state.calls.get_mut(&self.id) else { return Poll::Pending };
        if !entry.reports.is_empty() {
            return Poll::Ready(CallEvent::Reports(std::mem::take(&mut entry.reports)));
        }
        if let Some(opened) = entry.opened.take() {
            return Poll::Ready(CallEvent::Opened(opened));
        }
        if !entry.chunks.is_empty() {
            return Poll::Ready(CallEvent::Chunks(std::mem::take(&mut entry.chunks)));
        }
        if let Some(end) = entry.end.take() {
            self.has_ended = true;
            state.calls.remove(&self.id);
            return Poll::Ready(CallEvent::End(end));
        }
        if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            // Dropped after the lock is released, because dropping a waker may run foreign code.
            stale = entry.waker.replace(cx.waker().clone());
        }
        drop(state);
        drop(stale);
        Poll::Pending
    }

    /// Waits for the next event. Cancel safe. Must not be called again after [`CallEvent::End`].
    pub async fn event(&mut self) -> CallEvent {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Grants the callee credit for this many more bytes of chunks. Does nothing if the call has ended.
    pub fn grant(&self, bytes: u64) {
        self.shared.send(|state, _| {
            if state.calls.get(&self.id).is_some_and(|entry| entry.end.is_none()) {
                state.outbox.credits.push(CallCredit { id: self.id, bytes });
            }
        });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.has_ended {
            self.shared.send(|state, wakers| state.abandon(self.id, wakers));
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("id", &self.id)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}
