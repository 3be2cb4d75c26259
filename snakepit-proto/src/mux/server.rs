//! The callee: [`Serve`] is the response of the RPC, [`Calls`] runs the calls, and [`Replies`] collects their replies.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use tonic::{Code, Status, Streaming};

mod batch_budget;
mod large_items;

use self::{
    batch_budget::BatchBudget,
    large_items::{LargeItems, data_len},
};
use super::{
    BATCH_BYTES, FIELD_BYTES, ITEM_BYTES, MAX_ITEM_BYTES, PART_BYTES, TOO_LARGE, chunk_cost, reply_size,
    too_large,
};
use crate::{
    pb::{CallBatch, CallChunk, CallChunks, CallOpened, CallReply, ReplyBatch, ToolFailure},
    status::{OVERLOADED, error_status},
};

/// The limit of the outbox, in bytes, for backpressure. Above it, the callee reads no more calls until the caller has read some
/// replies. Items in parts do not block others, so one item of the maximum size may wait in addition.
const OUTBOX_BYTES: usize = 4 * BATCH_BYTES;

/// The maximum number of calls per message. Callers that limit messages to [`BATCH_BYTES`] stay below it. It bounds the memory for
/// the replies to one message, because the limit of the outbox applies only between messages.
const MAX_CALLS_PER_BATCH: usize = BATCH_BYTES / ITEM_BYTES;

/// The maximum number of messages to read before sending replies, so that a caller that never pauses gets its replies.
const MAX_BATCHES_PER_POLL: usize = 16;

/// Runs the calls of one stream. The value is dropped when the stream ends or breaks, and must then cancel the calls that still
/// run.
pub trait Calls: Send + 'static {
    /// Processes a message of the caller. Must not block.
    fn receive(&mut self, batch: CallBatch);

    /// Polls the calls that run on the task of the stream. Returns `true` while any call is open.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let _ = cx;
        false
    }
}

/// The outbox of a stream. Clones share it, on any thread. It discards items after the stream has ended.
#[derive(Clone, Default)]
pub struct Replies(Arc<Mutex<Outbox>>);

#[derive(Default)]
struct Outbox {
    batch: ReplyBatch,
    /// The approximate size of the batch, in bytes.
    bytes: usize,
    /// The items of the batch that are sent in parts.
    large: LargeItems,
    /// The sending task, while the outbox is empty.
    sender_waker: Option<Waker>,
    /// The task of the [`CallLoop`], woken when the outbox has capacity again or is closed.
    call_loop_waker: Option<Waker>,
    /// Streams that wait for [capacity](Replies::poll_capacity).
    capacity_waiters: Vec<Waker>,
    /// Tasks that wait until the outbox is [empty](Replies::emptied).
    empty_waiters: Vec<Waker>,
    /// Whether calls are being polled. The sending task is then woken once afterwards, not for each reply.
    is_polling: bool,
    /// The end of the response. No reply follows.
    end: Option<Result<(), Status>>,
    /// Whether the response was dropped.
    is_closed: bool,
}

impl Replies {
    /// Creates an empty outbox, to be passed to [`Serve::new`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends that a streaming call has begun.
    pub fn send_opened(&self, opened: CallOpened) {
        self.put(|outbox| {
            outbox.bytes += opened_size(&opened);
            outbox.batch.opened.push(opened);
        });
    }

    /// Sends chunks of a stream. Each may cost at most [`MAX_ITEM_BYTES`]. Does nothing without chunks.
    pub fn send_chunks(&self, id: u64, chunks: Vec<CallChunk>) {
        if chunks.is_empty() {
            return;
        }
        let bytes = ITEM_BYTES + chunks.iter().map(chunk_size).sum::<usize>();
        self.put(|outbox| {
            outbox.bytes += bytes;
            if bytes > PART_BYTES {
                chunks.iter().for_each(|chunk| outbox.large.count_item(chunk.data.len()));
            }
            match outbox.batch.chunks.last_mut() {
                Some(run) if run.id == id => {
                    outbox.bytes -= ITEM_BYTES;
                    run.chunks.extend(chunks);
                }
                _ => outbox.batch.chunks.push(CallChunks { id, chunks }),
            }
        });
    }

    /// Sends the end of a call. A reply above [`MAX_ITEM_BYTES`] becomes a failure.
    pub fn send_reply(&self, reply: CallReply) {
        let (reply, bytes) = bounded(reply);
        self.put(|outbox| {
            outbox.bytes += bytes;
            if bytes > PART_BYTES {
                outbox.large.count_item(data_len(&reply));
            }
            outbox.batch.replies.push(reply);
        });
    }

