//! The caller. It makes calls on a stream, and converts their ends to replies and errors.

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
    CallId, CallReports, CallStage, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolFailure,
    ToolReply,
};
use tokio::time::Instant;
use tonic::Status;

use super::{call_to_wire, report_from_wire};
use crate::{WireError, failure_from_wire, value_from_wire};

/// The data of a call that its errors contain.
#[derive(Debug, Clone)]
pub struct CallInfo {
    /// The name of the tool.
    pub tool: Arc<str>,
    /// The deadline of the call.
    pub deadline: Option<Instant>,
    /// The id of the call.
    pub id: CallId,
    /// The reports that the caller receives.
    pub reports: Option<CallReports>,
}

impl CallInfo {
    /// Copies the data from a call.
    #[must_use]
    pub fn of(call: &ToolCall) -> Self {
        let reports = CallReports::of(call).cloned();
        Self { tool: Arc::clone(&call.tool), deadline: call.deadline, id: call.id, reports }
    }

    /// Passes on reports of the call.
    fn report(&self, reports: Vec<pb::CallReport>) {
        if let Some(receiver) = &self.reports {
            reports.into_iter().for_each(|report| report_from_wire(report, receiver));
        }
    }

    /// The time until the deadline, or `None` if the call has no deadline.
    ///
    /// # Errors
    /// [`ToolError::DeadlineExceeded`] if the deadline has passed.
    pub fn time_left(&self) -> Result<Option<Duration>, ToolError> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        let time_left = deadline.saturating_duration_since(Instant::now());
        if time_left.is_zero() {
            let tool = self.tool.to_string();
            return Err(ToolError::deadline_exceeded(tool, CallStage::Queued));
        }
        Ok(Some(time_left))
    }
}

/// Defines the errors of calls that end without a result, for a kind of callee.
#[async_trait]
pub trait CallErrors: Clone + Send + Sync + Unpin + 'static {
    /// The error of a call that ended with this status instead of a value.
    async fn rejection_error(&self, info: &CallInfo, status: Status) -> ToolError;

    /// The outcome of the call with this id, whose connection broke after the call was sent.
    async fn lost_call(&self, info: &CallInfo, id: u64, status: Status) -> LostCall;

    /// The error of a call whose connection broke before the call was sent.
    async fn unsent_error(&self, info: &CallInfo, status: Status) -> ToolError;

    /// The error of a call whose tool failed.
    fn failure_error(&self, info: &CallInfo, failure: ToolFailure) -> ToolError;

    /// The error of a call whose result cannot be decoded.
    fn bad_value_error(&self, error: &WireError) -> ToolError;

    /// The error of a call whose callee violated the protocol. `violation` is a verb phrase, such as "ended a stream with a
    /// value".
    fn protocol_error(&self, violation: &str) -> ToolError;

    /// The worker that runs a call. `worker_id` comes from the reply and may be empty.
    fn worker(&self, worker_id: &str) -> Option<Arc<str>>;
}

/// The outcome of a call whose connection broke.
#[derive(Debug)]
pub struct LostCall {
    /// The reply, if the callee stored it outside of the stream. It does not prove that all chunks arrived.
    pub stored_reply: Option<pb::CallReply>,
    /// The error of the call if there is no reply.
    pub error: ToolError,
}

/// Whether a call, with its names and metadata, is small enough for a stream that other calls share.
#[must_use]
pub fn fits_shared_stream(call: &ToolCall) -> bool {
    let arguments = call.arguments.iter().map(|(name, value)| name.len() + value.size());
    let metadata = call.metadata.iter().map(|(key, value)| key.len() + value.len());
    let trace = call
        .trace
        .as_ref()
        .map_or(0, |trace| trace.traceparent.len() + trace.tracestate.as_ref().map_or(0, String::len));
    let names = call.tool.len() + call.session.as_ref().map_or(0, |id| id.as_str().len());
    names + trace + arguments.chain(metadata).sum::<usize>() <= MAX_SHARED_BYTES
}

