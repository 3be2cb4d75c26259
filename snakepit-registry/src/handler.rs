//! [`ToolHandler`], the trait that runs tool calls.

use async_trait::async_trait;

use crate::{CallId, ToolCall, ToolError, ToolReply};

/// Runs calls. Implementations include a Rust closure, a worker pool, and the Python tools of a worker.
///
/// # Cancel safety
/// Dropping the future of [`call`](ToolHandler::call), or the stream that it returned, cancels the call. The tool may
/// still run for a while, depending on the handler. [`cancel`](ToolHandler::cancel) waits until the tool has ended.
#[async_trait]
pub trait ToolHandler: Send + Sync + std::fmt::Debug + 'static {
    /// Runs a call. Must return [`ReplyBody::Stream`](crate::ReplyBody::Stream) if and only if the call is streaming.
    ///
    /// The host drops the future at [`ToolCall::deadline`], unless the handler
    /// [enforces deadlines](ToolHandler::enforces_deadlines).
    ///
    /// # Errors
    /// Any [`ToolError`]. A failure during a stream is the last item of the stream.
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError>;

    /// Cancels a call if it still runs. Must return `Ok` only once the call has provably ended. Must also succeed for calls that
    /// have ended and for unknown calls.
    ///
    /// The default implementation returns immediately. It suits handlers whose calls end when their future is dropped.
    ///
    /// # Errors
    /// Any [`ToolError`] if the handler could not confirm the end of the call. The caller must then assume that the call
    /// still runs.
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let _ = call;
        Ok(())
    }

    /// Whether the handler enforces deadlines and the shutdown itself. Such a handler must end calls and their streams at the
    /// deadline and at a shutdown, and must report the stage that they had reached. The host does not set timers for these calls,
    /// so that exactly one component decides how a call ends.
    ///
    /// The default implementation returns `false`.
    fn enforces_deadlines(&self) -> bool {
        false
    }

    /// Asks the handler to return a call that it has accepted but may not have begun. If the call has not begun, the handler must
    /// never begin it, and the future of the call must soon fail with [`ToolError::Recalled`]. Otherwise, the recall must not
    /// affect the call.
    ///
    /// Must not block. The default implementation does nothing. It suits handlers that begin every call immediately.
    fn recall(&self, call: CallId) {
        let _ = call;
    }

    /// Returns the call that a worker reports under this number in its requests to the host. Workers that run several calls
    /// concurrently report which of them makes the request.
    ///
    /// Must not block. The default implementation takes the number for a [`CallId`].
    fn find_call(&self, reported: u64) -> Option<CallId> {
        Some(CallId::from_u64(reported))
    }
}