    /// Sends that a call was recalled before it began.
    pub fn send_recalled(&self, id: u64) {
        self.put(|outbox| {
            outbox.bytes += FIELD_BYTES;
            outbox.batch.recalled.push(id);
        });
    }

    /// Enables parts, unless items wait already. The caller requests parts in its first message.
    pub fn enable_parts(&self) {
        let mut outbox = self.lock();
        outbox.large.is_enabled |= outbox.bytes == 0;
    }

    /// Ready while the outbox is below its limit. Producers of chunks should wait for this.
    pub fn poll_capacity(&self, cx: &Context<'_>) -> Poll<()> {
        let mut outbox = self.lock();
        if !outbox.is_full() || outbox.is_closed {
            return Poll::Ready(());
        }
        if !outbox.capacity_waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
            outbox.capacity_waiters.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The receiving half.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn body(&self) -> ReplyBatches {
        ReplyBatches(self.clone())
    }

    /// Whether the transport has taken all items, or the response was dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let outbox = self.lock();
        outbox.bytes == 0 || outbox.is_closed
    }

    /// Waits until the transport has taken all items, or the response is dropped. Cancel safe.
    pub async fn emptied(&self) {
        std::future::poll_fn(|cx| {
            let mut outbox = self.lock();
            if outbox.bytes == 0 || outbox.is_closed {
                return Poll::Ready(());
            }
            if !outbox.empty_waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                outbox.empty_waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Adds items and wakes the sending task.
    fn put(&self, put: impl FnOnce(&mut Outbox)) {
        let waker = {
            let mut outbox = self.lock();
            if outbox.is_closed {
                return;
            }
            put(&mut outbox);
            if outbox.is_polling { None } else { outbox.sender_waker.take() }
        };
        wake(waker);
    }

    /// Locks the outbox. Ignores poisoning, because no code under the lock panics in the middle of a change.
    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_take(&self, cx: &Context<'_>) -> Poll<Option<Result<ReplyBatch, Status>>> {
        let mut outbox = self.lock();
        let was_full = outbox.is_full();
        if let Some(batch) = outbox.take_batch() {
            let empty_waiters =
                if outbox.bytes == 0 { std::mem::take(&mut outbox.empty_waiters) } else { Vec::new() };
            if was_full && !outbox.is_full() {
                let capacity_waiters = std::mem::take(&mut outbox.capacity_waiters);
                let call_loop = outbox.call_loop_waker.take();
                drop(outbox);
                capacity_waiters.into_iter().chain(call_loop).for_each(Waker::wake);
            } else {
                drop(outbox);
            }
            empty_waiters.into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(Ok(batch)));
        }
        if let Some(end) = &mut outbox.end {
            return Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err));
        }
        let stale_waker = replace_waker(&mut outbox.sender_waker, cx);
        drop(outbox);
        drop(stale_waker);
        Poll::Pending
    }

    /// Closes the outbox, because the response was dropped.
    fn close(&self) {
        let mut outbox = self.lock();
        outbox.is_closed = true;
        outbox.bytes = 0;
        outbox.large = LargeItems::default();
        let batch = std::mem::take(&mut outbox.batch);
        let capacity_waiters = std::mem::take(&mut outbox.capacity_waiters);
        let empty_waiters = std::mem::take(&mut outbox.empty_waiters);
        let call_loop = outbox.call_loop_waker.take();
        drop(outbox);
        drop(batch);
        capacity_waiters.into_iter().chain(empty_waiters).chain(call_loop).for_each(Waker::wake);
    }
}

impl Outbox {
    const fn is_full(&self) -> bool {
        self.bytes > OUTBOX_BYTES
            && (self.bytes - self.large.bytes > OUTBOX_BYTES || self.bytes > OUTBOX_BYTES + MAX_ITEM_BYTES)
    }

    /// Takes the next message from the outbox, within the size limit.
    fn take_batch(&mut self) -> Option<ReplyBatch> {
        let ReplyBatch { opened, chunks, replies, recalled, .. } = &self.batch;
        if opened.is_empty() && chunks.is_empty() && replies.is_empty() && recalled.is_empty() {
            return None;
        }
        let has_large = self.large.item_count > 0;
        if self.bytes <= BATCH_BYTES && !has_large {
            self.bytes = 0;
            return Some(std::mem::take(&mut self.batch));
        }
        let mut budget = BatchBudget::new(if has_large { BATCH_BYTES - PART_BYTES } else { BATCH_BYTES });
        let opened = budget.take(&mut self.batch.opened, opened_size);
        let chunks = budget.take_runs(&mut self.batch.chunks, self.large.is_large_chunk());
        let replies = budget.take_replies(&mut self.batch.replies, self.large.is_large_reply());
        // A recalled call has no other items, so these cannot overtake any.
        let recalled = budget.take(&mut self.batch.recalled, |_| FIELD_BYTES);
        let parts = if has_large { Vec::from_iter(self.large.take(&mut self.batch)) } else { Vec::new() };
        self.bytes -= budget.used + parts.iter().map(|part| part.data.len()).sum::<usize>();
        Some(ReplyBatch { opened, chunks, replies, recalled, parts })
    }
}

