//! Multiplexed calls in terms of the domain: both ends of a `Multiplex` stream.
//!
//! ```text
//!             caller                            callee
//!   domain    call(ToolCall) -> ToolReply       MuxCalls<S: MuxService>  ──>  ToolHandler
//!   frames    Multiplexer, Call           <═══> Serve, Calls, Replies         snakepit_proto::mux
//! ```
//!
//! [`call`] makes a call, and a [`CallErrors`] defines the errors of its ends. [`MuxCalls`] serves the calls of a stream
//! with any [`ToolHandler`](snakepit_registry::ToolHandler), and a [`MuxService`] defines the differences between
//! servers. The host and the worker runtime each add an adapter that implements these traits.

mod calling;
mod reports;
mod serving;

use std::time::Duration;

use snakepit_proto::pb;
use snakepit_registry::{CallId, CallMode, ToolCall, ToolError, ToolFailure, TraceContext};
use snakepit_session::{Payload, SessionId};
use tokio::time::Instant;
use tonic::Status;

pub use self::{
    calling::{CallErrors, CallInfo, LostCall, SendError, call, fits_shared_stream, send},
    reports::{CallOrigin, attach_reports, report_from_wire},
    serving::{MuxCalls, MuxService, non_increasing_id},
};
use crate::{bad_argument, bad_field, failure_to_wire, value_from_wire, value_to_wire};
/// The types of [`snakepit_proto::mux`] that adapters need.
pub use snakepit_proto::mux::{Calls, Multiplexer, Replies, ReplyBatches, Serve};

/// The reply of a call that returned a value.
#[must_use]
pub fn value_reply(id: u64, value: Payload, execution_time: Option<Duration>) -> pb::CallReply {
    pb::CallReply {
        id,
        value: Some(value_to_wire(value)),
        execution_time_ns: execution_time
            .map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        ..pb::CallReply::default()
    }
}

/// The reply of a call whose tool failed.
#[must_use]
pub fn failure_reply(id: u64, failure: ToolFailure, session_id: String) -> pb::CallReply {
    pb::CallReply {
        id,
        worker_id: failure.worker.clone(),
        failure: Some(Box::new(failure_to_wire(failure, session_id))),
        ..pb::CallReply::default()
    }
}

/// The reply of a call that ended with a status.
#[must_use]
pub fn status_reply(id: u64, status: Status) -> pb::CallReply {
    pb::CallReply { id, status: Some(Box::new(status.into())), ..pb::CallReply::default() }
}

/// The reply of a call that ended with an error. `to_status` converts all errors except a tool failure.
#[must_use]
pub fn error_reply(
    id: u64,
    error: ToolError,
    session_id: String,
    to_status: impl FnOnce(ToolError) -> Status,
) -> pb::CallReply {
    match error {
        ToolError::Failed(failure) => failure_reply(id, *failure, session_id),
        error => status_reply(id, to_status(error)),
    }
}

/// Converts a call into a `CallStart` frame. `time_left` is the time until its deadline.
#[must_use]
pub fn call_to_wire(call: ToolCall, time_left: Option<Duration>) -> pb::CallStart {
    let (at_most_once, request_id) = (call.is_at_most_once(), call.id.as_u64());
    let reports = reports::to_wire(&call);
    let ToolCall { tool, session, arguments, metadata, mode, idempotent, trace, .. } = call;
    let (traceparent, tracestate) = trace.map(|t| (t.traceparent, t.tracestate)).unwrap_or_default();
    let stream = mode == CallMode::Streaming;
    pb::CallStart {
        id: 0,
        // `to_string` would be slower, because it formats an `Arc<str>` piece by piece.
        tool_name: String::from(&*tool),
        session_id: session.map(|id| id.as_str().to_owned()).unwrap_or_default(),
        arguments: arguments
            .into_iter()
            .map(|(name, value)| pb::CallArgument { name, value: Some(value_to_wire(value)) })
            .collect(),
        metadata,
        stream,
        // Rounded up, because 0 means no deadline.
        timeout_us: time_left.map_or(0, |time| microseconds(time).saturating_add(1)),
        traceparent,
        tracestate: tracestate.unwrap_or_default(),
        idempotent,
        credit: if stream { snakepit_proto::mux::STREAM_CREDIT } else { 0 },
        at_most_once,
        request_id,
        reports,
    }
}

/// Converts a `CallStart` frame into a call.
///
/// # Errors
/// `INVALID_ARGUMENT`, with the field or argument and its problem.
pub fn call_from_wire(start: pb::CallStart, call_id: CallId) -> Result<ToolCall, Status> {
    let pb::CallStart {
        tool_name,
        session_id,
        arguments,
        metadata,
        stream,
        timeout_us,
        traceparent,
        tracestate,
        idempotent,
        at_most_once,
        ..
    } = start;
    if tool_name.is_empty() {
        return Err(bad_field("tool_name", "is empty; name the tool to call"));
    }
    let session = match session_id.as_str() {
        "" => None,
        id => Some(SessionId::try_new(id).map_err(|error| bad_field("session_id", &error.to_string()))?),
    };
    let convert = |pb::CallArgument { name, value }| match value_from_wire(value.unwrap_or_default()) {
        Ok(value) => Ok((name, value)),
        Err(error) => Err(bad_argument(&tool_name, &name, &format!("cannot be read: {error}"))),
    };
    let arguments = arguments.into_iter().map(convert).collect::<Result<_, _>>()?;
    let mut call = ToolCall::new(tool_name);
    call.id = call_id;
    call.session = session;
    call.arguments = arguments;
    call.metadata = metadata;
    call.mode = if stream { CallMode::Streaming } else { CallMode::Unary };
    call.deadline = match timeout_us {
        0 => None,
        timeout_us => Instant::now().checked_add(Duration::from_micros(timeout_us)),
    };
    call.idempotent = idempotent;
    call.trace = (!traceparent.is_empty())
        .then(|| TraceContext { traceparent, tracestate: (!tracestate.is_empty()).then_some(tracestate) });
    Ok(if at_most_once { call.at_most_once(true) } else { call })
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod model;
