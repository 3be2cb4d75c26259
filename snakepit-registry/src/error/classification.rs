//! Methods that classify the error of a call.

use std::time::Duration;

use snakepit_reason::Code;

use super::{CallStage, ErrorKind, ToolError, ToolFailure};
use crate::CallOutcome;

impl ToolError {
    /// The kind of the error.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::ToolNotFound,
            Self::InvalidArguments { .. } => ErrorKind::InvalidArgument,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Failed(_) => ErrorKind::ToolFailed,
            Self::Overloaded { .. } | Self::TooManyBytes { .. } | Self::TooManyConnections { .. } => {
                ErrorKind::Overloaded
            }
            Self::AnswerDropped { .. } => ErrorKind::AnswerDropped,
            Self::AnswerTooLarge { .. } => ErrorKind::AnswerTooLarge,
            Self::DeadlineExceeded { .. } => ErrorKind::DeadlineExceeded,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::WorkerLost { .. } => ErrorKind::WorkerLost,
            Self::ConnectionLost { .. } => ErrorKind::ConnectionLost,
            Self::Unavailable { .. } => ErrorKind::NoWorker,
            Self::ShuttingDown { .. } | Self::RuntimeEnded { .. } => ErrorKind::ShuttingDown,
            Self::Deadlock { .. } => ErrorKind::Deadlock,
            Self::Rejected { .. } => ErrorKind::Rejected,
            Self::AccessDenied { .. } => ErrorKind::AccessDenied,
            Self::ClientClosed { .. } => ErrorKind::ClientClosed,
            Self::NoRuntime { .. } => ErrorKind::NoRuntime,
            Self::Layer { kind, .. } => *kind,
            Self::Session(error) => ErrorKind::Session(error.kind()),
            // The pool handles recalled calls, so no caller receives this error.
            Self::Recalled { .. } | Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// Returns the error without the traceback, notes and linked exceptions of the tool's failure, the output of the worker and the
    /// error of the last launch, for a reader that must not see them. Keeps the message, type,
    /// code, data, arguments and attributes of the failure.
    #[must_use]
    pub fn without_traceback(mut self) -> Self {
        match &mut self {
            Self::Failed(failure) => failure.redact(),
            Self::WorkerLost { output_lines, .. } => output_lines.clear(),
            Self::Unavailable { last_error, .. } => last_error.clear(),
            _ => {}
        }
        self
    }

    /// The outcome of a call with this error, as metrics count it.
    #[must_use]
    pub const fn outcome(&self) -> CallOutcome {
        match self {
            Self::Overloaded { .. }
            | Self::TooManyBytes { .. }
            | Self::TooManyConnections { .. }
            | Self::Unavailable { .. }
            | Self::Layer { kind: ErrorKind::Overloaded, .. }
            | Self::ShuttingDown { may_have_run: false, .. }
            | Self::AccessDenied { .. }
            | Self::RuntimeEnded { may_have_run: false }
            | Self::NoRuntime { may_have_run: false } => CallOutcome::Rejected,
            Self::DeadlineExceeded { .. } | Self::Layer { kind: ErrorKind::DeadlineExceeded, .. } => {
                CallOutcome::TimedOut
            }
            Self::Cancelled { .. }
            | Self::ShuttingDown { may_have_run: true, .. }
            | Self::RuntimeEnded { may_have_run: true }
            | Self::NoRuntime { may_have_run: true } => CallOutcome::Cancelled,
            Self::WorkerLost { .. } => CallOutcome::Lost,
            _ => CallOutcome::Failed,
        }
    }

