//! The answering end: [`Serve`] is the response of the RPC, [`Calls`] what runs the calls, [`Replies`] the way back.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use tonic::{Status, Streaming};

use super::BATCH_BYTES;
use crate::pb::{CallBatch, CallChunk, CallChunks, CallOpened, CallReply, ReplyBatch};

/// Messages that are taken in before answers go out: a caller that never pauses must not keep its answers waiting.
const BATCHES_AT_ONCE: usize = 16;

/// How many replies that could wait a little are sent all the same.
const REPLIES_AT_ONCE: usize = 32;

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
    /// About how many bytes of values and failures that is. Chunks are bounded by their credit.
    bytes: usize,
    /// The task of the stream, while there is nothing to send.
    waker: Option<Waker>,
}

impl Replies {
    /// A way back without a stream yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A streaming call has begun.
    pub fn opened(&self, opened: CallOpened) {
        self.put(|outbox| outbox.batch.opened.push(opened));
    }

    /// More chunks of a stream.
    pub fn chunks(&self, id: u64, chunks: Vec<CallChunk>) {
        self.put(|outbox| match outbox.batch.chunks.last_mut() {
            Some(run) if run.id == id => run.chunks.extend(chunks),
            _ => outbox.batch.chunks.push(CallChunks { id, chunks }),
        });
    }

    /// A call has ended.
    pub fn reply(&self, reply: CallReply) {
        self.put(|outbox| outbox.reply(reply));
    }

    /// A call has ended, and more are about to: the stream is not woken for each of them. Whoever uses this sees to it
    /// that the stream is woken soon, by a [`reply`](Self::reply) or by [`Calls::poll`].
    pub fn reply_soon(&self, reply: CallReply) {
        let waker = {
            let mut outbox = self.lock();
            outbox.reply(reply);
            if outbox.batch.replies.len().is_multiple_of(REPLIES_AT_ONCE) {
                outbox.waker.take()
            } else {
                None
            }
        };
        wake(waker);
    }

    /// A call was given back before it began.
    pub fn recalled(&self, id: u64) {
        self.put(|outbox| outbox.batch.recalled.push(id));
    }

    fn put(&self, put: impl FnOnce(&mut Outbox)) {
        let waker = {
            let mut outbox = self.lock();
            put(&mut outbox);
            outbox.waker.take()
        };
        wake(waker);
    }

    /// No code under this lock panics half-way through a change, so a poisoned outbox is still whole.
    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_take(&self, cx: &Context<'_>) -> Poll<ReplyBatch> {
        let mut outbox = self.lock();
        match outbox.take_batch() {
            Some(batch) => Poll::Ready(batch),
            None => {
                let stale = outbox.waker.replace(cx.waker().clone());
                drop(outbox);
                drop(stale);
                Poll::Pending
            }
        }
    }
}

impl Outbox {
    fn reply(&mut self, reply: CallReply) {
        let value = reply.value.as_ref();
        self.bytes += value.map_or(0, |v| v.json.len() + v.binary.as_ref().map_or(0, bytes::Bytes::len));
        self.bytes += reply.failure.as_ref().map_or(0, prost::Message::encoded_len);
        self.batch.replies.push(reply);
    }

    /// Takes what is there, as one message of bounded size.
    fn take_batch(&mut self) -> Option<ReplyBatch> {
        let ReplyBatch { opened, chunks, replies, recalled } = &self.batch;
        if opened.is_empty() && chunks.is_empty() && replies.is_empty() && recalled.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.bytes);
        let mut batch = std::mem::take(&mut self.batch);
        if bytes > BATCH_BYTES && batch.replies.len() > 1 {
            // Large values go one a message.
            let rest = batch.replies.split_off(1);
            self.batch.recalled = std::mem::take(&mut batch.recalled);
            self.batch.replies = rest;
            self.bytes = bytes;
        }
        Some(batch)
    }
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

/// The response of the RPC: takes in what the caller says, and gives out what the calls answer.
pub struct Serve<C> {
    inbound: Option<Streaming<CallBatch>>,
    calls: C,
    replies: Replies,
}

impl<C: Calls> Serve<C> {
    /// Serves the calls of a stream. `replies` is where `calls` puts its answers.
    pub const fn new(inbound: Streaming<CallBatch>, calls: C, replies: Replies) -> Self {
        Self { inbound: Some(inbound), calls, replies }
    }

    /// Takes in what is there. `Err` when the caller's stream broke.
    fn take_in(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..BATCHES_AT_ONCE {
            let Some(inbound) = &mut self.inbound else { return Ok(()) };
            match Pin::new(inbound).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(batch))) => self.calls.receive(batch),
                Poll::Ready(Some(Err(status))) => return Err(status),
                Poll::Ready(None) => self.inbound = None,
            }
        }
        // There may be more: come back after the answers.
        cx.waker().wake_by_ref();
        Ok(())
    }
}

impl<C: Calls + Unpin> Stream for Serve<C> {
    type Item = Result<ReplyBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Err(status) = this.take_in(cx) {
            return Poll::Ready(Some(Err(status)));
        }
        let busy = this.calls.poll(cx);
        match this.replies.poll_take(cx) {
            Poll::Ready(batch) => Poll::Ready(Some(Ok(batch))),
            // The caller has closed its half and everything is answered.
            Poll::Pending if this.inbound.is_none() && !busy => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<C> fmt::Debug for Serve<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("replies", &self.replies).finish_non_exhaustive()
    }
}