/// Makes a call. The call starts before this function returns the future, so that the future contains neither the call nor its
/// frame.
///
/// # Errors
/// Those of [`ToolHandler::call`](snakepit_registry::ToolHandler::call).
///
/// # Cancel safety
/// Dropping the future, or the returned stream, cancels the call.
pub fn call<'a, C: CallErrors>(
    multiplexer: &Multiplexer,
    errors: &'a C,
    call: ToolCall,
) -> impl Future<Output = Result<ToolReply, ToolError>> + Send + use<'a, C> {
    let (info, tag) = (CallInfo::of(&call), call.id.as_u64());
    let started = info.time_left().map(|time_left| multiplexer.start(call_to_wire(call, time_left), tag));
    async move {
        match await_reply(started?, errors, &info).await {
            Ok(reply) => Ok(reply),
            Err(SendError::Error(error)) => Err(error),
            // Boxed, like other rare futures here: each call would reserve memory for it.
            Err(SendError::Unsent(_, status)) => Err(Box::pin(errors.unsent_error(&info, status)).await),
        }
    }
}

/// The error of [`send`].
#[derive(Debug)]
pub enum SendError {
    /// The call failed.
    Error(ToolError),
    /// The stream broke before the call was sent. The call can be sent on another stream.
    Unsent(Box<pb::CallStart>, Status),
}

/// Makes a call from its frame. Unlike [`call`], returns the frame if the call was not sent.
///
/// # Errors
/// See [`SendError`].
///
/// # Cancel safety
/// Like [`call`].
pub async fn send<C: CallErrors>(
    multiplexer: &Multiplexer,
    errors: &C,
    info: &CallInfo,
    start: pb::CallStart,
) -> Result<ToolReply, SendError> {
    await_reply(multiplexer.start(start, 0), errors, info).await
}

async fn await_reply<C: CallErrors>(
    mut call: Call,
    errors: &C,
    info: &CallInfo,
) -> Result<ToolReply, SendError> {
    let protocol_error = |violation| Err(SendError::Error(errors.protocol_error(violation)));
    let event = loop {
        match call.event().await {
            CallEvent::Reports(reports) => info.report(reports),
            event => break event,
        }
    };
    let outcome = match event {
        CallEvent::Reports(_) => return protocol_error("sent a report without a call"),
        CallEvent::End(CallEnd::Unsent(start, status)) => {
            return Err(SendError::Unsent(Box::new(start), status));
        }
        CallEvent::End(end) => outcome_of(errors, info, end),
        CallEvent::Opened(opened) => {
            let worker = errors.worker(&opened.worker_id);
            let chunks = Chunks::of(call, errors.clone(), info.clone());
            return Ok(ToolReply { worker, ..ToolReply::stream(chunks) });
        }
        CallEvent::Chunks(_) => return protocol_error("sent chunks of a stream before it began"),
    };
    let outcome = match outcome {
        Outcome::NoReply(no_reply) => Box::pin(no_reply.unary_outcome(errors, info, call.id())).await,
        outcome => outcome,
    };
    match outcome {
        Outcome::Value(reply) => Ok(reply),
        // `NoReply::unary_outcome` returns one of the other variants.
        Outcome::Complete | Outcome::NoReply(_) => protocol_error("ended a call without an answer"),
        Outcome::Failed(error) => Err(SendError::Error(error)),
    }
}

/// The outcome of a call, from the event that ended it.
enum Outcome {
    Value(ToolReply),
    /// A complete stream.
    Complete,
    Failed(ToolError),
    /// The call ended without a reply. The [`CallErrors`] defines the error.
    NoReply(NoReply),
}

/// The reason why a call has no reply.
enum NoReply {
    Rejected(Status),
    Broken(Status),
    Unsent(Status),
}

impl NoReply {
    /// The outcome of a unary call: the stored reply if there is one, otherwise the error.
    async fn unary_outcome<C: CallErrors>(self, errors: &C, info: &CallInfo, id: u64) -> Outcome {
        let Self::Broken(status) = self else { return Outcome::Failed(self.error(errors, info, id).await) };
        let LostCall { stored_reply, error } = errors.lost_call(info, id, status).await;
        match stored_reply.map(|reply| outcome_of(errors, info, CallEnd::Reply(reply))) {
            // A reply without a value is the end of a stream, which a unary call does not have.
            None | Some(Outcome::Complete) => Outcome::Failed(error),
            // A reply may contain a status, but not the end of a connection.
            Some(Outcome::NoReply(no_reply)) => Outcome::Failed(no_reply.error(errors, info, id).await),
            Some(outcome) => outcome,
        }
    }

