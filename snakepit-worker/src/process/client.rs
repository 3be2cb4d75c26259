//! Calls over the wire: domain calls into requests, answers and broken connections into replies and errors.

mod peer;
mod plain;

use std::pin::Pin;

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
    // Spelled out, because an async fn would keep places for the call, and for the larger of the two futures.
    fn call<'a, 'f>(
        &'a self,
        call: ToolCall,
    ) -> Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        match &self.multiplexer {
            Some(multiplexer) if mux::fits(&call) => Box::pin(mux::call(multiplexer, &self.peer, call)),
            _ => Box::pin(plain::call(&self.client, &self.peer, call)),
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
