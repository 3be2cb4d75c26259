//! The trait behind which every tool runs.

use async_trait::async_trait;

use crate::{CallId, ToolCall, ToolError, ToolReply};

/// Something callable: a Rust closure, a pool of workers, or a Python callable inside a worker.
///
/// # Cancel safety
/// Dropping the future of [`call`](ToolHandler::call), or the stream it returned, cancels the call. Whether it still
/// runs for a while after that depends on the handler; [`cancel`](ToolHandler::cancel) waits for its end.
#[async_trait]
pub trait ToolHandler: Send + Sync + std::fmt::Debug + 'static {
    /// Runs a call. Answers with [`ReplyBody::Stream`](crate::ReplyBody::Stream) exactly when the call's mode is
    /// streaming.
    ///
    /// Unless the handler [keeps deadlines](ToolHandler::keeps_deadlines), the host drops the future at
    /// [`ToolCall::deadline`].
    ///
    /// # Errors
    /// [`ToolError`]; a failure in the middle of a stream is the stream's last item.
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError>;

    /// Cancels a call if it still runs, and returns once it provably runs no more.
    ///
    /// The default fits handlers whose calls end when their future is dropped.
    ///
    /// # Errors
    /// When the handler cannot tell whether the call has ended. The caller must then assume that it runs.
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let _ = call;
        Ok(())
    }

    /// Whether the handler ends calls, and the streams they answered with, at their deadline, each with the stage that it
    /// had reached, and when it shuts down. The host sets no timer for the calls of such a handler, so that exactly one
    /// component decides how a call ends.
    fn keeps_deadlines(&self) -> bool {
        false
    }

    /// Asks for a call back that has been handed over but may not have begun. If it has not, it never will, and its
    /// future soon ends with [`ToolError::Recalled`]; otherwise it goes on as if nothing had been asked.
    ///
    /// Must not block. The default fits handlers that begin every call at once.
    fn recall(&self, call: CallId) {
        let _ = call;
    }
}
