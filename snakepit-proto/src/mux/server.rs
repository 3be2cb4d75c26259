//! The answering end: [`Serve`] is the response of the RPC, [`Calls`] what runs the calls, [`Replies`] the way back.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use tonic::{Code, Status, Streaming};

mod parts;
mod room;

use self::{
    parts::{Parts, data_of},
    room::Room,
};
use super::{
    BATCH_BYTES, FIELD_BYTES, ITEM_BYTES, MAX_ITEM_BYTES, PART_BYTES, TOO_LARGE, chunk_cost, reply_size,
    too_large,
};
use crate::{
    pb::{CallBatch, CallChunk, CallChunks, CallOpened, CallReply, ReplyBatch, ToolFailure},
    status::{OVERLOADED, refuse},
};

/// Once about this many bytes wait to be sent, the stream takes in no more until the caller has read some of them. Items that
/// travel in parts hold up nothing, so one of the largest size may wait beyond that.
const OUTBOX_BYTES: usize = 4 * BATCH_BYTES;

/// How many calls one message may start: more than anybody who cuts messages at [`BATCH_BYTES`] puts into one. What answers
/// each of them takes memory before the outbox is looked at again.
const CALLS_A_BATCH: usize = BATCH_BYTES / ITEM_BYTES;

/// Messages that are taken in before answers go out: a caller that never pauses must not keep its answers waiting.
const BATCHES_AT_ONCE: usize = 16;

/// Runs the calls of one stream. Dropped when the stream ends, however it ends: whatever still runs is then to be
/// cancelled.
pub trait Calls: Send + 'static {
    /// Takes in what the caller says. Must not block.
    fn receive(&mut self, batch: CallBatch);

    /// Lets calls that run on the stream's own task go on. `true` while any of them is left.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let _ = cx;
        false
    }
}

/// Where answers go. Clones share the stream; usable from any thread. What is put in after the stream has ended is lost.
#[derive(Clone, Default)]
pub struct Replies(Arc<Mutex<Outbox>>);

#[derive(Default)]
struct Outbox {
    batch: ReplyBatch,
    /// About how many bytes that is.
    bytes: usize,
    /// Those of it that are large.
    parts: Parts,
    /// The task that sends, while there is nothing to send.
    waker: Option<Waker>,
    /// The task that takes in and runs calls, for when it may take in more, or has nobody left to answer.
    driver: Option<Waker>,
    /// Streams that wait for [room](Replies::poll_room).
    crowded: Vec<Waker>,
    /// Who waits until it is [empty](Replies::emptied).
    emptied: Vec<Waker>,
    /// Calls are being polled: who sends is woken once that is through, instead of for each answer.
    polling: bool,
    /// How it ended for the calls: no answer follows.
    ended: Option<Result<(), Status>>,
    /// Nobody takes answers any more.
    closed: bool,
}

impl Replies {
    /// A way back without a stream yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A streaming call has begun.
    pub fn opened(&self, opened: CallOpened) {
        self.put(|outbox| {
            outbox.bytes += opened_size(&opened);
            outbox.batch.opened.push(opened);
        });
    }

