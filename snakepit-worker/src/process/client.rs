//! Calls over the wire: domain calls into requests, answers and broken connections into replies and errors.

mod peer;
mod plain;

use async_trait::async_trait;
use snakepit_proto::{mux::Multiplexer, pb};
use snakepit_registry::{CallId, ToolCall, ToolError, ToolHandler, ToolReply};

pub(super) use self::peer::Peer;
use super::connect::Client;
use crate::mux;

/// A worker at the other end of a connection.
#[derive(Debug)]
pub(super) struct RemoteWorker {
    client: Client,
    /// The stream that calls share, where the worker serves one.
    multiplexer: Option<Multiplexer>,
    peer: Peer,
}

impl RemoteWorker {
    pub(super) const fn new(client: Client, multiplexer: Option<Multiplexer>, peer: Peer) -> Self {
        Self { client, multiplexer, peer }
    }
}

#[async_trait]
impl ToolHandler for RemoteWorker {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        match &self.multiplexer {
            Some(multiplexer) if mux::fits(&call) => mux::call(multiplexer, &self.peer, call).await,
            // Boxed, because it is much larger than the other and seldom wanted.
            _ => Box::pin(plain::call(&self.client, &self.peer, call)).await,
        }
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let cannot_tell = |problem: &str| ToolError::Internal {
            problem: format!("worker `{}` cannot tell whether the call has ended: {problem}", self.peer.id),
        };
        if let Some(multiplexer) = &self.multiplexer
            && !multiplexer.ended(call.as_u64()).await
        {
            return Err(cannot_tell("its stream broke"));
        }
        // The call may as well have gone the other way.
        let request = pb::CancelToolRequest { call_id: call.to_string() };
        let answer = self.client.clone().cancel_tool(request).await;
        answer.map(drop).map_err(|status| cannot_tell(status.message()))
    }

    fn recall(&self, call: CallId) {
        if let Some(multiplexer) = &self.multiplexer {
            multiplexer.recall(call.as_u64());
        }
    }
}
