//! Forwards the chunks of one stream to the replies within its [`Credit`]. Prefetches at most one more chunk, within
//! [`PREFETCH_BYTES`].

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use snakepit_proto::{
    mux::{MAX_ITEM_BYTES, Replies, STREAM_CREDIT, chunk_cost},
    pb,
};
use snakepit_registry::{CallStage, Chunk, ChunkStream, ToolError};
use tokio::time::Sleep;

use super::Credit;

/// The size of a run in bytes. A run of this size is sent even if more chunks are ready.
const RUN_BYTES: u64 = STREAM_CREDIT;

/// The maximum total cost of the prefetched chunks of a connection, in bytes. Above it, streams read chunks only within their
/// credit.
pub(super) const PREFETCH_BYTES: u64 = 16 * 1024 * 1024;

/// The total cost of the prefetched chunks of a connection. Clones share the total.
#[derive(Debug, Clone, Default)]
pub(super) struct PrefetchTotal(Arc<AtomicU64>);

impl PrefetchTotal {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn charge(&self, chunk: pb::CallChunk, cost: u64) -> PrefetchedChunk {
        self.0.fetch_add(cost, Ordering::Relaxed);
        PrefetchedChunk { chunk, cost, prefetch: self.clone() }
    }
}

/// A chunk that waits for credit. It counts in the total until it is dropped.
pub(super) struct PrefetchedChunk {
    chunk: pb::CallChunk,
    cost: u64,
    prefetch: PrefetchTotal,
}

impl Drop for PrefetchedChunk {
    fn drop(&mut self) {
        self.prefetch.0.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

/// Moves chunks from a stream to the replies within the credit.
///
/// The end needs no credit. To detect the end after the last chunk, the future prefetches one chunk, unless the limit is reached.
/// A reader that keeps reading grants credit, so it receives the end in any case. A stream whose reader stops granting ends at
/// its deadline.
pub(super) struct ForwardChunks<'a> {
    pub(super) id: u64,
    pub(super) tool: Arc<str>,
    pub(super) chunks: ChunkStream,
    pub(super) prefetched: Option<PrefetchedChunk>,
    pub(super) prefetch: PrefetchTotal,
    pub(super) credit: Arc<Credit>,
    pub(super) replies: &'a Replies,
    /// Fires after the deadline. Polled only while the stream is not polled, because the stream enforces the deadline itself.
    pub(super) deadline_timer: Option<Pin<Box<Sleep>>>,
}

impl ForwardChunks<'_> {
    /// Ready while another chunk may be sent.
    fn poll_may_send(&self, cx: &Context<'_>) -> Poll<()> {
        // The outbox bounds the memory for a caller that grants much credit but does not read.
        match self.credit.poll_positive(cx) {
            Poll::Ready(()) => self.replies.poll_capacity(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Polls the next chunk with its cost. Yields `None` at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<(pb::CallChunk, u64)>, ToolError>> {
        if let Some(mut prefetched) = self.prefetched.take() {
            return Poll::Ready(Ok(Some((std::mem::take(&mut prefetched.chunk), prefetched.cost))));
        }
        let Some(chunk) = ready!(self.chunks.as_mut().poll_next(cx)).transpose()? else {
            return Poll::Ready(Ok(None));
        };
        let Chunk { data, metadata, binary } = chunk;
        let mut chunk = pb::CallChunk { data, metadata, sent_in_parts: 0, binary };
        self.replies.inline(&mut chunk.data, &mut chunk.binary);
        let cost = chunk_cost(&chunk);
        if cost > MAX_ITEM_BYTES as u64 {
            return Poll::Ready(Err(chunk_too_large(
                chunk.data.len() + chunk.binary.as_ref().map_or(0, Bytes::len),
            )));
        }
        Poll::Ready(Ok(Some((chunk, cost))))
    }

    /// Ready after the deadline.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<ToolError> {
        let Some(timer) = &mut self.deadline_timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        let (tool, stage) = (self.tool.to_string(), CallStage::Running);
        Poll::Ready(ToolError::deadline_exceeded(tool, stage))
    }
}

impl Future for ForwardChunks<'_> {
    type Output = Result<(), ToolError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (mut run, mut bytes) = (Vec::new(), 0);
        let outcome = loop {
            if bytes >= RUN_BYTES {
                this.replies.send_chunks(this.id, std::mem::take(&mut run));
                bytes = 0;
            }
            let may_send = this.poll_may_send(cx).is_ready();
            if !may_send && (this.prefetched.is_some() || this.prefetch.bytes() >= PREFETCH_BYTES) {
                break this.poll_deadline(cx).map(Err);
            }
            match this.poll_chunk(cx) {
                Poll::Ready(Ok(Some((chunk, cost)))) if !may_send => {
                    this.prefetched = Some(this.prefetch.charge(chunk, cost));
                }
                Poll::Ready(Ok(Some((chunk, cost)))) => {
                    this.credit.spend(cost);
                    bytes += cost;
                    run.push(chunk);
                }
                Poll::Ready(Ok(None)) => break Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        if !run.is_empty() {
            this.replies.send_chunks(this.id, run);
        }
        outcome
    }
}

/// The error of a chunk that exceeds the limit of a message. Sending it would break the stream and all other calls.
const fn chunk_too_large(size: usize) -> ToolError {
    ToolError::answer_too_large(size, MAX_ITEM_BYTES)
}
