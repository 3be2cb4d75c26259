//! Calls by frames on the one `Multiplex` stream to a worker.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, Stream, future::BoxFuture};
use snakepit_proto::{
    mux::{Call, CallEnd, CallEvent, MAX_SHARED_BYTES, Multiplexer, STREAM_CREDIT, chunk_cost},
    pb,
};
use snakepit_registry::{Chunk, ReplyBody, ToolCall, ToolError, ToolFailure, ToolReply};
use snakepit_session::Payload;
use tonic::Status;

use super::{
    peer::{Asked, Peer},
    time_left,
};
use crate::{
    mux::call_to_wire,
    wire::{failure_from_wire, value_from_wire},
};

/// Whether a call is small enough to share the stream with others.
pub(super) fn fits(call: &ToolCall) -> bool {
    let size = |value: &Payload| value.json().len() + value.binary().map_or(0, bytes::Bytes::len);
    call.arguments.values().map(size).sum::<usize>() <= MAX_SHARED_BYTES
}

/// Runs a call.
pub(super) async fn call(
    multiplexer: &Multiplexer,
    peer: &Peer,
    call: ToolCall,
) -> Result<ToolReply, ToolError> {
    let asked = Asked { tool: Arc::clone(&call.tool), deadline: call.deadline };
    let left = time_left(&asked.tool, asked.deadline)?;
    let tag = call.id.as_u64();
    let mut running = multiplexer.start(call_to_wire(call, left), tag);
    match running.event().await {
        CallEvent::Opened(_) => {
            let chunks = Chunks {
                call: Some(running),
                peer: peer.clone(),
                asked,
                ready: VecDeque::new(),
                owed: 0,
                error: None,
            };
            let mut reply = ToolReply::stream(Box::pin(chunks));
            reply.worker = Some(peer.id.shared());
            Ok(reply)
        }
        CallEvent::End(end) => match ended(peer, &asked, running.id(), end).await? {
            Some(reply) => Ok(reply),
            None => Err(broken_protocol(peer, "ended a call without an answer")),
        },
        CallEvent::Chunks(_) => Err(broken_protocol(peer, "sent chunks of a stream before it began")),
    }
}

/// What the end of a call means. `None`: a stream is complete.
async fn ended(peer: &Peer, asked: &Asked, id: u64, end: CallEnd) -> Result<Option<ToolReply>, ToolError> {
    let reply = match end {
        CallEnd::Reply(reply) => reply,
        CallEnd::Recalled => return Err(ToolError::Recalled { tool: asked.tool.to_string() }),
        CallEnd::Broken(status) => {
            let delivered = peer.progress.has_begun(id);
            return Err(peer.lost(&status, delivered).await);
        }
    };
    let pb::CallReply { value, failure, status, metadata, execution_time_us, .. } = reply;
    if let Some(failure) = failure {
        let failure: ToolFailure = failure_from_wire(failure);
        return Err(peer.failed(&asked.tool, failure, String::new()));
    }
    if let Some(status) = status {
        return Err(peer.error(asked, Status::from(status)).await);
    }
    let Some(value) = value else { return Ok(None) };
    let value = value_from_wire(value).map_err(|error| peer.bad_value(&error))?;
    Ok(Some(ToolReply {
        body: ReplyBody::Value(value),
        metadata,
        worker: Some(peer.id.shared()),
        execution_time: Some(std::time::Duration::from_micros(execution_time_us)),
    }))
}

fn broken_protocol(peer: &Peer, what: &str) -> ToolError {
    ToolError::Internal { problem: format!("worker `{}` {what}", peer.id) }
}

/// The chunks of a streaming call. Dropping it before its end cancels the call.
struct Chunks {
    /// `None` once it has ended.
    call: Option<Call>,
    peer: Peer,
    asked: Asked,
    /// What came together and is handed on one by one.
    ready: VecDeque<pb::CallChunk>,
    /// The cost of chunks that were handed on since the last grant.
    owed: u64,
    /// The end, while its meaning is found out.
    error: Option<BoxFuture<'static, Result<Option<ToolReply>, ToolError>>>,
}

impl Chunks {
    fn hand_on(&mut self, chunk: pb::CallChunk) -> Chunk {
        self.owed += chunk_cost(&chunk);
        if self.owed >= STREAM_CREDIT / 2
            && let Some(call) = &self.call
        {
            call.grant(std::mem::take(&mut self.owed));
        }
        Chunk { data: chunk.data, metadata: chunk.metadata }
    }
}

impl Stream for Chunks {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(chunk) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(this.hand_on(chunk))));
            }
            if let Some(error) = &mut this.error {
                let end = ready!(error.poll_unpin(cx));
                this.error = None;
                return Poll::Ready(end.err().map(Err));
            }
            let Some(call) = &mut this.call else { return Poll::Ready(None) };
            match ready!(call.poll_event(cx)) {
                CallEvent::Opened(_) => {}
                CallEvent::Chunks(chunks) => this.ready = chunks.into(),
                CallEvent::End(end) => {
                    let id = call.id();
                    this.call = None;
                    let (peer, asked) = (this.peer.clone(), this.asked.clone());
                    this.error = Some(Box::pin(async move { ended(&peer, &asked, id, end).await }));
                }
            }
        }
    }
}
