//! The gRPC service of the worker, an adapter over [`PythonTools`].
//!
//! A worker serves `Ping`, `ExecuteTool`, `ExecuteStreamingTool`, `CancelTool`, `Multiplex` and `StreamTelemetry`. It
//! answers all other RPCs with UNIMPLEMENTED.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use snakepit_proto::{
    headers, launch, pb,
    status::{self, bounded_text, error_status},
};
use snakepit_registry::{
    Arguments, CallId, CallMode, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply, TraceContext,
};
use snakepit_session::{Payload, SessionId};
use snakepit_wire::{
    bad_argument, bad_field, check_answer_size, chunks_to_wire, failure_to_wire,
    mux::{Replies, Serve},
    payload_from_wire, payload_to_wire, without_buffers,
};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    multiplexed::WorkerCalls,
    open_streams::OpenStreams,
    reports::ReportRequest,
    status::{one_line, to_status},
    tools::PythonTools,
};

mod routes;

pub(crate) use self::routes::WorkerRoutes;

type RpcResult<T> = Result<Response<T>, Status>;
type ToolChunks = Pin<Box<dyn Stream<Item = Result<pb::ToolChunk, Status>> + Send>>;

pub(crate) type Batches = Pin<Box<dyn Stream<Item = Result<pb::ReplyBatch, Status>> + Send>>;

/// The service of one worker.
#[derive(Debug)]
pub(crate) struct WorkerService {
    tools: PythonTools,
    /// The `Multiplex` streams, which end when the last call has ended and no further call can begin.
    streams: OpenStreams,
}

impl WorkerService {
    pub(crate) const fn new(tools: PythonTools, streams: OpenStreams) -> Self {
        Self { tools, streams }
    }

    fn pong(request: pb::PingRequest) -> pb::PingResponse {
        let server_time = Some(std::time::SystemTime::now().into());
        pb::PingResponse { message: request.message, server_time, version: launch::VERSION.to_owned() }
    }

    async fn execute(&self, request: Request<pb::ExecuteToolRequest>) -> RpcResult<pb::ExecuteToolResponse> {
        let takes_buffers = takes_buffers(request.metadata());
        let (call, session_id) = read_call(request, CallMode::Unary)?;
        match self.tools.call(call).await {
            Ok(ToolReply { body: ReplyBody::Value(value), metadata, execution_time, .. }) => {
                let value = if takes_buffers { value } else { without_buffers(value) };
                check_answer_size(value.size()).map_err(|error| to_status(error, session_id))?;
                let (result, binary) = payload_to_wire(value);
                Ok(Response::new(pb::ExecuteToolResponse {
                    success: true,
                    result: Some(result),
                    metadata,
                    execution_time_ms: milliseconds(execution_time),
                    binary_result: binary.unwrap_or_default(),
                    ..pb::ExecuteToolResponse::default()
                }))
            }
            Ok(_) => {
                Err(error_status(Code::Internal, status::INTERNAL, "a unary call was answered with a stream"))
            }
            Err(ToolError::Failed(failure)) => Ok(Response::new(pb::ExecuteToolResponse {
                success: false,
                error_message: bounded_text(one_line(&failure)),
                failure: Some(failure_to_wire(*failure, session_id)),
                ..pb::ExecuteToolResponse::default()
            })),
            Err(error) => Err(to_status(error, session_id)),
        }
    }

    async fn execute_streaming(&self, request: Request<pb::ExecuteToolRequest>) -> RpcResult<ToolChunks> {
        let takes_buffers = takes_buffers(request.metadata());
        let (call, session_id) = read_call(request, CallMode::Streaming)?;
        let tool = Arc::clone(&call.tool);
        match self.tools.call(call).await {
            Ok(ToolReply { body: ReplyBody::Stream(chunks), .. }) => {
                let chunks = chunks_to_wire(&tool, chunks, takes_buffers, move |error| {
                    to_status(error, session_id.clone())
                });
                Ok(Response::new(Box::pin(chunks)))
            }
            Ok(_) => Err(error_status(
                Code::Internal,
                status::INTERNAL,
                "a streaming call was answered with a value",
            )),
            Err(error) => Err(to_status(error, session_id)),
        }
    }

    fn multiplex(&self, inbound: Streaming<pb::CallBatch>) -> Batches {
        let replies = Replies::new();
        let calls = WorkerCalls::new(self.tools.clone(), replies.clone());
        self.streams.add(&replies);
        Box::pin(Serve::new(inbound, calls, replies))
    }

