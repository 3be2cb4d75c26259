//! The callee: [`Serve`] is the response of the RPC, [`Calls`] runs the calls, and [`Replies`] collects their replies.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_core::Stream;
use tonic::{Status, Streaming};

mod batch_packer;
mod call_loop;
mod inbound;
mod large_items;

pub use self::call_loop::CallLoop;
use self::{
    batch_packer::BatchPacker,
    inbound::Inbound,
    large_items::{LargeItems, chunk_data_len, data_len},
};
use super::{
    BATCH_BYTES, FIELD_BYTES, ITEM_BYTES, MAX_ITEM_BYTES, PART_BYTES, chunk_cost, reply_size,
    reply_too_large,
    report_queue::{self, SizeChange, report_size},
};
use crate::{
    pb::{CallBatch, CallChunk, CallChunks, CallOpened, CallReply, CallReport, CallValue, ReplyBatch},
    value::inline_nested,
};

/// The limit of the outbox, in bytes, for backpressure. Above it, the callee reads no more calls until the caller has read some
/// replies. Items in parts do not block others, so one item of the maximum size may wait in addition.
const OUTBOX_BYTES: usize = 4 * BATCH_BYTES;

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
    /// Whether the caller accepts nested values.
    takes_buffers: bool,
    /// The sending task, while the outbox is empty.
    sender_waker: Option<Waker>,
    /// The task of the [`CallLoop`], woken by messages, and when the outbox has capacity again, is ended or closed.
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
                chunks.iter().for_each(|chunk| outbox.large.count_item(chunk_data_len(chunk)));
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

    /// Sends the end of a call. A reply larger than [`MAX_ITEM_BYTES`] becomes a failure.
    pub fn send_reply(&self, reply: CallReply) {
        wake(self.queue_reply(reply));
    }

    /// Like [`send_reply`](Self::send_reply), for callers that can wake the sending task at a lower cost later. Returns
    /// its waker if the task waits. Until the caller wakes it, the reply may remain unsent.
    #[must_use = "the reply leaves only after the task was woken"]
    pub fn queue_reply(&self, mut reply: CallReply) -> Option<Waker> {
        if let Some(CallValue { json, binary, .. }) =
            reply.value.as_mut().filter(|value| value.binary.is_some())
        {
            self.inline(json, binary);
        }
        let bytes = limit_size(&mut reply);
        self.queue(|outbox| {
            outbox.bytes += bytes;
            if bytes > PART_BYTES {
                outbox.large.count_item(data_len(&reply));
            }
            outbox.batch.replies.push(reply);
        })
    }

    /// Sends a report of a running call. If the caller reads too slowly, it receives a notice in place of output lines, and
    /// only the last progress.
    pub fn send_report(&self, report: CallReport) {
        self.put(|outbox| {
            let is_full = outbox.is_full();
            let SizeChange { added, removed } =
                report_queue::push(&mut outbox.batch.reports, report, is_full);
            outbox.bytes = outbox.bytes + added - removed;
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

    /// Sends nested values with their buffers. The caller requests it in its first message.
    pub fn enable_buffers(&self) {
        self.lock().takes_buffers = true;
    }

    /// Converts a nested value to plain JSON, unless the caller accepts nested values.
    pub fn inline(&self, json: &mut Bytes, binary: &mut Option<Bytes>) {
        let Some(buffers) = binary else { return };
        if self.lock().takes_buffers {
            return;
        }
        if let Some(inlined) = inline_nested(json, buffers) {
            (*json, *binary) = (inlined.into(), None);
        }
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
        wake(self.queue(put));
    }

    /// Adds items. Returns the waker of the sending task if it waits.
    fn queue(&self, put: impl FnOnce(&mut Outbox)) -> Option<Waker> {
        let mut outbox = self.lock();
        if outbox.is_closed {
            return None;
        }
        put(&mut outbox);
        if outbox.is_polling { None } else { outbox.sender_waker.take() }
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

    /// Ends the response after the queued items. The callee reads no more messages.
    pub fn end(&self) {
        let mut outbox = self.lock();
        outbox.end.get_or_insert(Ok(()));
        let wakers = [outbox.sender_waker.take(), outbox.call_loop_waker.take()];
        drop(outbox);
        wakers.into_iter().for_each(wake);
    }

    /// Whether the response was dropped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    fn wake_call_loop(&self) {
        let waker = self.lock().call_loop_waker.take();
        wake(waker);
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
        let ReplyBatch { opened, chunks, replies, recalled, reports, .. } = &self.batch;
        if opened.is_empty()
            && chunks.is_empty()
            && replies.is_empty()
            && recalled.is_empty()
            && reports.is_empty()
        {
            return None;
        }
        let has_large = self.large.item_count > 0;
        if self.bytes <= BATCH_BYTES && !has_large {
            self.bytes = 0;
            return Some(std::mem::take(&mut self.batch));
        }
        let mut packer = BatchPacker::new(if has_large { BATCH_BYTES - PART_BYTES } else { BATCH_BYTES });
        // Pack reports first, because they precede the replies of their calls.
        let reports = packer.take(&mut self.batch.reports, report_size);
        let opened = packer.take(&mut self.batch.opened, opened_size);
        let chunks = packer.take_runs(&mut self.batch.chunks, self.large.is_large_chunk());
        let replies = packer.take_replies(&mut self.batch.replies, self.large.is_large_reply());
        // A recalled call has no other items, so these cannot overtake any.
        let recalled = packer.take(&mut self.batch.recalled, |_| FIELD_BYTES);
        let parts = if has_large { Vec::from_iter(self.large.take(&mut self.batch)) } else { Vec::new() };
        self.bytes -= packer.used + parts.iter().map(|part| part.data.len()).sum::<usize>();
        Some(ReplyBatch { opened, chunks, replies, recalled, parts, reports })
    }
}

fn opened_size(opened: &CallOpened) -> usize {
    ITEM_BYTES + opened.worker_id.len()
}

fn chunk_size(chunk: &CallChunk) -> usize {
    usize::try_from(chunk_cost(chunk)).unwrap_or(usize::MAX)
}

/// Returns the size of a reply. Replaces a reply that exceeds the limit of a message with an error, because it would
/// break the stream and all other calls with it.
fn limit_size(reply: &mut CallReply) -> usize {
    let size = reply_size(reply);
    if size <= MAX_ITEM_BYTES {
        return size;
    }
    let worker_id = std::mem::take(&mut reply.worker_id);
    let status = Some(Box::new(reply_too_large(size).into()));
    *reply = CallReply { id: reply.id, worker_id, status, ..CallReply::default() };
    reply_size(reply)
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

/// The response's message stream, separate from its [`CallLoop`]. Dropping it ends the call loop.
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
        let inbound = Some(Inbound::new(inbound, replies.clone()));
        Self { call_loop: CallLoop { inbound, calls, replies }, batches }
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

#[cfg(test)]
mod tests;
