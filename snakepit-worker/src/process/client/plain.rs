//! Calls by ExecuteTool and ExecuteStreamingTool: for workers that know nothing else, and for large arguments.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use snakepit_proto::pb;
use snakepit_registry::{CallId, CallMode, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_wire::{check_size, mux::Asked, request_to_wire};
use tonic::{Status, Streaming};

use super::{
    super::connect::Client,
    peer::{Peer, is_unreadable},
};

/// How long a worker may take to end a call whose stream cannot be read.
const CANCEL_WITHIN: Duration = Duration::from_secs(2);

/// Runs a call.
pub(super) async fn call(client: &Client, peer: &Peer, call: ToolCall) -> Result<ToolReply, ToolError> {
    let (id, mode) = (call.id, call.mode);
    let asked = Asked::by(&call);
    let request = request_to_wire(call, asked.time_left()?);
    check_size(request.get_ref())?;
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
            _ => self.peer.incoherent(&self.asked, &status),
        }
    }
}