    /// Whether the tool may have begun to run. A call that cannot have run is always safe to retry.
    #[must_use]
    pub const fn may_have_run(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::InvalidArguments { .. }
            | Self::Overloaded { .. }
            | Self::TooManyBytes { .. }
            | Self::TooManyConnections { .. }
            | Self::Unavailable { .. }
            | Self::Recalled { .. }
            | Self::Deadlock { .. }
            | Self::Rejected { .. }
            | Self::AccessDenied { .. }
            | Self::Session(_) => false,
            Self::DeadlineExceeded { stage, .. } => matches!(stage, CallStage::Running),
            Self::WorkerLost { may_have_run, .. }
            | Self::ShuttingDown { may_have_run, .. }
            | Self::ClientClosed { may_have_run }
            | Self::Unsupported { may_have_run, .. }
            | Self::Layer { may_have_run, .. }
            | Self::RuntimeEnded { may_have_run }
            | Self::NoRuntime { may_have_run } => *may_have_run,
            Self::Failed(_)
            | Self::Cancelled { .. }
            | Self::ConnectionLost { .. }
            | Self::AnswerDropped { .. }
            | Self::AnswerTooLarge { .. }
            | Self::Internal { .. } => true,
        }
    }

    /// Combines this error of a call's last attempt with the error of an earlier attempt. If the earlier attempt may have run,
    /// [`may_have_run`](Self::may_have_run) of the result is true. If this error cannot express that,
    /// returns `earlier` with the [`retry_after`](Self::retry_after) of this error.
    #[must_use]
    pub fn with_earlier_attempt(self, earlier: Self) -> Self {
        if self.may_have_run() || !earlier.may_have_run() {
            return self;
        }
        match self {
            Self::DeadlineExceeded { tool, limit, is_unanswered, .. } => {
                Self::DeadlineExceeded { tool, stage: CallStage::Running, limit, is_unanswered }
            }
            Self::WorkerLost { worker, reason, output_lines, retry_after, source, .. } => {
                let (may_have_run, was_sent) = (true, true);
                Self::WorkerLost { worker, reason, may_have_run, was_sent, output_lines, retry_after, source }
            }
            later @ (Self::ShuttingDown { .. }
            | Self::ClientClosed { .. }
            | Self::RuntimeEnded { .. }
            | Self::NoRuntime { .. }) => later.with_may_have_run(true),
            Self::Layer { kind: kind @ ErrorKind::DeadlineExceeded, problem, source, .. } => {
                Self::Layer { kind, may_have_run: true, problem, source }
            }
            later => earlier.or_retry_after(later.retry_after()),
        }
    }

    /// Adds the time after which a retry may succeed, unless the error has one or cannot carry one.
    fn or_retry_after(mut self, later: Option<Duration>) -> Self {
        if let Self::WorkerLost { retry_after, .. } | Self::ConnectionLost { retry_after, .. } = &mut self {
            *retry_after = retry_after.or(later);
        }
        self
    }

    /// Whether the deadline of the call passed.
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        matches!(self.kind(), ErrorKind::DeadlineExceeded)
    }

    /// Whether the host rejected the call because too many calls, or too many bytes of calls, were waiting.
    #[must_use]
    pub const fn is_overloaded(&self) -> bool {
        matches!(self.kind(), ErrorKind::Overloaded)
    }

    /// Whether a retry is safe and may succeed: the tool [cannot have run](Self::may_have_run), and the cause is
    /// [transient](ErrorKind::is_transient). Wait for [`retry_after`](Self::retry_after) first.
    ///
    /// If the tool is idempotent, you can retry the call after every transient cause.
    ///
    /// A host in the same process does not start again after [`ShuttingDown`](Self::ShuttingDown) or
    /// [`RuntimeEnded`](Self::RuntimeEnded), so these errors are not retryable. From a client, `ShuttingDown` is.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        !self.may_have_run() && self.kind().is_transient() && !self.is_end_of_local_host()
    }

    /// Whether a host in this process has ended, which does not start again.
    const fn is_end_of_local_host(&self) -> bool {
        matches!(self, Self::ShuttingDown { is_remote: false, .. } | Self::RuntimeEnded { .. })
    }

    /// The time after which a retry may succeed, if the host suggests one.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. }
            | Self::TooManyBytes { retry_after, .. }
            | Self::TooManyConnections { retry_after, .. }
            | Self::Unavailable { retry_after, .. }
            | Self::WorkerLost { retry_after, .. }
            | Self::ConnectionLost { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The exception, if the tool raised one.
    #[must_use]
    pub fn failure(&self) -> Option<&ToolFailure> {
        match self {
            Self::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// The type of the exception that the tool raised, such as `ValueError` or `shop.OutOfStock`. For a host tool, the name
    /// of its Rust error type, or `HostToolError`. See [`ToolFailure::error_type`].
    #[must_use]
    pub fn error_type(&self) -> Option<&str> {
        self.failure().map(|failure| failure.error_type.as_str()).filter(|name| !name.is_empty())
    }

    /// The HTTP status for a service that answers its request with this error: [`ErrorKind::http_status`], or for a failure whose
    /// code is the name of a gRPC code, such as `not_found`, [`Code::http_status`].
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self.failure().and_then(|failure| Code::of_failure(&failure.code)) {
            Some(code) => code.http_status(),
            None => self.kind().http_status(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(may_have_run: bool) -> ToolError {
        ToolError::WorkerLost {
            worker: "w".into(),
            reason: "it exited".into(),
            may_have_run,
            was_sent: true,
            output_lines: vec![],
            retry_after: None,
            source: None,
        }
    }

    fn late(stage: CallStage) -> ToolError {
        ToolError::deadline_exceeded("add", stage)
    }

    #[test]
    fn only_transient_errors_of_calls_that_cannot_have_run_are_retryable() {
        let overloaded = ToolError::Overloaded { queued: 9, limit: 9, retry_after: None };
        for (error, retryable) in [
            (overloaded, true),
            (lost(false), true),
            (lost(true), false),
            (late(CallStage::Queued), true),
            (late(CallStage::Running), false),
            (ToolError::shutting_down(false), false),
            (ToolError::shutting_down(false).of_remote_host(), true),
            (ToolError::shutting_down(true).of_remote_host(), false),
            (ToolError::RuntimeEnded { may_have_run: false }, false),
            (ToolError::AccessDenied { problem: "no token".into() }, false),
            (ToolError::ClientClosed { may_have_run: false }, false),
            (ToolError::NotFound { tool: "add".into(), suggestion: None }, false),
            (ToolError::Failed(Box::default()), false),
        ] {
            assert_eq!(error.is_retryable(), retryable, "{error}");
        }
    }

    #[test]
    fn an_error_with_an_earlier_attempt_that_may_have_run_may_have_run() {
        let overloaded = || ToolError::Overloaded { queued: 9, limit: 9, retry_after: None };
        let unavailable = ToolError::unavailable("no worker");
        for error in [late(CallStage::Queued), lost(false), ToolError::shutting_down(false)] {
            let kind = error.kind();
            assert!(!error.clone().with_earlier_attempt(lost(false)).may_have_run(), "{error}");
            let combined = error.with_earlier_attempt(lost(true));
            assert!(combined.kind() == kind && combined.may_have_run(), "{combined}");
        }
        for error in [overloaded(), unavailable] {
            assert!(matches!(
                error.with_earlier_attempt(lost(true)),
                ToolError::WorkerLost { may_have_run: true, .. }
            ));
        }
        let retry_after = Some(Duration::from_millis(100));
        let busy = || ToolError::Overloaded { queued: 9, limit: 9, retry_after };
        let connection_lost = ToolError::ConnectionLost {
            peer: "the host".into(),
            problem: "reset".into(),
            source: None,
            retry_after: None,
        };
        for earlier in [lost(true), connection_lost] {
            let kind = earlier.kind();
            let combined = busy().with_earlier_attempt(earlier);
            assert_eq!((combined.kind(), combined.retry_after()), (kind, retry_after));
        }
        assert!(overloaded().with_earlier_attempt(overloaded()).is_overloaded());
        let layer =
            |kind| ToolError::Layer { kind, may_have_run: false, problem: "busy".into(), source: None };
        let late = layer(ErrorKind::DeadlineExceeded).with_earlier_attempt(lost(true));
        assert!(matches!(late, ToolError::Layer { may_have_run: true, .. }) && late.is_timeout(), "{late}");
        let shed = layer(ErrorKind::Overloaded).with_earlier_attempt(lost(true));
        assert!(matches!(shed, ToolError::WorkerLost { may_have_run: true, .. }), "{shed}");
        let failed = ToolError::Failed(Box::default()).with_earlier_attempt(lost(true));
        assert!(matches!(failed, ToolError::Failed(_)));
    }

    #[test]
    fn too_many_bytes_and_too_many_calls_are_the_same_kind() {
        let retry_after = Some(Duration::from_millis(100));
        let bytes = ToolError::TooManyBytes { holders: "calls".into(), used: 9, limit: 9, retry_after };
        assert!(bytes.is_overloaded() && !bytes.is_timeout());
        assert_eq!((bytes.http_status(), bytes.retry_after()), (429, retry_after));
        assert!(late(CallStage::Queued).is_timeout());
    }

    #[test]
    fn a_failure_has_the_name_of_its_exception() {
        let failure = |error_type: &str| {
            ToolError::Failed(Box::new(ToolFailure { error_type: error_type.into(), ..Default::default() }))
        };
        assert_eq!(failure("shop.OutOfStock").error_type(), Some("shop.OutOfStock"));
        assert_eq!(failure("").error_type(), None);
        assert_eq!(failure("").failure(), Some(&ToolFailure::default()));
        assert_eq!(lost(true).error_type(), None);
    }
}
