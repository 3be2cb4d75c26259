//! Calls over the wire: domain calls into requests, answers and broken connections into replies and errors.

use std::{error::Error as _, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use snakepit_proto::{
    headers, pb,
    status::{caused_by, failure_of},
};
use snakepit_registry::{
    CallId, CallMode, CallStage, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolFailure,
    ToolHandler, ToolReply,
};
use snakepit_session::{Payload, SessionId};
use tokio::time::Instant;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue};

use super::{connect::Client, output::OutputTail, ready::ended, supervise::ExitWatch};
use crate::{
    WorkerId,
    wire::{failure_from_wire, payload_from_wire, payload_to_wire},
};

/// How long a broken connection waits for the worker's exit to be known, so that the error can say how it ended.
const EXIT_KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// How much earlier than a deadline a timer set for it may fire.
const TIMER_GRAIN: Duration = Duration::from_millis(2);

/// A worker at the other end of a connection.
#[derive(Debug)]
pub(super) struct RemoteWorker {
    client: Client,
    peer: Peer,
}

/// What is known of the worker when a call fails.
#[derive(Debug, Clone)]
struct Peer {
    id: WorkerId,
    exit: ExitWatch,
    tail: OutputTail,
}

/// What is known of a call when it fails.
#[derive(Debug, Clone)]
struct Asked {
    tool: Arc<str>,
    deadline: Option<Instant>,
}

impl RemoteWorker {
    pub(super) const fn new(id: WorkerId, client: Client, exit: ExitWatch, tail: OutputTail) -> Self {
        Self { client, peer: Peer { id, exit, tail } }
    }
}

#[async_trait]
impl ToolHandler for RemoteWorker {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let (mode, asked) = (call.mode, Asked { tool: Arc::clone(&call.tool), deadline: call.deadline });
        let request = request(call)?;
        // A client is a handle to the shared connection, made to be cloned.
        let mut client = self.client.clone();
        match mode {
            CallMode::Unary => match client.execute_tool(request).await {
                Ok(response) => self.peer.reply(&asked.tool, response.into_inner()),
                Err(status) => Err(self.peer.error(&asked, status).await),
            },
            CallMode::Streaming => match client.execute_streaming_tool(request).await {
                Ok(response) => Ok(ToolReply {
                    body: ReplyBody::Stream(chunks(self.peer.clone(), asked, response.into_inner())),
                    worker: Some(self.peer.id.shared()),
                    metadata: std::collections::BTreeMap::new(),
                    execution_time: None,
                }),
                Err(status) => Err(self.peer.error(&asked, status).await),
            },
        }
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let request = pb::CancelToolRequest { call_id: call.to_string() };
        match self.client.clone().cancel_tool(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(ToolError::Internal {
                problem: format!(
                    "worker `{}` cannot tell whether the call has ended: {}",
                    self.peer.id,
                    status.message()
                ),
            }),
        }
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
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ToolError::DeadlineExceeded { tool: tool.to_string(), stage: CallStage::Queued });
        }
        request.set_timeout(left);
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
fn chunks(peer: Peer, asked: Asked, stream: Streaming<pb::ToolChunk>) -> ChunkStream {
    let chunks = stream.try_filter_map(|chunk| {
        let empty_end = chunk.is_final && chunk.data.is_empty();
        std::future::ready(Ok((!empty_end).then_some(Chunk { data: chunk.data, metadata: chunk.metadata })))
    });
    Box::pin(chunks.then(move |item| {
        let (peer, asked) = (peer.clone(), asked.clone());
        async move {
            match item {
                Ok(chunk) => Ok(chunk),
                Err(status) => Err(peer.error(&asked, status).await),
            }
        }
    }))
}

impl Peer {
    fn reply(&self, tool: &str, response: pb::ExecuteToolResponse) -> Result<ToolReply, ToolError> {
        let pb::ExecuteToolResponse {
            success,
            result,
            error_message,
            metadata,
            execution_time_ms,
            binary_result,
            failure,
        } = response;
        if !success {
            let failure = failure.map(failure_from_wire).unwrap_or_default();
            return Err(self.failed(tool, failure, error_message));
        }
        let binary = (!binary_result.is_empty()).then_some(binary_result);
        let value = match (result, binary) {
            (None, None) => Payload::null(),
            (result, binary) => payload_from_wire(result.unwrap_or_default(), binary).map_err(|error| {
                ToolError::Internal {
                    problem: format!("worker `{}` answered with a bad value: {error}", self.id),
                }
            })?,
        };
        Ok(ToolReply {
            body: ReplyBody::Value(value),
            metadata,
            worker: Some(self.id.shared()),
            execution_time: u64::try_from(execution_time_ms).ok().map(Duration::from_millis),
        })
    }

    fn failed(&self, tool: &str, failure: ToolFailure, message: String) -> ToolError {
        let message = if failure.message.is_empty() && failure.error_type.is_empty() {
            message
        } else {
            failure.message
        };
        let worker = self.id.to_string();
        ToolError::Failed(Box::new(ToolFailure { tool: tool.to_owned(), message, worker, ..failure }))
    }

    /// What a status means: the worker's own word, or the end of the connection.
    async fn error(&self, Asked { tool, deadline }: &Asked, status: Status) -> ToolError {
        let tool = &**tool;
        // The worker's transport keeps time too, and answers a call that is late with CANCELLED.
        let late = status.code() == Code::Cancelled
            && deadline.is_some_and(|deadline| Instant::now() + TIMER_GRAIN >= deadline);
        if late || caused_by::<tonic::TimeoutExpired>(&status) {
            return ToolError::DeadlineExceeded { tool: tool.to_owned(), stage: CallStage::Running };
        }
        // Only a status made on this side has a source; one that the worker sent has none.
        if status.source().is_some() {
            return self.lost(&status).await;
        }
        let failure = failure_of(&status).map(failure_from_wire);
        let (code, message) = (status.code(), status.message().to_owned());
        let tool_name = || tool.to_owned();
        match (failure, code) {
            (Some(failure), _) => self.failed(tool, failure, message),
            (None, Code::InvalidArgument) => ToolError::InvalidArgument {
                tool: tool_name(),
                argument: "arguments".to_owned(),
                problem: format!("were refused by the worker: {message}"),
            },
            (None, Code::NotFound) => ToolError::NotFound { tool: tool_name(), suggestion: None },
            (None, Code::Unimplemented) => ToolError::Unsupported { tool: tool_name(), problem: message },
            (None, Code::DeadlineExceeded) => {
                ToolError::DeadlineExceeded { tool: tool_name(), stage: CallStage::Running }
            }
            (None, Code::Cancelled) => ToolError::Cancelled { tool: tool_name() },
            (None, Code::Unavailable) => self.lost(&status).await,
            // Workers of the original end a failed stream with INTERNAL and the exception's text.
            (None, _) => self.failed(tool, ToolFailure::default(), message),
        }
    }

    /// The connection broke: says how the worker ended, when that is known soon enough.
    async fn lost(&self, status: &Status) -> ToolError {
        let mut exit = self.exit.clone();
        let (reason, output_lines) = match tokio::time::timeout(EXIT_KNOWN_WITHIN, ended(&mut exit)).await {
            Ok(exit) => (exit.reason.to_string(), exit.output_lines),
            Err(_) => (format!("its connection broke: {}", status.message()), self.tail.lines()),
        };
        ToolError::WorkerLost {
            worker: self.id.to_string(),
            reason,
            // Without a connection the request cannot have reached the worker.
            delivered: !caused_by::<tonic::ConnectError>(status),
            output_lines,
        }
    }
}
