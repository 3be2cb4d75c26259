//! Making calls on a stream: what their frames mean for the caller.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, Stream, future::BoxFuture};
use snakepit_proto::{
    mux::{Call, CallEnd, CallEvent, MAX_SHARED_BYTES, Multiplexer, STREAM_CREDIT, chunk_cost},
    pb,
};
use snakepit_registry::{
    CallId, CallStage, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolFailure, ToolReply,
};
use tokio::time::Instant;
use tonic::Status;

use super::call_to_wire;
use crate::{WireError, failure_from_wire, value_from_wire};

/// What is known of a call when it fails.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The tool that was called.
    pub tool: Arc<str>,
    /// Until when.
    pub deadline: Option<Instant>,
    /// The id of the call.
    pub id: CallId,
}

impl Asked {
    /// What to remember of a call that is about to be handed over.
    #[must_use]
    pub fn by(call: &ToolCall) -> Self {
        Self { tool: Arc::clone(&call.tool), deadline: call.deadline, id: call.id }
    }

    /// How much time the call has left.
    ///
    /// # Errors
    /// When it has none: a request without time could never be answered.
    pub fn time_left(&self) -> Result<Option<Duration>, ToolError> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let tool = self.tool.to_string();
            return Err(ToolError::DeadlineExceeded { tool, stage: CallStage::Queued });
        }
        Ok(Some(left))
    }
}

/// Who is called, as far as it matters to what an answer means.
#[async_trait]
pub trait Callee: Clone + Send + Sync + Unpin + 'static {
    /// What a status of its means.
    async fn refused(&self, asked: &Asked, status: Status) -> ToolError;

    /// What the end of its connection means for the call of this id.
    async fn broken(&self, asked: &Asked, id: u64, status: Status) -> Lost;

    /// What it means that the connection ended before the call was sent.
    async fn unsent(&self, asked: &Asked, status: Status) -> ToolError;

    /// What it means that the tool failed.
    fn failed(&self, asked: &Asked, failure: ToolFailure) -> ToolError;

    /// What an answer means that cannot be read.
    fn bad_value(&self, error: &WireError) -> ToolError;

    /// It broke the protocol; `what` follows its name.
    fn incoherent(&self, what: &str) -> ToolError;

    /// Which worker runs a call, from what the answer says of it.
    fn worker(&self, told: &str) -> Option<Arc<str>>;
}

/// A call whose connection broke.
#[derive(Debug)]
pub struct Lost {
    /// Its answer, if that is known all the same. It says nothing of chunks: those before it may not have arrived.
    pub answer: Option<pb::CallReply>,
    /// What to tell the caller otherwise.
    pub error: ToolError,
}

/// Whether a call, with its names and metadata, is small enough to share the stream with others.
#[must_use]
pub fn fits(call: &ToolCall) -> bool {
    let arguments = call.arguments.iter().map(|(name, value)| name.len() + value.size());
    let metadata = call.metadata.iter().map(|(key, value)| key.len() + value.len());
    let trace = call
        .trace
        .as_ref()
        .map_or(0, |trace| trace.traceparent.len() + trace.tracestate.as_ref().map_or(0, String::len));
    let names = call.tool.len() + call.session.as_ref().map_or(0, |id| id.as_str().len());
    names + trace + arguments.chain(metadata).sum::<usize>() <= MAX_SHARED_BYTES
}

/// Runs a call. It is handed over at once: a future that does so would keep places for the call and for its message until
/// the end.
///
/// # Errors
/// As for [`ToolHandler::call`](snakepit_registry::ToolHandler::call).
///
/// # Cancel safety
/// Dropping the future, or the stream that it gave, cancels the call.
pub fn call<'a, C: Callee>(
    multiplexer: &Multiplexer,
    callee: &'a C,
    call: ToolCall,
) -> impl Future<Output = Result<ToolReply, ToolError>> + Send + use<'a, C> {
    let (asked, tag) = (Asked::by(&call), call.id.as_u64());
    let started = asked.time_left().map(|left| multiplexer.start(call_to_wire(call, left), tag));
    async move {
        match answered(started?, callee, &asked).await {
            Ok(reply) => Ok(reply),
            Err(Failed::Error(error)) => Err(error),
            Err(Failed::Unsent(_, status)) => Err(callee.unsent(&asked, status).await),
        }
    }
}

/// Why a call that was sent by [`send`] has no answer.
#[derive(Debug)]
pub enum Failed {
    /// It failed.
    Error(ToolError),
    /// Its stream broke before it was sent. It can be sent on another one.
    Unsent(Box<pb::CallStart>, Status),
}

/// Runs a call that is written already; otherwise like [`call`], but for what that makes of one that is not sent.
///
/// # Errors
/// See [`Failed`].
///
/// # Cancel safety
/// As for [`call`].
pub async fn send<C: Callee>(
    multiplexer: &Multiplexer,
    callee: &C,
    asked: &Asked,
    start: pb::CallStart,
) -> Result<ToolReply, Failed> {
    answered(multiplexer.start(start, 0), callee, asked).await
}

