//! The error of one attempt at a call.

use snakepit_registry::ToolError;

/// The error of a failed attempt. [`Retry`](crate::retry::Retry) decides whether another attempt follows.
#[derive(Debug, Clone)]
pub(crate) struct AttemptError {
    /// The error for the caller, if no attempt follows.
    pub(crate) error: ToolError,
    /// Whether the worker was lost while it had no other call, so this call may have caused the loss.
    pub(crate) was_only_call: bool,
}

impl From<ToolError> for AttemptError {
    fn from(error: ToolError) -> Self {
        Self { error, was_only_call: false }
    }
}
