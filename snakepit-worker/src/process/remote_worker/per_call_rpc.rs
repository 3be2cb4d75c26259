//! Runs each call as a separate RPC, `ExecuteTool` or `ExecuteStreamingTool`. Serves workers without `Multiplex`, and calls with
//! large arguments.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use snakepit_proto::pb;
use snakepit_registry::{CallId, CallMode, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_wire::{check_size, mux::CallInfo, request_to_wire};
use tonic::{Status, Streaming};

use super::{
    super::connect::Client,
    diagnostics::{WorkerDiagnostics, is_unreadable, unreadable_status},
};

/// How long a worker may take to cancel a call whose stream cannot be read.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a call. Nested arguments become plain JSON unless the worker `takes_buffers`.
pub(super) async fn call(
    client: &Client,
    diagnostics: &WorkerDiagnostics,
    call: ToolCall,
    takes_buffers: bool,
) -> Result<ToolReply, ToolError> {
    let (id, mode) = (call.id, call.mode);
    let info = CallInfo::of(&call);
    let request = request_to_wire(call, info.time_left()?, takes_buffers);
    check_size(request.get_ref())?;
    // Clones of a client share one connection.
    let mut client = client.clone();
    match mode {
        CallMode::Unary => match client.execute_tool(request).await {
            Ok(response) => diagnostics.reply(&info.tool, response.into_inner()),
            Err(status) => Err(diagnostics.error(&info, status).await),
        },
        CallMode::Streaming => match client.execute_streaming_tool(request).await {
            Ok(response) => {
                let errors = StreamErrors { client, diagnostics: diagnostics.clone(), info, id };
                Ok(ToolReply {
                    body: ReplyBody::Stream(chunks(errors, response.into_inner())),
                    worker: Some(diagnostics.id.shared()),
                    metadata: std::collections::BTreeMap::new(),
                    execution_time: None,
                })
            }
            Err(status) => Err(diagnostics.error(&info, status).await),
        },
    }
}

/// Converts the chunks of a streaming call. Skips a final chunk without data, which only marks the end of the stream.
fn chunks(errors: StreamErrors, stream: Streaming<pb::ToolChunk>) -> ChunkStream {
    let chunks = stream.try_filter_map(|chunk| {
        let is_empty_end = chunk.is_final && chunk.data.is_empty();
        let chunk = (!is_empty_end).then(|| Chunk::from_peer(chunk.data, chunk.metadata, chunk.binary));
        std::future::ready(chunk.transpose().map_err(|error| unreadable_status(&error)))
    });
    let errors = Arc::new(errors);
    Box::pin(chunks.then(move |item| {
        let errors = Arc::clone(&errors);
        async move {
            match item {
                Ok(chunk) => Ok(chunk),
                Err(status) => Err(errors.error(status).await),
            }
        }
    }))
}

/// Converts the errors of a chunk stream.
struct StreamErrors {
    client: Client,
    diagnostics: WorkerDiagnostics,
    info: CallInfo,
    id: CallId,
}

impl StreamErrors {
    async fn error(&self, status: Status) -> ToolError {
        if !is_unreadable(&status) {
            return self.diagnostics.error(&self.info, status).await;
        }
        // The host closed the stream, but the tool may still run. The worker must confirm the end of the call before the pool
        // dispatches another one to it.
        let request = pb::CancelToolRequest { call_id: self.id.to_string() };
        let cancelled = tokio::time::timeout(CANCEL_TIMEOUT, self.client.clone().cancel_tool(request)).await;
        match cancelled {
            Ok(Ok(_)) => self.diagnostics.unreadable(&status),
            _ => self.diagnostics.lost_after_unreadable(&self.info, &status),
        }
    }
}