async fn answered<C: Callee>(mut call: Call, callee: &C, asked: &Asked) -> Result<ToolReply, Failed> {
    let incoherent = |what| Err(Failed::Error(callee.incoherent(what)));
    let answer = match call.event().await {
        CallEvent::End(CallEnd::Unsent(start, status)) => {
            return Err(Failed::Unsent(Box::new(start), status));
        }
        CallEvent::End(end) => answer(callee, asked, end),
        CallEvent::Opened(opened) => {
            let worker = callee.worker(&opened.worker_id);
            let chunks = Chunks::of(call, callee.clone(), asked.clone());
            return Ok(ToolReply { worker, ..ToolReply::stream(chunks) });
        }
        CallEvent::Chunks(_) => return incoherent("sent chunks of a stream before it began"),
    };
    let answer = match answer {
        Answer::Trouble(trouble) => trouble.answer(callee, asked, call.id()).await,
        answer => answer,
    };
    match answer {
        Answer::Value(reply) => Ok(reply),
        // Trouble was made into one of the others.
        Answer::None | Answer::Trouble(_) => incoherent("ended a call without an answer"),
        Answer::Failed(error) => Err(Failed::Error(error)),
    }
}

/// What the end of a call means.
enum Answer {
    Value(ToolReply),
    /// A stream is complete.
    None,
    Failed(ToolError),
    /// It must be found out.
    Trouble(Trouble),
}

/// Why there is no answer, in the words of the transport.
enum Trouble {
    Refused(Status),
    Broken(Status),
    Unsent(Status),
}

impl Trouble {
    /// The answer of a unary call, if there is one after all.
    async fn answer<C: Callee>(self, callee: &C, asked: &Asked, id: u64) -> Answer {
        let Self::Broken(status) = self else { return Answer::Failed(self.error(callee, asked, id).await) };
        let Lost { answer: kept, error } = callee.broken(asked, id, status).await;
        match kept.map(|reply| answer(callee, asked, CallEnd::Reply(reply))) {
            // Only the end of a stream holds no answer.
            None | Some(Answer::None) => Answer::Failed(error),
            // A reply may hold a refusal, but never the end of a connection.
            Some(Answer::Trouble(trouble)) => Answer::Failed(trouble.error(callee, asked, id).await),
            Some(answer) => answer,
        }
    }

    /// The error that it is. A stream whose connection broke is never complete, whatever is known of its end: its last
    /// chunks may have been on their way.
    async fn error<C: Callee>(self, callee: &C, asked: &Asked, id: u64) -> ToolError {
        match self {
            Self::Refused(status) => callee.refused(asked, status).await,
            Self::Unsent(status) => callee.unsent(asked, status).await,
            Self::Broken(status) => callee.broken(asked, id, status).await.error,
        }
    }
}

fn answer<C: Callee>(callee: &C, asked: &Asked, end: CallEnd) -> Answer {
    let reply = match end {
        CallEnd::Reply(reply) => reply,
        CallEnd::Recalled => return Answer::Failed(ToolError::Recalled { tool: asked.tool.to_string() }),
        CallEnd::Broken(status) => return Answer::Trouble(Trouble::Broken(status)),
        CallEnd::Unsent(_, status) => return Answer::Trouble(Trouble::Unsent(status)),
    };
    let pb::CallReply { value, failure, status, metadata, execution_time_ns, worker_id, .. } = reply;
    if let Some(failure) = failure {
        return Answer::Failed(callee.failed(asked, failure_from_wire(failure)));
    }
    if let Some(status) = status {
        return Answer::Trouble(Trouble::Refused(Status::from(status)));
    }
    match value.map(value_from_wire) {
        None => Answer::None,
        Some(Err(error)) => Answer::Failed(callee.bad_value(&error)),
        Some(Ok(value)) => Answer::Value(ToolReply {
            body: ReplyBody::Value(value),
            metadata,
            worker: callee.worker(&worker_id),
            // None took no time: whoever says so does not say.
            execution_time: (execution_time_ns > 0).then(|| Duration::from_nanos(execution_time_ns)),
        }),
    }
}

/// The chunks of a streaming call. Dropping it before its end cancels the call.
struct Chunks<C> {
    /// `None` once it has ended.
    call: Option<Call>,
    callee: C,
    asked: Asked,
    /// What came together and is handed on one by one.
    ready: VecDeque<pb::CallChunk>,
    /// The cost of chunks that were handed on since the last grant.
    owed: u64,
    /// Why it ended, while that is found out.
    error: Option<BoxFuture<'static, ToolError>>,
}

impl<C: Callee> Chunks<C> {
    fn of(call: Call, callee: C, asked: Asked) -> ChunkStream {
        Box::pin(Self { call: Some(call), callee, asked, ready: VecDeque::new(), owed: 0, error: None })
    }

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

impl<C: Callee> Stream for Chunks<C> {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(chunk) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(this.hand_on(chunk))));
            }
            if let Some(error) = &mut this.error {
                let error = ready!(error.poll_unpin(cx));
                this.error = None;
                return Poll::Ready(Some(Err(error)));
            }
            let Some(call) = &mut this.call else { return Poll::Ready(None) };
            match ready!(call.poll_event(cx)) {
                CallEvent::Opened(_) => {}
                CallEvent::Chunks(chunks) => this.ready = chunks.into(),
                CallEvent::End(end) => {
                    let id = call.id();
                    this.call = None;
                    match answer(&this.callee, &this.asked, end) {
                        Answer::None => {}
                        Answer::Value(_) => {
                            let error = this.callee.incoherent("ended a stream with a value");
                            return Poll::Ready(Some(Err(error)));
                        }
                        Answer::Failed(error) => return Poll::Ready(Some(Err(error))),
                        Answer::Trouble(trouble) => {
                            let (callee, asked) = (this.callee.clone(), this.asked.clone());
                            this.error =
                                Some(Box::pin(async move { trouble.error(&callee, &asked, id).await }));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
