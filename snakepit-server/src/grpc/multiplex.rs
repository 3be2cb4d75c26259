//! Multiplex: many calls of one client on one stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures_core::Stream;
use snakepit_proto::{
    mux::{Body, Calls, Replies, Serve},
    pb,
};
use snakepit_registry::{CallId, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply};
use snakepit_wire::mux::{MuxCalls, MuxService};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::{bridge::Bridge, open_ended::OpenEndedStream};
use crate::{
    host::Host,
    listen::{Connection, StreamUse},
    status::{
        answer_dropped, connection_budget_exhausted, connection_evicted, from_tool_error,
        response_budget_exhausted,
    },
};

pub(super) type BatchResponse = Pin<Box<dyn Stream<Item = Result<pb::ReplyBatch, Status>> + Send>>;

impl Bridge {
    pub(super) fn serve_calls(
        &self,
        inbound: Streaming<pb::CallBatch>,
        connection: Option<Arc<Connection>>,
    ) -> BatchResponse {
        let replies = Replies::new();
        let evicted = connection.as_ref().map(|connection| Box::pin(connection.evicted()));
        let stream_use = connection.clone().map(StreamUse::new);
        let client = Client { calls: HostCalls { host: Arc::clone(self.host()), connection } };
        let calls = InUse { calls: MuxCalls::new(Arc::new(client), replies.clone()), stream_use };
        let (driver, body) = Serve::new(inbound, calls, replies).split();
        let mut task = JoinSet::new();
        task.spawn(driver);
        Box::pin(OpenEndedStream::new(Driven { body, evicted, _task: task }, self.host().stop.clone()))
    }
}

/// Keeps the connection of a stream in use while calls run.
struct InUse<C> {
    calls: C,
    stream_use: Option<StreamUse>,
}

impl<C: Calls> Calls for InUse<C> {
    fn receive(&mut self, batch: pb::CallBatch) {
        // No call runs when a connection is evicted, and the end of the stream says that none was begun since.
        if self.stream_use.as_mut().is_none_or(StreamUse::begin) {
            self.calls.receive(batch);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let runs = self.calls.poll(cx);
        if !runs && let Some(stream_use) = &mut self.stream_use {
            stream_use.end();
        }
        runs
    }
}

/// A response whose calls run on a task of their own, which ends with it: a client that stops reading must not hold the
/// workers of calls that have ended.
struct Driven {
    body: Body,
    /// Ready when the connection makes room for another, which ends the stream behind the answers that it has.
    evicted: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _task: JoinSet<()>,
}

impl Stream for Driven {
    type Item = Result<pb::ReplyBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(item) = Pin::new(&mut self.body).poll_next(cx) {
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

/// What a client's stream calls.
struct Client {
    calls: HostCalls,
}

impl MuxService for Client {
    type Handler = HostCalls;

    fn handler(&self) -> &HostCalls {
        &self.calls
    }

    fn reserve(&self, bytes: usize) -> Result<(), ToolError> {
        let Some(connection) = &self.calls.connection else { return Ok(()) };
        connection.reserve(bytes).map_err(connection_budget_exhausted)
    }

    fn release(&self, bytes: usize) {
        if let Some(connection) = &self.calls.connection {
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
        let host = &self.calls.host;
        // Tools of workers and of the host get the same, so that this deadline is never the earlier one.
        let by_default = || started.checked_add(host.default_timeout?);
        deadline.or_else(by_default)
    }
}

/// The host as something callable.
#[derive(Debug)]
struct HostCalls {
    host: Arc<Host>,
    /// Whose budgets the calls use.
    connection: Option<Arc<Connection>>,
}

#[async_trait]
impl ToolHandler for HostCalls {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let Some(connection) = &self.connection else { return self.host.call(call).await };
        connection.response_capacity(call.deadline).await.map_err(response_budget_exhausted)?;
        let mut reply = self.host.call(call).await?;
        if let ReplyBody::Value(value) = reply.body {
            reply.body = ReplyBody::Value(connection.count_unread(value).map_err(answer_dropped)?);
        }
        Ok(reply)
    }

    /// Returns once no worker runs the call. A tool of the host ends when its future is dropped.
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        match self.host.pool_if_started() {
            Some(pool) => pool.tool().cancel(call).await,
            None => Ok(()),
        }
    }
}
