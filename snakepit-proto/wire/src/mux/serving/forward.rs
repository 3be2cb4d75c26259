//! The chunks of one stream on their way into the replies: as far as its [`Credit`] goes, and no more than [`Ahead`] allows
//! beyond that.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use snakepit_proto::{
    mux::{MAX_ITEM_BYTES, Replies, STREAM_CREDIT, TOO_LARGE, chunk_cost, too_large},
    pb,
};
use snakepit_registry::{CallStage, ChunkStream, ToolError, ToolFailure};
use tokio::time::Sleep;

use super::Credit;

/// Chunks are handed over once there are this many bytes of them, although more may be ready.
const RUN_BYTES: u64 = STREAM_CREDIT;

/// Once the streams of a connection have read ahead this many bytes of chunks, the others read on only as they are granted
/// credit.
pub(super) const AHEAD_BYTES: u64 = 16 * 1024 * 1024;

/// The cost of the chunks that were read ahead of their streams' credit. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead(Arc<AtomicU64>);

impl Ahead {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn hold(&self, chunk: pb::CallChunk, cost: u64) -> Held {
        self.0.fetch_add(cost, Ordering::Relaxed);
        Held { chunk, cost, ahead: self.clone() }
    }
}

/// A chunk that waits for credit, with its cost.
pub(super) struct Held {
    chunk: pb::CallChunk,
    cost: u64,
    ahead: Ahead,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ahead.0.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

/// Moves chunks from a stream into the replies as far as the credit goes. The end needs no credit: one chunk is read ahead,
/// so that an end behind the last chunk is seen, unless too much was read ahead already. A reader that reads on is granting
/// credit, so it sees the end in any case. A stream whose reader has stopped granting ends at its deadline.
pub(super) struct Forward<'a> {
    pub(super) id: u64,
    pub(super) tool: Arc<str>,
    pub(super) chunks: ChunkStream,
    pub(super) held: Option<Held>,
    pub(super) ahead: Ahead,
    pub(super) credit: Arc<Credit>,
    pub(super) replies: &'a Replies,
    /// Fires after the deadline. Polled only while nothing is read, for the stream itself keeps its deadline.
    pub(super) late: Option<Pin<Box<Sleep>>>,
}

impl Forward<'_> {
    /// Ready while another chunk may be sent.
    fn poll_leave(&self, cx: &Context<'_>) -> Poll<()> {
        // A large credit is no leave to fill the memory for a caller that does not read.
        match self.credit.poll_any(cx) {
            Poll::Ready(()) => self.replies.poll_room(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The next chunk with its cost, or `None` at the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<(pb::CallChunk, u64)>, ToolError>> {
        if let Some(mut held) = self.held.take() {
            return Poll::Ready(Ok(Some((std::mem::take(&mut held.chunk), held.cost))));
        }
        let Some(chunk) = ready!(self.chunks.as_mut().poll_next(cx)).transpose()? else {
            return Poll::Ready(Ok(None));
        };
        let chunk = pb::CallChunk { data: chunk.data, metadata: chunk.metadata, sent_in_parts: 0 };
        let cost = chunk_cost(&chunk);
        if cost > MAX_ITEM_BYTES as u64 {
            return Poll::Ready(Err(chunk_too_large(chunk.data.len())));
        }
        Poll::Ready(Ok(Some((chunk, cost))))
    }

    /// Ready once the deadline has passed.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<ToolError> {
        let Some(late) = &mut self.late else { return Poll::Pending };
        ready!(late.as_mut().poll(cx));
        let (tool, stage) = (self.tool.to_string(), CallStage::Running);
        Poll::Ready(ToolError::DeadlineExceeded { tool, stage })
    }
}

impl Future for Forward<'_> {
    type Output = Result<(), ToolError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (mut run, mut bytes) = (Vec::new(), 0);
        let outcome = loop {
            if bytes >= RUN_BYTES {
                this.replies.chunks(this.id, std::mem::take(&mut run));
                bytes = 0;
            }
            let may_send = this.poll_leave(cx).is_ready();
            if !may_send && (this.held.is_some() || this.ahead.bytes() >= AHEAD_BYTES) {
                break this.poll_late(cx).map(Err);
            }
            match this.poll_chunk(cx) {
                Poll::Ready(Ok(Some((chunk, cost)))) if !may_send => {
                    this.held = Some(this.ahead.hold(chunk, cost));
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
            this.replies.chunks(this.id, run);
        }
        outcome
    }
}

/// A message that large would break the stream, and with it all other calls.
fn chunk_too_large(size: usize) -> ToolError {
    let (message, error_type) = (too_large("chunk", size), TOO_LARGE.to_owned());
    ToolError::Failed(Box::new(ToolFailure { message, error_type, ..ToolFailure::default() }))
}