    /// More chunks of a stream. None may cost more than [`MAX_ITEM_BYTES`]. No chunks are no message.
    pub fn chunks(&self, id: u64, chunks: Vec<CallChunk>) {
        if chunks.is_empty() {
            return;
        }
        let bytes = ITEM_BYTES + chunks.iter().map(chunk_size).sum::<usize>();
        self.put(|outbox| {
            outbox.bytes += bytes;
            if bytes > PART_BYTES {
                chunks.iter().for_each(|chunk| outbox.parts.note(chunk.data.len()));
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

    /// A call has ended. An answer too large for any message becomes a failure.
    pub fn reply(&self, reply: CallReply) {
        let (reply, bytes) = bounded(reply);
        self.put(|outbox| {
            outbox.bytes += bytes;
            if bytes > PART_BYTES {
                outbox.parts.note(data_of(&reply));
            }
            outbox.batch.replies.push(reply);
        });
    }

    /// A call was given back before it began.
    pub fn recalled(&self, id: u64) {
        self.put(|outbox| {
            outbox.bytes += FIELD_BYTES;
            outbox.batch.recalled.push(id);
        });
    }

    /// Sends large items in parts from now on, unless some wait already: the caller said so with its first message.
    pub fn send_parts(&self) {
        let mut outbox = self.lock();
        outbox.parts.enabled |= outbox.bytes == 0;
    }

    /// Ready while not too much waits to be sent. What produces without end should wait for this.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut outbox = self.lock();
        if !outbox.is_full() || outbox.closed {
            return Poll::Ready(());
        }
        if !outbox.crowded.iter().any(|waker| waker.will_wake(cx.waker())) {
            outbox.crowded.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What takes the answers out.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn body(&self) -> Body {
        Body(self.clone())
    }

    /// Whether everything was taken to be sent, or nobody takes it any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let outbox = self.lock();
        outbox.bytes == 0 || outbox.closed
    }

    /// Waits until everything was taken to be sent, or nobody takes it any more. Cancel safe.
    pub async fn emptied(&self) {
        std::future::poll_fn(|cx| {
            let mut outbox = self.lock();
            if outbox.bytes == 0 || outbox.closed {
                return Poll::Ready(());
            }
            if !outbox.emptied.iter().any(|waker| waker.will_wake(cx.waker())) {
                outbox.emptied.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Puts something in, and wakes whoever sends.
    fn put(&self, put: impl FnOnce(&mut Outbox)) {
        let waker = {
            let mut outbox = self.lock();
            if outbox.closed {
                return;
            }
            put(&mut outbox);
            if outbox.polling { None } else { outbox.waker.take() }
        };
        wake(waker);
    }

    /// No code under this lock panics half-way through a change, so a poisoned outbox is still whole.
    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_take(&self, cx: &Context<'_>) -> Poll<Option<Result<ReplyBatch, Status>>> {
        let mut outbox = self.lock();
        let was_full = outbox.is_full();
        if let Some(batch) = outbox.take_batch() {
            let emptied = if outbox.bytes == 0 { std::mem::take(&mut outbox.emptied) } else { Vec::new() };
            if was_full && !outbox.is_full() {
                let crowded = std::mem::take(&mut outbox.crowded);
                let driver = outbox.driver.take();
                drop(outbox);
                crowded.into_iter().chain(driver).for_each(Waker::wake);
            } else {
                drop(outbox);
            }
            emptied.into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(Ok(batch)));
        }
        if let Some(ended) = &mut outbox.ended {
            return Poll::Ready(std::mem::replace(ended, Ok(())).err().map(Err));
        }
        let stale = replace(&mut outbox.waker, cx);
        drop(outbox);
        drop(stale);
        Poll::Pending
    }

    /// Nobody takes answers any more.
    fn close(&self) {
        let mut outbox = self.lock();
        outbox.closed = true;
        outbox.bytes = 0;
        outbox.parts = Parts::default();
        let batch = std::mem::take(&mut outbox.batch);
        let crowded = std::mem::take(&mut outbox.crowded);
        let emptied = std::mem::take(&mut outbox.emptied);
        let driver = outbox.driver.take();
        drop(outbox);
        drop(batch);
        crowded.into_iter().chain(emptied).chain(driver).for_each(Waker::wake);
    }
}

impl Outbox {
    const fn is_full(&self) -> bool {
        self.bytes > OUTBOX_BYTES
            && (self.bytes - self.parts.bytes > OUTBOX_BYTES || self.bytes > OUTBOX_BYTES + MAX_ITEM_BYTES)
    }

    /// Takes what is there, as one message of bounded size.
    fn take_batch(&mut self) -> Option<ReplyBatch> {
        let ReplyBatch { opened, chunks, replies, recalled, .. } = &self.batch;
        if opened.is_empty() && chunks.is_empty() && replies.is_empty() && recalled.is_empty() {
            return None;
        }
        let has_large = self.parts.items > 0;
        if self.bytes <= BATCH_BYTES && !has_large {
            self.bytes = 0;
            return Some(std::mem::take(&mut self.batch));
        }
        let mut room = Room::new(if has_large { BATCH_BYTES - PART_BYTES } else { BATCH_BYTES });
        let opened = room.take(&mut self.batch.opened, opened_size);
        let chunks = room.take_runs(&mut self.batch.chunks, self.parts.is_large_chunk());
        let replies = room.take_replies(&mut self.batch.replies, self.parts.is_large_reply());
        // Nothing else of a call that was given back is on its way.
        let recalled = room.take(&mut self.batch.recalled, |_| FIELD_BYTES);
        let parts = if has_large { Vec::from_iter(self.parts.take(&mut self.batch)) } else { Vec::new() };
        self.bytes -= room.taken + parts.iter().map(|part| part.data.len()).sum::<usize>();
        Some(ReplyBatch { opened, chunks, replies, recalled, parts })
    }
}

fn opened_size(opened: &CallOpened) -> usize {
    ITEM_BYTES + opened.worker_id.len()
}

fn chunk_size(chunk: &CallChunk) -> usize {
    usize::try_from(chunk_cost(chunk)).unwrap_or(usize::MAX)
}

/// The reply with its size, or a failure if it is too large for any message: that would break the stream, and with it all
/// other calls.
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

/// Remembers the task; what was remembered is to be dropped once no lock is held, for it is foreign code.
fn replace(waker: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
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

/// Takes in what the caller says and runs the calls, until they are all answered or nobody takes the answers any more.
/// Dropping it ends the response.
#[must_use = "calls run only while this is polled"]
pub struct Driver<C> {
    inbound: Option<Streaming<CallBatch>>,
    calls: C,
    replies: Replies,
}

impl<C: Calls> Driver<C> {
    /// Takes in what is there. `Err` when the caller's stream broke.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..BATCHES_AT_ONCE {
            let Some(inbound) = &mut self.inbound else { return Ok(()) };
            if self.replies.lock().is_full() {
                // Whoever takes the answers wakes this task.
                return Ok(());
            }
            match Pin::new(inbound).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(batch))) if batch.calls.len() > CALLS_A_BATCH => {
                    return Err(too_many(batch.calls.len()));
                }
                Poll::Ready(Some(Ok(batch))) => {
                    if batch.takes_parts {
                        self.replies.send_parts();
                    }
                    self.calls.receive(batch);
                }
                Poll::Ready(Some(Err(status))) => return Err(status),
                Poll::Ready(None) => self.inbound = None,
            }
        }
        // There may be more: come back after the answers.
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Ready when there is nothing left to do.
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stale = {
            let mut outbox = self.replies.lock();
            if outbox.closed || outbox.ended.is_some() {
                return Poll::Ready(());
            }
            outbox.polling = true;
            replace(&mut outbox.driver, cx)
        };
        drop(stale);
        let ended = match self.take_in(cx) {
            Err(status) => Some(Err(status)),
            // The caller has closed its half and everything is answered.
            Ok(()) => (!self.calls.poll(cx) && self.inbound.is_none()).then_some(Ok(())),
        };
        let mut outbox = self.replies.lock();
        outbox.polling = false;
        if ended.is_none() {
            return Poll::Pending;
        }
        outbox.ended = ended;
        Poll::Ready(())
    }

    /// Wakes whoever sends, if there is something to send.
    fn flush(&self) {
        let waker = {
            let mut outbox = self.replies.lock();
            if outbox.bytes > 0 || outbox.ended.is_some() { outbox.waker.take() } else { None }
        };
        wake(waker);
    }
}

impl<C: Calls + Unpin> Future for Driver<C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let driven = this.drive(cx);
        this.flush();
        driven
    }
}

impl<C> Drop for Driver<C> {
    fn drop(&mut self) {
        let waker = {
            let mut outbox = self.replies.lock();
            let cut = || Err(Status::unavailable("the calls of this stream are no longer run"));
            outbox.ended.get_or_insert_with(cut);
            outbox.waker.take()
        };
        wake(waker);
    }
}

impl<C> fmt::Debug for Driver<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("replies", &self.replies).finish_non_exhaustive()
    }
}