    async fn cancel(&self, request: Request<pb::CancelToolRequest>) -> RpcResult<pb::CancelToolResponse> {
        let text = request.into_inner().call_id;
        let id = parse_call_id(&text).ok_or_else(|| bad_call_id(&text))?;
        let was_active = self.tools.find(id).is_some();
        self.tools.cancel(id).await.map_err(|error| to_status(error, String::new()))?;
        Ok(Response::new(pb::CancelToolResponse { was_active }))
    }
}

fn read_call(request: Request<pb::ExecuteToolRequest>, mode: CallMode) -> Result<(ToolCall, String), Status> {
    let (headers, _, message) = request.into_parts();
    let pb::ExecuteToolRequest { session_id, tool_name, parameters, metadata, stream: _, binary_parameters } =
        message;
    if tool_name.is_empty() {
        return Err(bad_field("tool_name", "is empty; name the tool to call"));
    }
    let session = match session_id.as_str() {
        "" => None,
        id => Some(SessionId::try_new(id).map_err(|error| bad_field("session_id", &error.to_string()))?),
    };
    let mut call = ToolCall::new(tool_name);
    call.id = call_id(&headers)?;
    call.session = session;
    call.mode = mode;
    call.metadata = metadata;
    call.deadline = timeout(&headers)?.and_then(|timeout| Instant::now().checked_add(timeout));
    call.trace = trace(&headers);
    if let Some(names) = text(&headers, headers::REPORTS) {
        let wants = |kind: &str| names.split(',').any(|name| name == kind);
        let wanted = Some(pb::CallReports { progress: wants("progress"), logs: wants("logs") });
        call.extensions.insert(ReportRequest { request_id: call.id.as_u64(), wanted });
    }
    let mut buffers = binary_parameters;
    for (name, any) in parameters {
        let buffer = buffers.remove(&name);
        let payload = payload_from_wire(any, buffer)
            .map_err(|error| bad_argument(&call.tool, &name, &format!("cannot be read: {error}")))?;
        call.arguments.insert(name, payload);
    }
    call.arguments.extend(raw_buffers(buffers));
    Ok((call, session_id))
}

/// Converts buffers without a parameter of the same name to raw bytes.
fn raw_buffers(buffers: std::collections::BTreeMap<String, Bytes>) -> Arguments {
    buffers.into_iter().map(|(name, buffer)| (name, Payload::bytes(buffer))).collect()
}

/// Returns the id that the host gave the call. Calls without one get an id beyond the range of hosts.
fn call_id(headers: &MetadataMap) -> Result<CallId, Status> {
    static LAST: AtomicU64 = AtomicU64::new(1 << 63);
    match text(headers, headers::CALL_ID) {
        Some(id) => parse_call_id(id).ok_or_else(|| bad_call_id(id)),
        None => Ok(CallId::from_u64(LAST.fetch_add(1, Ordering::Relaxed))),
    }
}

fn parse_call_id(text: &str) -> Option<CallId> {
    text.parse().ok().map(CallId::from_u64)
}

fn bad_call_id(text: &str) -> Status {
    bad_field(headers::CALL_ID, &format!("`{text}` is not an unsigned number"))
}

fn trace(headers: &MetadataMap) -> Option<TraceContext> {
    Some(TraceContext {
        traceparent: text(headers, headers::TRACEPARENT)?.to_owned(),
        tracestate: text(headers, headers::TRACESTATE).map(str::to_owned),
    })
}

fn text<'a>(headers: &'a MetadataMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether the sender of a request accepts nested values in the response.
fn takes_buffers(headers: &MetadataMap) -> bool {
    headers::has_flag(headers, headers::TAKES_BUFFERS)
}

fn timeout(headers: &MetadataMap) -> Result<Option<Duration>, Status> {
    let Some(value) = text(headers, headers::GRPC_TIMEOUT) else { return Ok(None) };
    headers::parse_timeout(value)
        .map(Some)
        .ok_or_else(|| bad_field(headers::GRPC_TIMEOUT, &format!("`{value}` is malformed")))
}

fn milliseconds(time: Option<Duration>) -> i64 {
    time.and_then(|time| i64::try_from(time.as_millis()).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_without_an_id_get_ids_outside_the_range_of_hosts() {
        let mut headers = MetadataMap::new();
        assert!(call_id(&headers).unwrap().as_u64() >= 1 << 63);
        headers.insert(headers::CALL_ID, "7".parse().unwrap());
        assert_eq!(call_id(&headers).unwrap().as_u64(), 7);
        headers.insert(headers::CALL_ID, "seven".parse().unwrap());
        assert_eq!(call_id(&headers).unwrap_err().code(), Code::InvalidArgument);
    }
}