fn opened_size(opened: &CallOpened) -> usize {
    ITEM_BYTES + opened.worker_id.len()
}

fn chunk_size(chunk: &CallChunk) -> usize {
    usize::try_from(chunk_cost(chunk)).unwrap_or(usize::MAX)
}

/// Returns the reply and its size. Replaces a reply that exceeds the limit of a message with a failure, because it
/// would break the stream and all other calls with it.
fn bounded(reply: CallReply) -> (CallReply, usize) {
    let size = reply_size(&reply);
    if size <= MAX_ITEM_BYTES {
        return (reply, size);
    }
    let CallReply { id, worker_id, .. } = reply;
    let failure = ToolFailure {
        message: too_large("answer", size),
        r#type: TOO_LARGE.to_owned(),
        ..ToolFailure::default()
    };
    let reply = CallReply { id, worker_id, failure: Some(failure), ..CallReply::default() };
    let size = reply_size(&reply);
    (reply, size)
}

/// Stores the waker of a task. The caller must drop the returned waker without a lock, because that may run foreign code.
fn replace_waker(waker: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    if waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        return None;
    }
    waker.replace(cx.waker().clone())
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies").field("replies", &self.lock().batch.replies.len()).finish_non_exhaustive()
    }
}

/// Reads the messages of the caller and polls the calls. The future completes when all calls have ended, or when the response is
/// dropped. Dropping it ends the response.
#[must_use = "calls run only while this is polled"]
pub struct CallLoop<C> {
    inbound: Option<Streaming<CallBatch>>,
    calls: C,
    replies: Replies,
}

impl<C: Calls> CallLoop<C> {
    /// Reads the messages that are ready.
    ///
    /// # Errors
    /// The status with which the stream of the caller broke.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..MAX_BATCHES_PER_POLL {
            let Some(inbound) = &mut self.inbound else { return Ok(()) };
            if self.replies.lock().is_full() {
                // `poll_take` wakes this task.
                return Ok(());
            }
            match Pin::new(inbound).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(batch))) if batch.calls.len() > MAX_CALLS_PER_BATCH => {
                    return Err(too_many_calls(batch.calls.len()));
                }
                Poll::Ready(Some(Ok(batch))) => {
                    if batch.takes_parts {
                        self.replies.enable_parts();
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
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
            let aborted = || Err(Status::unavailable("the calls of this stream are no longer run"));
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

/// The stream of messages of the response, separate from its [`CallLoop`]. Dropping it ends the call loop.
#[derive(Debug)]
pub struct ReplyBatches(Replies);

impl Stream for ReplyBatches {
    type Item = Result<ReplyBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_take(cx)
    }
}

impl Drop for ReplyBatches {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The response of the RPC. It reads messages, polls the calls and yields their replies.
///
/// Calls make progress only while the transport polls for replies. [Split](Self::split) the response if a caller that does not
/// read must not delay its calls.
pub struct Serve<C> {
    call_loop: CallLoop<C>,
    batches: ReplyBatches,
}

impl<C: Calls> Serve<C> {
    /// Serves the calls of a stream. `calls` must send its replies to `replies`.
    pub fn new(inbound: Streaming<CallBatch>, calls: C, replies: Replies) -> Self {
        let batches = ReplyBatches(replies.clone());
        Self { call_loop: CallLoop { inbound: Some(inbound), calls, replies }, batches }
    }

    /// Splits the response into the call loop, which needs a task, and the stream of messages. A caller that does not read its
    /// replies then delays only their delivery.
    pub fn split(self) -> (CallLoop<C>, ReplyBatches) {
        (self.call_loop, self.batches)
    }
}

impl<C: Calls + Unpin> Stream for Serve<C> {
    type Item = Result<ReplyBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        // The stream of batches yields the end.
        let _ = this.call_loop.drive(cx);
        Pin::new(&mut this.batches).poll_next(cx)
    }
}

impl<C> fmt::Debug for Serve<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("replies", &self.batches).finish_non_exhaustive()
    }
}

fn too_many_calls(calls: usize) -> Status {
    let problem = format!(
        "a message starts {calls} calls, the limit is {MAX_CALLS_PER_BATCH}; send them in several messages of about a megabyte"
    );
    error_status(Code::ResourceExhausted, OVERLOADED, problem)
}

#[cfg(test)]
mod tests;