/// The response of the RPC where a [`Driver`] runs the calls: gives out what they answer. Dropping it ends the driver.
#[derive(Debug)]
pub struct Body(Replies);

impl Stream for Body {
    type Item = Result<ReplyBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_take(cx)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The response of the RPC: takes in what the caller says, runs the calls, and gives out what they answer.
///
/// Calls go on only while the transport asks for answers. Where they hold what others wait for, [split](Self::split) it.
pub struct Serve<C> {
    driver: Driver<C>,
    body: Body,
}

impl<C: Calls> Serve<C> {
    /// Serves the calls of a stream. `replies` is where `calls` puts its answers.
    pub fn new(inbound: Streaming<CallBatch>, calls: C, replies: Replies) -> Self {
        let body = Body(replies.clone());
        Self { driver: Driver { inbound: Some(inbound), calls, replies }, body }
    }

    /// Parts it into what must be polled for calls to go on, by a task of its own, and the response. A caller that does
    /// not read its answers then holds up nothing.
    pub fn split(self) -> (Driver<C>, Body) {
        (self.driver, self.body)
    }
}

impl<C: Calls + Unpin> Stream for Serve<C> {
    type Item = Result<ReplyBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        // Its end is told by the body.
        let _ = this.driver.drive(cx);
        Pin::new(&mut this.body).poll_next(cx)
    }
}

impl<C> fmt::Debug for Serve<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("replies", &self.body).finish_non_exhaustive()
    }
}

fn too_many(calls: usize) -> Status {
    let problem = format!(
        "a message starts {calls} calls, the limit is {CALLS_A_BATCH}; send them in several messages of about a megabyte"
    );
    refuse(Code::ResourceExhausted, OVERLOADED, problem)
}

#[cfg(test)]
mod tests;