    /// The error. A stream whose connection broke is never complete, even with a stored reply, because its last chunks
    /// may be missing.
    async fn error<C: CallErrors>(self, errors: &C, info: &CallInfo, id: u64) -> ToolError {
        match self {
            Self::Rejected(status) => errors.rejection_error(info, status).await,
            Self::Unsent(status) => errors.unsent_error(info, status).await,
            Self::Broken(status) => errors.lost_call(info, id, status).await.error,
        }
    }
}

fn outcome_of<C: CallErrors>(errors: &C, info: &CallInfo, end: CallEnd) -> Outcome {
    let reply = match end {
        CallEnd::Reply(reply) => reply,
        CallEnd::Recalled => return Outcome::Failed(ToolError::recalled(info.tool.to_string())),
        CallEnd::Broken(status) => return Outcome::NoReply(NoReply::Broken(status)),
        CallEnd::Unsent(_, status) => return Outcome::NoReply(NoReply::Unsent(status)),
    };
    let pb::CallReply { value, failure, status, metadata, execution_time_ns, worker_id, .. } = reply;
    if let Some(failure) = failure {
        return Outcome::Failed(errors.failure_error(info, failure_from_wire(*failure)));
    }
    if let Some(status) = status {
        return Outcome::NoReply(NoReply::Rejected(Status::from(*status)));
    }
    match value.map(value_from_wire) {
        None => Outcome::Complete,
        Some(Err(error)) => Outcome::Failed(errors.bad_value_error(&error)),
        Some(Ok(value)) => Outcome::Value(ToolReply {
            body: ReplyBody::Value(value),
            metadata,
            worker: errors.worker(&worker_id),
            // 0 means unknown, because every call takes time.
            execution_time: (execution_time_ns > 0).then(|| Duration::from_nanos(execution_time_ns)),
        }),
    }
}

/// The chunks of a streaming call. Dropping it before the end cancels the call.
struct Chunks<C> {
    /// `None` after the end.
    call: Option<Call>,
    errors: C,
    info: CallInfo,
    /// Chunks that arrived in one message and are yielded one by one.
    ready: VecDeque<pb::CallChunk>,
    /// The total cost of the chunks that were yielded since the last grant, in bytes of credit.
    consumed: u64,
    /// Determines the error of a stream that broke.
    error: Option<BoxFuture<'static, ToolError>>,
}

impl<C: CallErrors> Chunks<C> {
    fn of(call: Call, errors: C, info: CallInfo) -> ChunkStream {
        Box::pin(Self { call: Some(call), errors, info, ready: VecDeque::new(), consumed: 0, error: None })
    }

    fn consume(&mut self, chunk: pb::CallChunk) -> Result<Chunk, ToolError> {
        self.consumed += chunk_cost(&chunk);
        if self.consumed >= STREAM_CREDIT / 2
            && let Some(call) = &self.call
        {
            call.grant(std::mem::take(&mut self.consumed));
        }
        Chunk::from_peer(chunk.data, chunk.metadata, chunk.binary).map_err(|error| {
            // Dropping the call cancels it.
            (self.call, self.ready) = (None, VecDeque::new());
            self.errors.bad_value_error(&error.into())
        })
    }
}

impl<C: CallErrors> Stream for Chunks<C> {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(chunk) = this.ready.pop_front() {
                return Poll::Ready(Some(this.consume(chunk)));
            }
            if let Some(error) = &mut this.error {
                let error = ready!(error.poll_unpin(cx));
                this.error = None;
                return Poll::Ready(Some(Err(error)));
            }
            let Some(call) = &mut this.call else { return Poll::Ready(None) };
            match ready!(call.poll_event(cx)) {
                CallEvent::Opened(_) => {}
                CallEvent::Reports(reports) => this.info.report(reports),
                CallEvent::Chunks(chunks) => this.ready = chunks.into(),
                CallEvent::End(end) => {
                    let id = call.id();
                    this.call = None;
                    match outcome_of(&this.errors, &this.info, end) {
                        Outcome::Complete => {}
                        Outcome::Value(_) => {
                            let error = this.errors.protocol_error("ended a stream with a value");
                            return Poll::Ready(Some(Err(error)));
                        }
                        Outcome::Failed(error) => return Poll::Ready(Some(Err(error))),
                        Outcome::NoReply(no_reply) => {
                            let (errors, info) = (this.errors.clone(), this.info.clone());
                            this.error =
                                Some(Box::pin(async move { no_reply.error(&errors, &info, id).await }));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
