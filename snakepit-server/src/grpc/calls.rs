//! `ExecuteTool`, `ExecuteStreamingTool`, and the RPCs with which workers call host tools.

use std::{future::ready, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use snakepit_proto::{headers, pb, status::bounded_text};
use snakepit_registry::{CallMode, ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_session::Payload;
use snakepit_wire::{chunks_to_wire, failure_to_wire, payload_to_wire, payload_to_wire_inline, spec_to_wire};
use tonic::{Extensions, Request, Response, Status, metadata::MetadataMap};

use super::{
    answer::AnswerRecipient,
    bridge::Bridge,
    inline_buffers::{inline_chunk_buffers, inline_value_buffers, takes_buffers},
    request::{mark_worker, tool_call},
};
use crate::{
    blocking::run_if_heavy,
    listen::{Connection, ReportedCall},
    status::{from_tool_error, unexpected_reply},
};

pub(super) type ChunkResponse =
    Pin<Box<dyn futures_core::Stream<Item = Result<pb::ToolChunk, Status>> + Send>>;

impl Bridge {
    pub(super) async fn execute(
        &self,
        request: Request<pb::ExecuteToolRequest>,
    ) -> Result<Response<pb::ExecuteToolResponse>, Status> {
        let (headers, extensions, request) = request.into_parts();
        let session_id = request.session_id.clone();
        let mut call = tool_call(&headers, &extensions, request, CallMode::Unary)?;
        call.principal = self.principal(&extensions);
        mark_worker(&mut call, &extensions);
        self.nest(&mut call, &headers, &extensions);
        let (tool, recipient) =
            (call.tool.clone(), AnswerRecipient::of(self.host(), &call, extensions.get().cloned()));
        let takes_buffers = takes_buffers(&headers);
        let account =
            async |value| recipient.account_message(inline_value_buffers(value, takes_buffers).await?);
        let result = self.host().call(call, account).await;
        match recipient.result(result) {
            Ok(reply) => unary_response(&tool, reply),
            Err(ToolError::Failed(failure)) => Ok(Response::new(pb::ExecuteToolResponse {
                success: false,
                error_message: bounded_text(failure.to_string()),
                failure: Some(failure_to_wire(*failure, session_id)),
                ..pb::ExecuteToolResponse::default()
            })),
            Err(error) => Err(from_tool_error(error)),
        }
    }

    pub(super) async fn execute_streaming(
        &self,
        request: Request<pb::ExecuteToolRequest>,
    ) -> Result<Response<ChunkResponse>, Status> {
        let (headers, extensions, request) = request.into_parts();
        let mut call = tool_call(&headers, &extensions, request, CallMode::Streaming)?;
        call.principal = self.principal(&extensions);
        mark_worker(&mut call, &extensions);
        self.nest(&mut call, &headers, &extensions);
        let (tool, recipient) = (call.tool.clone(), AnswerRecipient::of(self.host(), &call, None));
        let result = self.host().call(call, |value| ready(Ok(value))).await;
        let ToolReply { body, worker, .. } = recipient.result(result).map_err(from_tool_error)?;
        let mut response = Response::new(chunk_response(&tool, body, takes_buffers(&headers))?);
        set_worker_header(response.metadata_mut(), worker.as_deref());
        Ok(response)
    }

    /// Runs a host tool for a worker and streams its results. Dropping the response ends the tool.
    pub(super) async fn stream_host_tool(
        &self,
        request: Request<pb::ExecuteElixirToolRequest>,
    ) -> Result<Response<ChunkResponse>, Status> {
        let takes_buffers = takes_buffers(request.metadata());
        let (call, recipient) = self.host_tool_call(request, CallMode::Streaming)?;
        let tool = call.tool.clone();
        let result = self.host().call_host_tool(call, |value| ready(Ok(value))).await;
        let reply = recipient.result(result).map_err(from_tool_error)?;
        Ok(Response::new(chunk_response(&tool, reply.body, takes_buffers)?))
    }

    pub(super) async fn exposed_tools(
        &self,
        request: &pb::GetExposedElixirToolsRequest,
    ) -> Result<pb::GetExposedElixirToolsResponse, Status> {
        self.renew(&request.session_id).await?;
        let tools = self.host().registry.host_tools().into_iter().map(spec_to_wire).collect();
        Ok(pb::GetExposedElixirToolsResponse { tools })
    }

    pub(super) async fn execute_host_tool(
        &self,
        request: Request<pb::ExecuteElixirToolRequest>,
    ) -> Result<Response<pb::ExecuteElixirToolResponse>, Status> {
        let takes_buffers = takes_buffers(request.metadata());
        let (call, recipient) = self.host_tool_call(request, CallMode::Unary)?;
        let tool = call.tool.clone();
        let account = |value: Payload| {
            ready(match takes_buffers {
                true => recipient.account_message(value),
                false => recipient.account_inline(value),
            })
        };
        let result = self.host().call_host_tool(call, account).await;
        match recipient.result(result) {
            Ok(ToolReply { body: ReplyBody::Value(value), metadata, execution_time, .. }) => {
                // Clients of the original Snakepit read only `result`, so for them it also includes the buffer.
                let binary_result = match value.nested_json() {
                    Some(_) if !takes_buffers => Bytes::new(),
                    _ => value.binary().cloned().unwrap_or_default(),
                };
                let result = match takes_buffers {
                    true => payload_to_wire(value).0,
                    false => run_if_heavy(value.size(), move || payload_to_wire_inline(value)).await,
                };
                Ok(Response::new(pb::ExecuteElixirToolResponse {
                    success: true,
                    result: Some(result),
                    error_message: String::new(),
                    metadata,
                    execution_time_ms: milliseconds(execution_time),
                    binary_result,
                    failure: None,
                }))
            }
            Ok(_) => Err(unexpected_reply(&tool, "a stream", "a value")),
            Err(ToolError::Failed(failure)) => Ok(Response::new(pb::ExecuteElixirToolResponse {
                success: false,
                error_message: bounded_text(failure.to_string()),
                failure: Some(failure_to_wire(*failure, String::new())),
                ..pb::ExecuteElixirToolResponse::default()
            })),
            Err(error) => Err(from_tool_error(error)),
        }
    }
}

impl Bridge {
    /// Converts the request of a worker to a call to a host tool, and returns the recipient of its answer.
    fn host_tool_call(
        &self,
        request: Request<pb::ExecuteElixirToolRequest>,
        mode: CallMode,
    ) -> Result<(ToolCall, AnswerRecipient), Status> {
        let (headers, extensions, request) = request.into_parts();
        let pb::ExecuteElixirToolRequest { session_id, tool_name, parameters, metadata, binary_parameters } =
            request;
        let request = pb::ExecuteToolRequest {
            session_id,
            tool_name,
            parameters,
            metadata,
            binary_parameters,
            ..pb::ExecuteToolRequest::default()
        };
        let mut call = tool_call(&headers, &extensions, request, mode)?;
        call.principal = self.principal(&extensions);
        self.nest(&mut call, &headers, &extensions);
        let recipient = AnswerRecipient::of(self.host(), &call, extensions.get().cloned());
        Ok((call, recipient))
    }

    /// For a call of a worker, sets the calls that wait for it, for the detection of deadlocks, and passes its output to the caller of
    /// the outer call. Any client can send the header, so the host accepts it only from a process of the worker that it names.
    /// Otherwise a client could claim to be part of another client's call and cause rejections of calls that would not deadlock.
    fn nest(&self, call: &mut ToolCall, headers: &MetadataMap, extensions: &Extensions) {
        let Some((pool, worker)) = self.host().pool_if_started().zip(calling_worker(headers, extensions))
        else {
            return;
        };
        let reported = extensions.get::<ReportedCall>().map(|call| call.0);
        if let Some(reported) = reported {
            pool.tool().set_blocks_worker(
                &worker,
                reported,
                headers::has_flag(headers, headers::BLOCKS_WORKER),
            );
        }
        call.ancestors = pool.tool().ancestors_on(&worker, reported);
        if let Some(reports) = pool.tool().reports_on(&worker, reported) {
            reports.attach_to(call);
        }
    }
}

/// The worker that a request names, if it comes from a process of that worker.
fn calling_worker(headers: &MetadataMap, extensions: &Extensions) -> Option<String> {
    let claimed = headers.get(headers::WORKER_ID)?.to_str().ok()?;
    let connection = extensions.get::<Arc<Connection>>()?;
    let worker = connection.find_launch().filter(|launch| launch.id().as_str() == claimed)?;
    Some(worker.id().as_str().to_owned())
}

/// Converts the chunks of a reply.
fn chunk_response(tool: &Arc<str>, body: ReplyBody, takes_buffers: bool) -> Result<ChunkResponse, Status> {
    match body {
        ReplyBody::Stream(chunks) if takes_buffers => {
            Ok(Box::pin(chunks_to_wire(tool, chunks, true, from_tool_error)))
        }
        ReplyBody::Stream(chunks) => {
            let chunks = chunks.then(async |chunk| inline_chunk_buffers(chunk?).await);
            Ok(Box::pin(chunks_to_wire(tool, chunks, false, from_tool_error)))
        }
        ReplyBody::Value(_) => Err(unexpected_reply(tool, "a value", "a stream")),
    }
}

fn unary_response(tool: &str, reply: ToolReply) -> Result<Response<pb::ExecuteToolResponse>, Status> {
    let ToolReply { body, metadata, worker, execution_time } = reply;
    let ReplyBody::Value(value) = body else {
        return Err(unexpected_reply(tool, "a stream", "a value"));
    };
    let (result, binary) = payload_to_wire(value);
    let mut response = Response::new(pb::ExecuteToolResponse {
        success: true,
        result: Some(result),
        metadata,
        execution_time_ms: milliseconds(execution_time),
        binary_result: binary.unwrap_or_default(),
        ..pb::ExecuteToolResponse::default()
    });
    set_worker_header(response.metadata_mut(), worker.as_deref());
    Ok(response)
}

/// Names the worker that ran the call, if any, in a response header.
fn set_worker_header(headers: &mut MetadataMap, worker: Option<&str>) {
    if let Some(value) = worker.and_then(|worker| worker.parse().ok()) {
        headers.insert(headers::WORKER_ID, value);
    }
}

fn milliseconds(time: Option<Duration>) -> i64 {
    time.and_then(|time| i64::try_from(time.as_millis()).ok()).unwrap_or_default()
}
