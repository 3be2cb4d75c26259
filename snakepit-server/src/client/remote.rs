//! The host at the other end: calls by frames on one stream, or by plain RPCs.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use snakepit_proto::{
    headers,
    mux::Multiplexer,
    pb::{self, bridge_service_client::BridgeServiceClient},
};
use snakepit_registry::{CallMode, Chunk, ReplyBody, ToolCall, ToolError, ToolFailure, ToolReply};
use snakepit_worker::{
    mux::{self, Asked, Callee},
    wire::{WireError, failure_from_wire, payload_from_wire, request_to_wire},
};
use tokio::task::JoinSet;
use tonic::{Code, Response, Status, metadata::MetadataMap, transport::Channel};

use crate::status::to_tool_error;

/// A host at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Remote {
    client: BridgeServiceClient<Channel>,
    /// The stream that calls share, where the host serves one.
    multiplexer: Option<Multiplexer>,
    /// Brings the answers; ends with this.
    _incoming: JoinSet<()>,
}

impl Remote {
    pub(crate) async fn open(client: BridgeServiceClient<Channel>) -> Result<Self, Status> {
        let mut tasks = JoinSet::new();
        let multiplexer = match Multiplexer::open(client.clone()).await {
            Ok((multiplexer, incoming)) => {
                tasks.spawn(incoming);
                Some(multiplexer)
            }
            Err(status) if status.code() == Code::Unimplemented => None,
            Err(status) => return Err(status),
        };
        Ok(Self { client, multiplexer, _incoming: tasks })
    }

    /// A client for everything but calls; made to be cloned.
    pub(crate) fn client(&self) -> BridgeServiceClient<Channel> {
        self.client.clone()
    }

    pub(crate) async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        match &self.multiplexer {
            Some(multiplexer) if mux::fits(&call) => mux::call(multiplexer, &Host, call).await,
            _ => self.call_plainly(call).await,
        }
    }

    async fn call_plainly(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let (mode, asked) = (call.mode, Asked::by(&call));
        let request = request_to_wire(call, asked.time_left()?);
        let refused = |status: Status| to_tool_error(&asked.tool, &status);
        match mode {
            CallMode::Unary => {
                let response = self.client().execute_tool(request).await.map_err(refused)?;
                read_response(&asked, response)
            }
            CallMode::Streaming => {
                let response = self.client().execute_streaming_tool(request).await.map_err(refused)?;
                let worker = worker_of(response.metadata());
                let tool = Arc::clone(&asked.tool);
                let chunks = response
                    .into_inner()
                    .map_err(move |status| to_tool_error(&tool, &status))
                    // A final chunk without data only says that the stream is complete.
                    .try_filter(|chunk| std::future::ready(!(chunk.is_final && chunk.data.is_empty())))
                    .map_ok(|chunk| Chunk { data: chunk.data, metadata: chunk.metadata });
                Ok(ToolReply { worker, ..ToolReply::stream(chunks.boxed()) })
            }
        }
    }
}

fn read_response(asked: &Asked, response: Response<pb::ExecuteToolResponse>) -> Result<ToolReply, ToolError> {
    let worker = worker_of(response.metadata());
    let pb::ExecuteToolResponse {
        success,
        result,
        error_message,
        metadata,
        execution_time_ms,
        binary_result,
        failure,
    } = response.into_inner();
    if !success {
        // A host of the original says no more than the text.
        let failure = failure.map_or_else(
            || ToolFailure { message: error_message, ..ToolFailure::default() },
            failure_from_wire,
        );
        return Err(Host.failed(asked, failure));
    }
    let buffer = (!binary_result.is_empty()).then_some(binary_result);
    let value =
        payload_from_wire(result.unwrap_or_default(), buffer).map_err(|error| Host.bad_value(&error))?;
    let execution_time = u64::try_from(execution_time_ms).ok().map(std::time::Duration::from_millis);
    Ok(ToolReply { body: ReplyBody::Value(value), metadata, worker, execution_time })
}

fn worker_of(headers: &MetadataMap) -> Option<Arc<str>> {
    headers.get(headers::WORKER_ID)?.to_str().ok().map(Arc::from)
}

/// What the answers of a host mean.
#[derive(Debug, Clone, Copy)]
struct Host;

#[async_trait]
impl Callee for Host {
    async fn refused(&self, asked: &Asked, status: Status) -> ToolError {
        to_tool_error(&asked.tool, &status)
    }

    async fn broken(&self, _: &Asked, _: u64, status: Status) -> ToolError {
        let reason = format!("the connection to the host broke: {}", status.message());
        ToolError::Unavailable { reason, retry_after: None }
    }

    fn failed(&self, asked: &Asked, failure: ToolFailure) -> ToolError {
        ToolError::Failed(Box::new(ToolFailure { tool: asked.tool.to_string(), ..failure }))
    }

    fn bad_value(&self, error: &WireError) -> ToolError {
        ToolError::Internal { problem: format!("the host answered with a bad value: {error}") }
    }

    fn incoherent(&self, what: &str) -> ToolError {
        ToolError::Internal { problem: format!("the host {what}") }
    }

    fn worker(&self, told: &str) -> Option<Arc<str>> {
        (!told.is_empty()).then(|| told.into())
    }
}
