//! The reply of a call on its way to the caller.

use std::future::ready;

use futures_util::{StreamExt, TryFutureExt, future::Either};
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

/// Converts the value of a reply to the form of the client, and counts it as unread. A stream counts its chunks itself.
///
/// This is not an `async fn`, whose future would store the result twice.
pub(super) fn accounted<F>(
    result: Result<ToolReply, ToolError>,
    account: impl FnOnce(Payload) -> F,
) -> impl Future<Output = Result<ToolReply, ToolError>>
where
    F: Future<Output = Result<Payload, ToolError>>,
{
    match result {
        Ok(ToolReply { body: ReplyBody::Value(value), metadata, worker, execution_time }) => {
            let reply =
                move |value| ToolReply { body: ReplyBody::Value(value), metadata, worker, execution_time };
            Either::Left(account(value).map_ok(reply))
        }
        result => Either::Right(ready(result)),
    }
}
