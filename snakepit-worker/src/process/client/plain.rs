//! Calls by ExecuteTool and ExecuteStreamingTool: for workers that know nothing else, and for large arguments.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use snakepit_proto::{headers, pb};
use snakepit_registry::{CallId, CallMode, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_session::SessionId;
use tonic::{Request, Status, Streaming, metadata::MetadataValue};

use super::{
    super::connect::Client,
    peer::{Asked, Peer, is_unreadable},
    time_left,
};
use crate::wire::payload_to_wire;

/// How long a worker may take to end a call whose stream cannot be read.
const CANCEL_WITHIN: Duration = Duration::from_secs(2);

/// Runs a call.
pub(super) async fn call(client: &Client, peer: &Peer, call: ToolCall) -> Result<ToolReply, ToolError> {
    let (id, mode) = (call.id, call.mode);
    let asked = Asked { tool: Arc::clone(&call.tool), deadline: call.deadline };
    let request = request(call)?;
    // A client is a handle to the shared connection, made to be cloned.
    let mut client = client.clone();
    match mode {
        CallMode::Unary => match client.execute_tool(request).await {
            Ok(response) => peer.reply(&asked.tool, response.into_inner()),
            Err(status) => Err(peer.error(&asked, status).await),
        },
        CallMode::Streaming => match client.execute_streaming_tool(request).await {
            Ok(response) => {
                let end = End { client, peer: peer.clone(), asked, id };
                Ok(ToolReply {
                    body: ReplyBody::Stream(chunks(end, response.into_inner())),
                    worker: Some(peer.id.shared()),
                    metadata: std::collections::BTreeMap::new(),
                    execution_time: None,
                })
            }
            Err(status) => Err(peer.error(&asked, status).await),
        },
    }
}

fn request(call: ToolCall) -> Result<Request<pb::ExecuteToolRequest>, ToolError> {
    let ToolCall { id, tool, session, arguments, metadata, mode, deadline, trace, .. } = call;
    let mut message = pb::ExecuteToolRequest {
        session_id: session.as_ref().map(SessionId::to_string).unwrap_or_default(),
        tool_name: tool.to_string(),
        metadata,
        stream: mode == CallMode::Streaming,
        ..pb::ExecuteToolRequest::default()
    };
    for (name, payload) in arguments {
        let (any, buffer) = payload_to_wire(payload);
        if let Some(buffer) = buffer {
            message.binary_parameters.insert(name.clone(), buffer);
        }
        message.parameters.insert(name, any);
    }
    let mut request = Request::new(message);
    request.metadata_mut().insert(headers::CALL_ID, MetadataValue::from(id.as_u64()));
    if let Some(left) = time_left(&tool, deadline)? {
        request.set_timeout(left.min(headers::MAX_TIMEOUT));
    }
    if let Some(trace) = trace {
        let mut entry = |name, value: Option<String>| {
            // A header that is no legal header value belongs to no trace.
            if let Some(value) = value.and_then(|value| value.parse().ok()) {
                request.metadata_mut().insert(name, value);
            }
        };
        entry(headers::TRACEPARENT, Some(trace.traceparent));
        entry(headers::TRACESTATE, trace.tracestate);
    }
    Ok(request)
}

/// The chunks of a streaming call. A final chunk without data only says that the stream is complete.
fn chunks(end: End, stream: Streaming<pb::ToolChunk>) -> ChunkStream {
    let chunks = stream.try_filter_map(|chunk| {
        let empty_end = chunk.is_final && chunk.data.is_empty();
        std::future::ready(Ok((!empty_end).then_some(Chunk { data: chunk.data, metadata: chunk.metadata })))
    });
    let end = Arc::new(end);
    Box::pin(chunks.then(move |item| {
        let end = Arc::clone(&end);
        async move {
            match item {
                Ok(chunk) => Ok(chunk),
                Err(status) => Err(end.error(status).await),
            }
        }
    }))
}

/// What is needed to say why a stream ended.
struct End {
    client: Client,
    peer: Peer,
    asked: Asked,
    id: CallId,
}

impl End {
    async fn error(&self, status: Status) -> ToolError {
        if !is_unreadable(&status) {
            return self.peer.error(&self.asked, status).await;
        }
        // It was given up on this side, and the tool may stream on: the worker takes no other call before it has said
        // that this one runs no more.
        let request = pb::CancelToolRequest { call_id: self.id.to_string() };
        let cancelled = tokio::time::timeout(CANCEL_WITHIN, self.client.clone().cancel_tool(request)).await;
        match cancelled {
            Ok(Ok(_)) => self.peer.unreadable(&status),
            _ => self.peer.incoherent(&status),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_deadline_beyond_what_the_header_can_say_is_cut() {
        let mut call = ToolCall::new("echo");
        call.deadline = Instant::now().checked_add(2 * headers::MAX_TIMEOUT);
        assert!(call.deadline.is_some(), "or this tests nothing");
        let request = request(call).unwrap();
        let sent = request.metadata().get(headers::GRPC_TIMEOUT).unwrap().to_str().unwrap();
        assert_eq!(headers::parse_timeout(sent), Some(Duration::from_secs(99_999_999 * 3600)));
    }
}
