//! The reply of a call on its way to the caller.

use futures_util::StreamExt;
use snakepit_registry::{ReplyBody, TimeLimit, ToolError, ToolReply};
use snakepit_session::Payload;

/// Adds the default timeout of the host to the error of a call that exceeded it, even in the middle of a stream.
pub(super) fn with_time_limit(
    result: Result<ToolReply, ToolError>,
    limit: Option<TimeLimit>,
) -> Result<ToolReply, ToolError> {
    let mut reply = result.map_err(|error| error.with_time_limit(limit))?;
    if limit.is_some()
        && let ReplyBody::Stream(chunks) = reply.body
    {
        let chunks = chunks.map(move |chunk| chunk.map_err(|error| error.with_time_limit(limit)));
        reply.body = ReplyBody::Stream(Box::pin(chunks));
    }
    Ok(reply)
}

/// Counts the value of a reply as unread by the client. A stream counts its chunks itself.
pub(super) fn accounted(
    mut reply: ToolReply,
    account: impl FnOnce(Payload) -> Result<Payload, ToolError>,
) -> Result<ToolReply, ToolError> {
    if let ReplyBody::Value(value) = reply.body {
        reply.body = ReplyBody::Value(account(value)?);
    }
    Ok(reply)
}
