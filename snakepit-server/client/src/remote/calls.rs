//! Calls on a remote host: frames on the shared stream, or one RPC per call.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use snakepit_proto::{headers, pb, status::details_of};
use snakepit_registry::{
    CallMode, CallReports, Chunk, ReplyBody, ToolCall, ToolError, ToolFailure, ToolReply,
};
use snakepit_wire::{
    WireError, check_size, failure_from_wire,
    mux::{self, CallErrors, CallInfo, LostCall, SendError},
    payload_from_wire, request_to_wire,
};
use tonic::{Extensions, Request, Response, Status, metadata::MetadataMap};

use super::{
    CallStream, Connection, MAX_ATTEMPTS, cause_of,
    closing::{UntilClosed, closed},
    deadline::{self, BoundedChunks},
};
use crate::{
    status::{HOST, to_tool_error},
    transport::BridgeClient,
};

impl Connection {
    /// Runs a call. The host enforces the call's deadline. The client also enforces it, slightly later, in case the host no
    /// longer responds.
    pub(super) async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let (info, is_streaming) = (CallInfo::of(&call), call.mode == CallMode::Streaming);
        let reply = async {
            // An idempotent call is retried once if the connection breaks.
            let copy = call.idempotent.then(|| call.clone());
            match (self.attempt(&info, call).await, copy) {
                (Err(lost @ ToolError::ConnectionLost { .. }), Some(copy)) => {
                    self.attempt(&info, copy).await.map_err(|error| error.with_earlier_attempt(lost))
                }
                (reply, _) => reply,
            }
        };
        let (reply, stream) = deadline::within(&info, reply).await?;
        Ok(match reply {
            ToolReply { body: ReplyBody::Stream(chunks), .. } if is_streaming => {
                let chunks = BoundedChunks::new(chunks, info, stream).boxed();
                ToolReply { body: ReplyBody::Stream(chunks), ..reply }
            }
            reply => reply,
        })
    }

    /// Sends a call. Repeats it if its stream breaks before the call is sent, or if the host reports that it did not begin the
    /// call. If the host shuts down, fails over to the next address. Running calls keep their old stream.
    async fn attempt(
        &self,
        info: &CallInfo,
        call: ToolCall,
    ) -> Result<(ToolReply, Arc<CallStream>), ToolError> {
        let mut stream = self.call_stream().await?;
        // Only the shared stream carries reports.
        if stream.multiplexer.is_none()
            || !(mux::fits_shared_stream(&call) || CallReports::of(&call).is_some())
        {
            return Ok((self.call_by_rpc(call).await?, stream));
        }
        let mut start = mux::call_to_wire(call, info.time_left()?);
        let (mut attempts, mut addresses_left) = (1, self.targets.len() - 1);
        loop {
            let callee = HostCallErrors(Arc::clone(&stream));
            let Some(multiplexer) = &stream.multiplexer else {
                let reason = format!("{HOST} no longer offers the stream that calls share; repeat the call");
                return Err(ToolError::unavailable(reason));
            };
            // A host may close an idle stream while this call is on its way. The copy costs a few small allocations.
            let copy = start.clone();
            match mux::send(multiplexer, &callee, info, start).await {
                Ok(reply) => return Ok((reply, stream)),
                Err(SendError::Unsent(unsent, _)) if attempts < MAX_ATTEMPTS => {
                    start = *unsent;
                    attempts += 1;
                }
                // The host did not begin the call, and the stream has ended.
                Err(SendError::Error(ToolError::Unavailable { .. }))
                    if attempts < MAX_ATTEMPTS && stream.broken.is_cancelled() =>
                {
                    start = copy;
                    attempts += 1;
                }
                Err(SendError::Error(ToolError::ShuttingDown { may_have_run: false, .. }))
                    if addresses_left > 0 =>
                {
                    start = copy;
                    addresses_left -= 1;
                    self.leave(stream.target);
                }
                Err(SendError::Unsent(_, status)) => return Err(callee.unsent_error(info, status).await),
                Err(SendError::Error(error)) => return Err(error),
            }
            stream.broken.cancel();
            stream = self.call_stream().await?;
        }
    }

    /// Runs a call as a separate RPC.
    async fn call_by_rpc(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let (mode, info) = (call.mode, CallInfo::of(&call));
        let (headers, _, message) = request_to_wire(call, info.time_left()?, true).into_parts();
        check_size(&message)?;
        let to_error = |status: Status| to_tool_error(&info.tool, &status);
        // The headers contain the time that remains now. An attempt at another address starts later, so its host could run the
        // call past the deadline. The client enforces the deadline itself.
        let request = || Request::from_parts(headers.clone(), Extensions::default(), message.clone());
        match mode {
            CallMode::Unary => {
                let send = |mut client: BridgeClient| {
                    let request = request();
                    async move { client.execute_tool(request).await }
                };
                let response = self.until_call_is_cut(self.request(false, send)).await?.map_err(to_error)?;
                read_response(&info, response)
            }
            CallMode::Streaming => {
                let send = |mut client: BridgeClient| {
                    let request = request();
                    async move { client.execute_streaming_tool(request).await }
                };
                let response = self.until_call_is_cut(self.request(false, send)).await?.map_err(to_error)?;
                let worker = worker_of(response.metadata());
                let tool = Arc::clone(&info.tool);
                let chunks = response
                    .into_inner()
                    .map_err(move |status| to_tool_error(&tool, &status))
                    // A final chunk without data only marks the end of the stream.
                    .try_filter(|chunk| std::future::ready(!(chunk.is_final && chunk.data.is_empty())))
                    .and_then(|chunk| {
                        let chunk = Chunk::from_peer(chunk.data, chunk.metadata, chunk.binary);
                        std::future::ready(chunk.map_err(|error| bad_value_error(&error.into())))
                    });
                let chunks = UntilClosed::new(chunks.boxed(), &self.close.cut, closed(true));
                Ok(ToolReply { worker, ..ToolReply::stream(chunks.boxed()) })
            }
        }
    }

    /// Waits for the response to the RPC of a call, unless the client aborts its calls.
    async fn until_call_is_cut<T>(&self, response: impl Future<Output = T>) -> Result<T, ToolError> {
        self.close.cut.run_until_cancelled(response).await.ok_or(closed(true))
    }
}

