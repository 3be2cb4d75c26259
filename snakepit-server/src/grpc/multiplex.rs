//! Serves `Multiplex` to clients: many calls of one client on one stream.
//!
//! The stream itself is [`snakepit_wire::mux`]. This file connects it to the host, and to the budgets of the client's
//! connection.

use std::{
    future::ready,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures_core::Stream;
use futures_util::StreamExt;
use snakepit_proto::pb;
use snakepit_registry::{CallId, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply};
use snakepit_wire::mux::{
    CallOrigin, Calls, MuxCalls, MuxService, Replies, ReplyBatches, Serve, attach_reports,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::{
    answer::AnswerRecipient,
    authorize::PrincipalSource,
    bridge::Bridge,
    inline_buffers::{inline_chunk_buffers, inline_value_buffers},
    open_ended::OpenEndedStream,
};
use crate::{
    host::{FromWorker, Host},
    listen::{Connection, StreamUse},
    status::{
        connection_budget_exhausted, connection_evicted, from_tool_error, malformed_message,
        response_budget_exhausted,
    },
};

pub(super) type BatchResponse = Pin<Box<dyn Stream<Item = Result<pb::ReplyBatch, Status>> + Send>>;

impl Bridge {
    pub(super) fn serve_calls(
        &self,
        inbound: Streaming<pb::CallBatch>,
        connection: Option<Arc<Connection>>,
        principal_source: PrincipalSource,
    ) -> BatchResponse {
        let replies = Replies::new();
        let evicted = connection.as_ref().map(|connection| Box::pin(connection.evicted()));
        let stream_use = connection.clone().map(StreamUse::new);
        let is_worker = connection.as_ref().is_some_and(|connection| connection.find_launch().is_some());
        let takes_buffers = AtomicBool::new(false);
        let service = Arc::new(ClientCalls {
            host: Arc::clone(self.host()),
            connection,
            is_worker,
            principal_source,
            takes_buffers,
        });
        let calls = MuxCalls::new(Arc::clone(&service), replies.clone());
        let calls = ClientBatches { calls, service, stream_use };
        let (call_loop, batches) = Serve::new(inbound, calls, replies).split();
        let mut task = JoinSet::new();
        task.spawn(call_loop);
        let response = MuxResponse { batches, evicted, _task: task };
        Box::pin(OpenEndedStream::new(response, self.host().stop.clone()).with_calls())
    }
}

/// Receives the batches of a client, and marks the connection as in use while calls of the stream run.
struct ClientBatches<C> {
    calls: C,
    service: Arc<ClientCalls>,
    stream_use: Option<StreamUse>,
}

impl<C: Calls> Calls for ClientBatches<C> {
    fn receive(&mut self, batch: pb::CallBatch) {
        if batch.takes_buffers {
            self.service.takes_buffers.store(true, Relaxed);
        }
        // Drops the batch if the connection is evicted. The status that ends the stream says that its calls have not
        // begun.
        if self.stream_use.as_mut().is_none_or(StreamUse::begin) {
            self.calls.receive(batch);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let is_running = self.calls.poll(cx);
        if !is_running && let Some(stream_use) = &mut self.stream_use {
            stream_use.end();
        }
        is_running
    }
}

/// The response of the RPC. The calls run on a separate task, so that a client that stops reading does not hold the
/// workers of calls that have ended. Dropping the response ends the task.
struct MuxResponse {
    batches: ReplyBatches,
    /// Ready when the host evicts the connection. The stream then ends after the replies that it already has.
    evicted: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _task: JoinSet<()>,
}

impl Stream for MuxResponse {
    type Item = Result<pb::ReplyBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(item) = Pin::new(&mut self.batches).poll_next(cx) {
            let item = item.map(|item| item.map_err(|status| malformed_message(&status).unwrap_or(status)));
            return Poll::Ready(item);
        }
        let is_evicted = self.evicted.as_mut().is_some_and(|evicted| evicted.as_mut().poll(cx).is_ready());
        if is_evicted {
            self.evicted = None;
            return Poll::Ready(Some(Err(connection_evicted())));
        }
        Poll::Pending
    }
}

/// Converts the chunks of a reply for a client that does not read nested values.
fn plain_chunks(mut reply: ToolReply) -> ToolReply {
    if let ReplyBody::Stream(chunks) = reply.body {
        reply.body =
            ReplyBody::Stream(Box::pin(chunks.then(async |chunk| inline_chunk_buffers(chunk?).await)));
    }
    reply
}

/// The calls of one client, run by the host.
#[derive(Debug)]
struct ClientCalls {
    host: Arc<Host>,
    /// The connection whose budgets the calls use.
    connection: Option<Arc<Connection>>,
    /// Whether the client is a process of a worker.
    is_worker: bool,
    /// The source of each call's principal.
    principal_source: PrincipalSource,
    /// Whether the client reads nested values, as it states in its first message.
    takes_buffers: AtomicBool,
}

impl MuxService for ClientCalls {
    type Handler = Self;

    fn handler(&self) -> &Self {
        self
    }

    fn prepare(&self, call: ToolCall, origin: &CallOrigin, replies: &Replies) -> ToolCall {
        let Some(mut reports) = origin.reports else { return call };
        // The policy for the output in errors.
        reports.logs &= self.host.tracebacks.shows_to(&self.principal_source.principal(&self.host));
        attach_reports(call, &CallOrigin { reports: Some(reports), ..*origin }, replies)
    }

    fn reserve(&self, bytes: usize) -> Result<(), ToolError> {
        let Some(connection) = &self.connection else { return Ok(()) };
        connection.reserve(bytes, 0).map_err(connection_budget_exhausted)
    }

    fn release(&self, bytes: usize) {
        if let Some(connection) = &self.connection {
            connection.release(bytes);
        }
    }

    fn call_id(&self, _: u64) -> CallId {
        CallId::next()
    }

    fn status(&self, error: ToolError) -> Status {
        from_tool_error(error)
    }

    fn stream_deadline(&self, _: &str, deadline: Option<Instant>, started: Instant) -> Option<Instant> {
        // The default is the same as that of the pool and of host tools, so this deadline is never earlier than theirs.
        let default_deadline = || started.checked_add(self.host.default_timeout?);
        deadline.or_else(default_deadline)
    }
}

#[async_trait]
impl ToolHandler for ClientCalls {
    async fn call(&self, mut call: ToolCall) -> Result<ToolReply, ToolError> {
        if self.is_worker {
            call.extensions.insert(FromWorker);
        }
        call.principal = self.principal_source.principal(&self.host);
        if let Some(connection) = &self.connection
            && let Err(full) = connection.response_capacity(call.deadline).await
        {
            return self.host.records().begin(&mut call).ended(Err(response_budget_exhausted(full)));
        }
        let recipient = AnswerRecipient::of(&self.host, &call, self.connection.clone());
        let result = if self.takes_buffers.load(Relaxed) {
            self.host.call(call, |value| ready(recipient.account(value))).await
        } else {
            let account = async |value| recipient.account(inline_value_buffers(value, false).await?);
            // A separate allocation, because such clients are rare.
            Box::pin(self.host.call(call, account)).await.map(plain_chunks)
        };
        recipient.result(result)
    }

    /// Returns once no worker runs the call. A host tool ends when its future is dropped.
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        match self.host.pool_if_started() {
            Some(pool) => pool.tool().cancel(call).await,
            None => Ok(()),
        }
    }
}
