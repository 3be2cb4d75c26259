//! [`CallLoop`]: reads the messages of the caller and polls the calls.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tonic::{Code, Status};

use super::{BATCH_BYTES, Calls, ITEM_BYTES, Inbound, Replies, replace_waker, wake};
use crate::status::{OVERLOADED, error_status};

/// The maximum number of calls per message. Callers that limit messages to [`BATCH_BYTES`] stay below it. It bounds the memory for
/// the replies to one message, because the limit of the outbox applies only between messages.
const MAX_CALLS_PER_BATCH: usize = BATCH_BYTES / ITEM_BYTES;

/// The maximum number of messages to read before sending replies, so that a caller that never pauses gets its replies.
const MAX_BATCHES_PER_POLL: usize = 16;

/// Reads the messages of the caller and polls the calls. The future completes when all calls have ended, when the stream of the
/// caller breaks, or when the response is dropped. Dropping the future before that ends the response with UNAVAILABLE.
#[must_use = "calls run only while this is polled"]
pub struct CallLoop<C> {
    pub(super) inbound: Option<Inbound>,
    pub(super) calls: C,
    pub(super) replies: Replies,
}

impl<C: Calls> CallLoop<C> {
    /// Reads the messages that are ready.
    ///
    /// # Errors
    /// The status of a broken stream, or RESOURCE_EXHAUSTED for a message with too many calls.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..MAX_BATCHES_PER_POLL {
            let Some(inbound) = &mut self.inbound else { return Ok(()) };
            if !inbound.is_signalled() || self.replies.lock().is_full() {
                // The signal or `poll_take` wakes this task.
                return Ok(());
            }
            match inbound.poll_next() {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(batch))) if batch.calls.len() > MAX_CALLS_PER_BATCH => {
                    return Err(too_many_calls(batch.calls.len()));
                }
                Poll::Ready(Some(Ok(batch))) => {
                    if batch.takes_parts {
                        self.replies.enable_parts();
                    }
                    if batch.takes_buffers {
                        self.replies.enable_buffers();
                    }
                    self.calls.receive(batch);
                }
                Poll::Ready(Some(Err(status))) => return Err(status),
                Poll::Ready(None) => self.inbound = None,
            }
        }
        // More messages may be ready. Sends replies first.
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Reads messages and polls calls once. Ready when all calls have ended.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stale_waker = {
            let mut outbox = self.replies.lock();
            if outbox.is_closed || outbox.end.is_some() {
                return Poll::Ready(());
            }
            outbox.is_polling = true;
            replace_waker(&mut outbox.call_loop_waker, cx)
        };
        drop(stale_waker);
        let end = match self.read(cx) {
            Err(status) => Some(Err(status)),
            // The caller has closed its half, and all calls have ended.
            Ok(()) => (!self.calls.poll(cx) && self.inbound.is_none()).then_some(Ok(())),
        };
        let mut outbox = self.replies.lock();
        outbox.is_polling = false;
        if end.is_none() {
            return Poll::Pending;
        }
        outbox.end = end;
        Poll::Ready(())
    }

    /// Wakes the sending task if the outbox has items.
    fn flush(&self) {
        let waker = {
            let mut outbox = self.replies.lock();
            if outbox.bytes > 0 || outbox.end.is_some() { outbox.sender_waker.take() } else { None }
        };
        wake(waker);
    }
}

impl<C: Calls + Unpin> Future for CallLoop<C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let outcome = this.drive(cx);
        this.flush();
        outcome
    }
}

impl<C> Drop for CallLoop<C> {
    fn drop(&mut self) {
        let waker = {
            let mut outbox = self.replies.lock();
            let aborted = || Err(Status::unavailable("the server no longer runs the calls of this stream"));
            outbox.end.get_or_insert_with(aborted);
            outbox.sender_waker.take()
        };
        wake(waker);
    }
}

impl<C> fmt::Debug for CallLoop<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallLoop").field("replies", &self.replies).finish_non_exhaustive()
    }
}

fn too_many_calls(calls: usize) -> Status {
    let problem = format!(
        "a message starts {calls} calls, the limit is {MAX_CALLS_PER_BATCH}; send them in several messages of about a megabyte"
    );
    error_status(Code::ResourceExhausted, OVERLOADED, problem)
}
