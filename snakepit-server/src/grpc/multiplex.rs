//! Multiplex: many calls of one client on one stream.

use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use futures_core::Stream;
use snakepit_proto::{
    mux::{Replies, Serve},
    pb,
};
use snakepit_registry::{CallId, ToolCall, ToolError, ToolHandler, ToolReply};
use snakepit_worker::mux::{MuxCalls, MuxService};
use tonic::{Status, Streaming};

use super::{bridge::Bridge, until_stop::UntilStop};
use crate::{host::Host, status::from_tool_error};

pub(super) type BatchResponse = Pin<Box<dyn Stream<Item = Result<pb::ReplyBatch, Status>> + Send>>;

impl Bridge {
    pub(super) fn serve_calls(&self, inbound: Streaming<pb::CallBatch>) -> BatchResponse {
        let replies = Replies::new();
        let calls = MuxCalls::new(Arc::new(Client(HostCalls(Arc::clone(self.host())))), replies.clone());
        Box::pin(UntilStop::new(Serve::new(inbound, calls, replies), self.host().stop.clone()))
    }
}

/// What a client's stream calls.
struct Client(HostCalls);

impl MuxService for Client {
    type Handler = HostCalls;

    fn handler(&self) -> &HostCalls {
        &self.0
    }

    fn call_id(&self, _: u64) -> CallId {
        CallId::next()
    }

    fn status(&self, error: ToolError) -> Status {
        from_tool_error(error)
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
}