fn read_response(
    info: &CallInfo,
    response: Response<pb::ExecuteToolResponse>,
) -> Result<ToolReply, ToolError> {
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
        // A host of the original Snakepit sends only the text.
        let failure = failure.map_or_else(|| ToolFailure::new("", error_message), failure_from_wire);
        return Err(failure_error(info, failure));
    }
    let buffer = (!binary_result.is_empty()).then_some(binary_result);
    let value =
        payload_from_wire(result.unwrap_or_default(), buffer).map_err(|error| bad_value_error(&error))?;
    let execution_time = u64::try_from(execution_time_ms).ok().map(Duration::from_millis);
    Ok(ToolReply { body: ReplyBody::Value(value), metadata, worker, execution_time })
}

fn worker_of(headers: &MetadataMap) -> Option<Arc<str>> {
    headers.get(headers::WORKER_ID)?.to_str().ok().map(Arc::from)
}

fn failure_error(info: &CallInfo, failure: ToolFailure) -> ToolError {
    ToolError::Failed(Box::new(failure.with_tool(info.tool.to_string())))
}

fn bad_value_error(error: &WireError) -> ToolError {
    ToolError::internal("the host answered with a bad value").with_source(error.clone())
}

/// Interprets the replies of a host on a call stream.
#[derive(Debug, Clone)]
struct HostCallErrors(Arc<CallStream>);

#[async_trait]
impl CallErrors for HostCallErrors {
    async fn rejection_error(&self, info: &CallInfo, status: Status) -> ToolError {
        to_tool_error(&info.tool, &status)
    }

    async fn lost_call(&self, info: &CallInfo, _: u64, status: Status) -> LostCall {
        // The next call of a caller that receives this error must not find the same stream.
        self.0.broken.cancel();
        if self.0.cut.is_cancelled() {
            return LostCall { stored_reply: None, error: closed(true) };
        }
        // A host that shuts down, or closes an idle connection, sends the reason as the last message of the stream.
        let error = match to_tool_error(&info.tool, &status) {
            error @ (ToolError::ShuttingDown { .. } | ToolError::Unavailable { .. }) => error,
            // The host had no memory for the first message of the stream, so it received none of the calls.
            error @ ToolError::TooManyBytes { .. } if details_of(&status).cannot_have_run() => error,
            _ => {
                let problem = cause_of(&status);
                ToolError::connection_lost(HOST, problem).with_source(status)
            }
        };
        LostCall { stored_reply: None, error }
    }

    async fn unsent_error(&self, _: &CallInfo, status: Status) -> ToolError {
        self.0.broken.cancel();
        if self.0.cut.is_cancelled() {
            return closed(false);
        }
        let reason =
            format!("the connection to the host broke before the call was sent: {}", cause_of(&status));
        ToolError::unavailable(reason)
    }

    fn failure_error(&self, info: &CallInfo, failure: ToolFailure) -> ToolError {
        failure_error(info, failure)
    }

    fn bad_value_error(&self, error: &WireError) -> ToolError {
        bad_value_error(error)
    }

    fn protocol_error(&self, problem: &str) -> ToolError {
        ToolError::internal(format!("the host {problem}"))
    }

    fn worker(&self, id: &str) -> Option<Arc<str>> {
        (!id.is_empty()).then(|| id.into())
    }
}
