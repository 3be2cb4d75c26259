//! Multiplex: many calls of one client on one stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures_core::Stream;
use snakepit_proto::{
    mux::{Body, Replies, Serve},
    pb,
};
use snakepit_registry::{CallId, ToolCall, ToolError, ToolHandler, ToolReply};
use snakepit_worker::mux::{MuxCalls, MuxService};
use tokio::{task::JoinSet, time::Instant};
use tonic::{Status, Streaming};

use super::{bridge::Bridge, until_stop::UntilStop};
use crate::{
    host::Host,
    listen::Connection,
    status::{from_tool_error, too_much_of_a_connection},
};

pub(super) type BatchResponse = Pin<Box<dyn Stream<Item = Result<pb::ReplyBatch, Status>> + Send>>;

impl Bridge {
    pub(super) fn serve_calls(
        &self,
        inbound: Streaming<pb::CallBatch>,
        connection: Option<Arc<Connection>>,
    ) -> BatchResponse {
        let replies = Replies::new();
        let client = Client { calls: HostCalls(Arc::clone(self.host())), connection };
        let calls = MuxCalls::new(Arc::new(client), replies.clone());
        let (driver, body) = Serve::new(inbound, calls, replies).split();
        let mut task = JoinSet::new();
        task.spawn(driver);
        Box::pin(UntilStop::new(Driven { body, _task: task }, self.host().stop.clone()))
    }
}

/// A response whose calls run on a task of their own, which ends with it: a client that stops reading must not hold the
/// workers of calls that have ended.
struct Driven {
    body: Body,
    _task: JoinSet<()>,
}

impl Stream for Driven {
    type Item = Result<pb::ReplyBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

/// What a client's stream calls.
struct Client {
    calls: HostCalls,
    /// Whose budget the calls use.
    connection: Option<Arc<Connection>>,
}

impl MuxService for Client {
    type Handler = HostCalls;

    fn handler(&self) -> &HostCalls {
        &self.calls
    }

    fn reserve(&self, bytes: usize) -> Result<(), ToolError> {
        let Some(connection) = &self.connection else { return Ok(()) };
        connection.reserve(bytes).map_err(too_much_of_a_connection)
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
        let HostCalls(host) = &self.calls;
        // Tools of workers and of the host get the same, so that this deadline is never the earlier one.
        let by_default = || started.checked_add(host.default_timeout?);
        deadline.or_else(by_default)
    }
}

/// The host as something callable.
#[derive(Debug)]
struct HostCalls(Arc<Host>);

#[async_trait]
impl ToolHandler for HostCalls {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        self.0.call(call).await
    }

    /// Returns once no worker runs the call. A tool of the host ends when its future is dropped.
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        match self.0.pool_if_started() {
            Some(pool) => pool.tool().cancel(call).await,
            None => Ok(()),
        }
    }
}
