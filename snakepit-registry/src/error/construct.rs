//! The constructors and setters of [`ToolError`], for handlers, layers and launchers.

use std::{error::Error, time::Duration};

use snakepit_session::SharedError;

use super::{CallStage, ErrorKind, TimeLimit, ToolError, ToolFailure};
use crate::{HostError, Violation};

impl From<ToolFailure> for ToolError {
    fn from(failure: ToolFailure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<HostError> for ToolError {
    fn from(error: HostError) -> Self {
        Self::Failed(error.into_failure())
    }
}

impl ToolError {
    /// Creates the error for a call to a tool that does not exist. See [`with_suggestion`](Self::with_suggestion).
    pub fn not_found(tool: impl Into<String>) -> Self {
        Self::NotFound { tool: tool.into(), suggestion: None }
    }

    /// Creates the error of a call with an invalid argument. `problem` is the end of a sentence.
    ///
    /// ```
    /// use snakepit_registry::ToolError;
    ///
    /// let error = ToolError::invalid_argument("add", "a", "is negative");
    /// assert_eq!(error.to_string(), "argument `a` of tool `add` is negative");
    /// ```
    pub fn invalid_argument(
        tool: impl Into<String>,
        argument: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::invalid_arguments(tool, vec![Violation::new(argument, problem)])
    }

    /// Creates the error of a call with these invalid arguments, at least one.
    pub fn invalid_arguments(tool: impl Into<String>, violations: Vec<Violation>) -> Self {
        Self::InvalidArguments { tool: tool.into(), violations }
    }

    /// Creates the error for a kind of call that the tool does not support and that did not run. `problem` is the end of a
    /// sentence, such as "does not stream".
    pub fn unsupported(tool: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unsupported { tool: tool.into(), problem: problem.into(), may_have_run: false }
    }

    /// Creates the error of a full queue, with the number of queued calls and the limit.
    #[must_use]
    pub const fn overloaded(queued: usize, limit: usize) -> Self {
        Self::Overloaded { queued, limit, retry_after: None }
    }

    /// Creates the error of a call that would exceed a limit of bytes. `holders` are the calls or requests that occupy the `used`
    /// bytes.
    pub fn too_many_bytes(holders: impl Into<String>, used: usize, limit: usize) -> Self {
        Self::TooManyBytes { holders: holders.into(), used, limit, retry_after: None }
    }

    /// Creates the error of a connection that exceeds the limit of the host.
    #[must_use]
    pub const fn too_many_connections(limit: usize) -> Self {
        Self::TooManyConnections { limit, retry_after: None }
    }

    /// Creates the error for a dropped answer, with the size of the unread answers in bytes and the limit.
    #[must_use]
    pub const fn answer_dropped(used: usize, limit: usize) -> Self {
        Self::AnswerDropped { used, limit }
    }

    /// Creates the error for an answer of `size` bytes, above the limit.
    #[must_use]
    pub const fn answer_too_large(size: usize, limit: usize) -> Self {
        Self::AnswerTooLarge { size, limit }
    }

    /// Creates the error of a missed deadline. See [`with_time_limit`](Self::with_time_limit).
    pub fn deadline_exceeded(tool: impl Into<String>, stage: CallStage) -> Self {
        Self::DeadlineExceeded { tool: tool.into(), stage, limit: None, is_unanswered: false }
    }

    /// Creates the error of a cancelled call.
    pub fn cancelled(tool: impl Into<String>) -> Self {
        Self::Cancelled { tool: tool.into() }
    }

    /// Creates the error of a call that lost its worker. The call counts as one that may have run, unless
    /// [`with_may_have_run`](Self::with_may_have_run) sets otherwise. The pool retries idempotent calls, and calls that cannot
    /// have run.
    pub fn worker_lost(worker: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::WorkerLost {
            worker: worker.into(),
            reason: reason.into(),
            may_have_run: true,
            was_sent: true,
            output_lines: Vec::new(),
            retry_after: None,
            source: None,
        }
    }

    /// Creates the error of a call that lost its connection to `peer`, such as "the host".
    pub fn connection_lost(peer: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::ConnectionLost { peer: peer.into(), problem: problem.into(), source: None, retry_after: None }
    }

    /// Creates the error of a call that its worker returned before it began. See [`Recalled`](Self::Recalled).
    pub fn recalled(tool: impl Into<String>) -> Self {
        Self::Recalled { tool: tool.into() }
    }

    /// Creates the error of a call that no worker can run now, without a `retry_after`.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), last_error: String::new(), retry_after: None }
    }

    /// Creates the error of a host in this process that is shutting down. See [`of_remote_host`](Self::of_remote_host).
    #[must_use]
    pub const fn shutting_down(may_have_run: bool) -> Self {
        Self::ShuttingDown { may_have_run, is_remote: false }
    }

    /// Creates the error of a call that would wait for itself.
    pub fn deadlock(tool: impl Into<String>) -> Self {
        Self::Deadlock { tool: tool.into() }
    }

    /// Creates the error of a call that a program other than the host rejected.
    pub fn rejected(problem: impl Into<String>) -> Self {
        Self::Rejected { problem: problem.into() }
    }

    /// Creates the error of a call without permission.
    pub fn access_denied(problem: impl Into<String>) -> Self {
        Self::AccessDenied { problem: problem.into() }
    }

    /// Creates the error of a closed client.
    #[must_use]
    pub const fn client_closed(may_have_run: bool) -> Self {
        Self::ClientClosed { may_have_run }
    }

    /// Creates the error of a host whose tokio runtime has shut down.
    #[must_use]
    pub const fn runtime_ended(may_have_run: bool) -> Self {
        Self::RuntimeEnded { may_have_run }
    }

    /// Creates the error of a call with a deadline outside of a tokio runtime.
    #[must_use]
    pub const fn no_runtime(may_have_run: bool) -> Self {
        Self::NoRuntime { may_have_run }
    }

    /// Creates the error of a call that a layer ended. The call counts as one that may have run, unless
    /// [`with_may_have_run`](Self::with_may_have_run) sets otherwise.
    pub fn layer(kind: ErrorKind, problem: impl Into<String>) -> Self {
        Self::Layer { kind, may_have_run: true, problem: problem.into(), source: None }
    }

    /// Creates the error of a bug in the host or in the worker.
    ///
    /// ```
    /// use std::error::Error;
    ///
    /// use snakepit_registry::{Fault, ToolError};
    ///
    /// let error = ToolError::internal("the record is malformed").with_source("unexpected end of input");
    /// assert_eq!(error.source().unwrap().to_string(), "unexpected end of input");
    /// // Clients receive the causes in the message.
    /// assert_eq!(Fault::from(error).message, "internal error: the record is malformed: unexpected end of input");
    /// ```
    pub fn internal(problem: impl Into<String>) -> Self {
        Self::Internal { problem: problem.into(), source: None }
    }

    /// Sets the tool of a [`Failed`](Self::Failed) error that names none. Has no effect on other errors. The host does this for the
    /// failures of handlers, workers and layers.
    #[must_use]
    pub fn with_tool(mut self, tool: &str) -> Self {
        if let Self::Failed(failure) = &mut self
            && failure.tool.is_empty()
        {
            tool.clone_into(&mut failure.tool);
        }
        self
    }

    /// Sets the similar name of a [`NotFound`](Self::NotFound) error. Has no effect on other errors.
    #[must_use]
    pub fn with_suggestion(mut self, name: impl Into<Option<String>>) -> Self {
        if let Self::NotFound { suggestion, .. } = &mut self {
            *suggestion = name.into();
        }
        self
    }

    /// Sets whether the call may have begun to run, for errors with a field `may_have_run`. Has no effect on other errors.
    #[must_use]
    pub const fn with_may_have_run(mut self, value: bool) -> Self {
        if let Self::Unsupported { may_have_run, .. }
        | Self::WorkerLost { may_have_run, .. }
        | Self::ShuttingDown { may_have_run, .. }
        | Self::ClientClosed { may_have_run, .. }
        | Self::RuntimeEnded { may_have_run, .. }
        | Self::NoRuntime { may_have_run, .. }
        | Self::Layer { may_have_run, .. } = &mut self
        {
            *may_have_run = value;
        }
        self
    }

    /// States that the call of a [`WorkerLost`](Self::WorkerLost) error was not sent, so it has not run. The pool retries such calls
    /// until their deadline. Has no effect on other errors.
    #[must_use]
    pub const fn unsent(mut self) -> Self {
        if let Self::WorkerLost { may_have_run, was_sent, .. } = &mut self {
            (*may_have_run, *was_sent) = (false, false);
        }
        self
    }

    /// Sets the time after which a retry may succeed, for errors with a field `retry_after`. Has no effect on other errors.
    #[must_use]
    pub fn with_retry_after(mut self, after: impl Into<Option<Duration>>) -> Self {
        if let Self::Overloaded { retry_after, .. }
        | Self::TooManyBytes { retry_after, .. }
        | Self::TooManyConnections { retry_after, .. }
        | Self::WorkerLost { retry_after, .. }
        | Self::ConnectionLost { retry_after, .. }
        | Self::Unavailable { retry_after, .. } = &mut self
        {
            *retry_after = after.into();
        }
        self
    }

    /// Sets the last lines that the worker of a [`WorkerLost`](Self::WorkerLost) error wrote, oldest first. Has no effect on
    /// other errors.
    #[must_use]
    pub fn with_output_lines(mut self, lines: Vec<String>) -> Self {
        if let Self::WorkerLost { output_lines, .. } = &mut self {
            *output_lines = lines;
        }
        self
    }

    /// Sets the error of the last launch of an [`Unavailable`](Self::Unavailable) error. Has no effect on other errors.
    #[must_use]
    pub fn with_last_error(mut self, error: impl Into<String>) -> Self {
        if let Self::Unavailable { last_error, .. } = &mut self {
            *last_error = error.into();
        }
        self
    }

    /// Sets the time limit of a [`DeadlineExceeded`](Self::DeadlineExceeded) error that has none. Has no effect on other errors.
    #[must_use]
    pub fn with_time_limit(mut self, time_limit: Option<TimeLimit>) -> Self {
        if let Self::DeadlineExceeded { limit, .. } = &mut self {
            *limit = limit.or(time_limit);
        }
        self
    }

    /// Marks a [`DeadlineExceeded`](Self::DeadlineExceeded) error as one of a call that the host did not answer. Has no effect on other
    /// errors.
    #[must_use]
    pub const fn of_unanswered_call(mut self) -> Self {
        if let Self::DeadlineExceeded { is_unanswered, .. } = &mut self {
            *is_unanswered = true;
        }
        self
    }

    /// Marks a [`ShuttingDown`](Self::ShuttingDown) error as one of a host in another process, so that it is retryable if the
    /// call cannot have run. Has no effect on other errors.
    #[must_use]
    pub const fn of_remote_host(mut self) -> Self {
        if let Self::ShuttingDown { is_remote, .. } = &mut self {
            *is_remote = true;
        }
        self
    }

    /// Sets the cause of an error with a field `source`: [`Internal`](Self::Internal), [`WorkerLost`](Self::WorkerLost),
    /// [`ConnectionLost`](Self::ConnectionLost) and [`Layer`](Self::Layer). Has no effect on other errors.
    #[must_use]
    pub fn with_source(self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.with_shared_source(Some(SharedError::new(cause)))
    }

    /// Sets or removes the cause of an error with a field `source`. See [`with_source`](Self::with_source).
    #[must_use]
    pub fn with_shared_source(mut self, cause: Option<SharedError>) -> Self {
        if let Self::Internal { source, .. }
        | Self::WorkerLost { source, .. }
        | Self::ConnectionLost { source, .. }
        | Self::Layer { source, .. } = &mut self
        {
            *source = cause;
        }
        self
    }
}
