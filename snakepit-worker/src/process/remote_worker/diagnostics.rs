//! [`WorkerDiagnostics`]: converts responses, statuses and broken connections of a worker into replies and errors of a call.

use std::{error::Error as _, sync::Arc, time::Duration};

use async_trait::async_trait;
use snakepit_proto::{
    launch::progress::MULTIPLEXED,
    pb,
    status::{self, Details, caused_by, details_of, root_cause},
};
use snakepit_registry::{CallStage, ReplyBody, ToolError, ToolFailure, ToolReply};
use snakepit_session::{Payload, PayloadError, SharedError};
use snakepit_wire::{
    WireError, failure_from_wire,
    mux::{CallErrors, CallInfo, LostCall},
    payload_from_wire, violations_from_wire,
};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::super::{exit_watch::ExitWatch, progress_file::ProgressFile};
use crate::{ExitReason, WorkerExit, WorkerId};

/// How long to wait for the worker's exit after its connection broke, so that the error can name the reason.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How early a timer may fire before its deadline.
const TIMER_TOLERANCE: Duration = Duration::from_millis(2);

/// The state of a worker that explains why a call failed.
#[derive(Debug, Clone)]
pub(in super::super) struct WorkerDiagnostics {
    pub(in super::super) id: WorkerId,
    pub(in super::super) exit: ExitWatch,
    /// Shows which multiplexed calls have begun, and the output of the last one that printed.
    pub(in super::super) progress: ProgressFile,
    /// The number of output lines that the error of a call contains.
    pub(in super::super) output_lines: usize,
}

#[async_trait]
impl CallErrors for WorkerDiagnostics {
    async fn rejection_error(&self, info: &CallInfo, status: Status) -> ToolError {
        self.error(info, status).await
    }

    async fn lost_call(&self, _: &CallInfo, id: u64, status: Status) -> LostCall {
        let loss = self.loss(MULTIPLEXED | id, &status).await;
        // The worker may begin calls until it exits, so the progress file is final only after the exit.
        let may_have_begun = !loss.is_exit_known || self.progress.has_begun(id);
        // The call may have ended before another call crashed the worker. The worker then had no time to send the answer.
        let stored_reply =
            if loss.is_exit_known && may_have_begun { self.progress.stored_reply(id) } else { None };
        LostCall { stored_reply, error: self.worker_lost(loss, may_have_begun) }
    }

    async fn unsent_error(&self, info: &CallInfo, status: Status) -> ToolError {
        self.worker_lost(self.loss(info.id.as_u64(), &status).await, false).unsent()
    }

    fn failure_error(&self, info: &CallInfo, failure: ToolFailure) -> ToolError {
        self.tool_failed(&info.tool, failure, String::new())
    }

    fn bad_value_error(&self, error: &WireError) -> ToolError {
        self.bad_value(error)
    }

    fn protocol_error(&self, violation: &str) -> ToolError {
        ToolError::internal(format!("worker `{}` {violation}", self.id))
    }

    fn worker(&self, _: &str) -> Option<Arc<str>> {
        Some(self.id.shared())
    }
}

impl WorkerDiagnostics {
    pub(super) fn reply(
        &self,
        tool: &str,
        response: pb::ExecuteToolResponse,
    ) -> Result<ToolReply, ToolError> {
        let pb::ExecuteToolResponse {
            success,
            result,
            error_message,
            metadata,
            execution_time_ms,
            binary_result,
            failure,
        } = response;
        if !success {
            let failure = failure.map(failure_from_wire).unwrap_or_default();
            return Err(self.tool_failed(tool, failure, error_message));
        }
        let buffer = (!binary_result.is_empty()).then_some(binary_result);
        let value = match (result, buffer) {
            (None, None) => Payload::null(),
            (result, buffer) => payload_from_wire(result.unwrap_or_default(), buffer)
                .map_err(|error| self.bad_value(&error))?,
        };
        Ok(ToolReply {
            body: ReplyBody::Value(value),
            metadata,
            worker: Some(self.id.shared()),
            execution_time: u64::try_from(execution_time_ms).ok().map(Duration::from_millis),
        })
    }

    pub(super) fn bad_value(&self, error: &WireError) -> ToolError {
        ToolError::internal(format!("worker `{}` answered with a bad value", self.id))
            .with_source(error.clone())
    }

    pub(super) fn tool_failed(&self, tool: &str, failure: ToolFailure, message: String) -> ToolError {
        let mut failure = failure.with_tool(tool).with_worker(self.id.to_string());
        if failure.message.is_empty() && failure.error_type.is_empty() {
            failure.message = message;
        }
        ToolError::Failed(Box::new(failure))
    }

    /// Converts a status into an error: a broken connection, a rejection by the worker, or a tool failure.
    ///
    /// Tools may set any status code. A tool's `NOT_FOUND` must not be reported as a missing tool, nor its `UNAVAILABLE` as a
    /// broken worker. A status therefore counts as a tool failure unless its details or its source prove otherwise.
    pub(super) async fn error(
        &self,
        CallInfo { tool, deadline, id, .. }: &CallInfo,
        status: Status,
    ) -> ToolError {
        let tool_name = || tool.to_string();
        // The worker's transport also enforces the deadline, and answers a late call with CANCELLED.
        let is_late = matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
            && deadline.is_some_and(|deadline| Instant::now() + TIMER_TOLERANCE >= deadline);
        if is_late || caused_by::<tonic::TimeoutExpired>(&status) {
            return ToolError::deadline_exceeded(tool_name(), CallStage::Running);
        }
        // Only a status that this process created has a source.
        if status.source().is_some() {
            let lost = self.worker_lost(self.loss(id.as_u64(), &status).await, true);
            // If connecting failed, the request did not reach the worker.
            return if caused_by::<tonic::ConnectError>(&status) { lost.unsent() } else { lost };
        }
        if is_unreadable(&status) {
            return self.unreadable(&status);
        }
        let Details { reason, failure, violations, metadata, .. } = details_of(&status);
        let (code, message) = (status.code(), status.message().to_owned());
        match (reason.as_deref(), failure) {
            (None | Some(status::TOOL_FAILED), Some(failure)) => {
                self.tool_failed(tool, failure_from_wire(failure), message)
            }
            (Some(status::TOOL_NOT_FOUND), _) => ToolError::not_found(tool_name()),
            (Some(status::INVALID_ARGUMENT), _) if violations.is_empty() => {
                let problem = format!("was rejected by the worker: {message}");
                ToolError::invalid_argument(tool_name(), "arguments", problem)
            }
            (Some(status::INVALID_ARGUMENT), _) => {
                ToolError::invalid_arguments(tool_name(), violations_from_wire(violations))
            }
            (Some(status::UNSUPPORTED), _) => {
                let may_have_run = metadata.get(status::DELIVERED).is_some_and(|flag| flag == "true");
                ToolError::unsupported(tool_name(), message).with_may_have_run(may_have_run)
            }
            (Some(status::ANSWER_TOO_LARGE), _) => {
                let number =
                    |key: &str| metadata.get(key).and_then(|text| text.parse().ok()).unwrap_or_default();
                ToolError::answer_too_large(number("size"), number("limit"))
            }
            (Some(status::CANCELLED), _) => ToolError::cancelled(tool_name()),
            (Some(status::STOPPING), _) => ToolError::unavailable(message),
            (Some(status::INTERNAL), _) => ToolError::internal(message),
            // The response of gRPC itself for a method that the worker does not implement.
            (None, None) if code == Code::Unimplemented && status.details().is_empty() => {
                ToolError::unsupported(tool_name(), message)
            }
            _ => self.tool_failed(tool, ToolFailure::default(), failure_message(code, message)),
        }
    }

    /// The error for a response that cannot be decoded.
    pub(super) fn unreadable(&self, status: &Status) -> ToolError {
        let problem = format!("the answer of worker `{}` cannot be read: {}", self.id, status.message());
        ToolError::internal(problem)
    }

    /// The error for a response that cannot be decoded, from a worker that may still run the call.
    pub(super) fn lost_after_unreadable(&self, info: &CallInfo, status: &Status) -> ToolError {
        let reason = format!("its answer cannot be read: {}", status.message());
        let output_lines = self.progress.output_of(info.id.as_u64(), self.output_lines);
        ToolError::worker_lost(self.id.to_string(), reason).with_output_lines(output_lines)
    }

    fn worker_lost(&self, Loss { reason, output_lines, source, .. }: Loss, may_have_run: bool) -> ToolError {
        ToolError::worker_lost(self.id.to_string(), reason)
            .with_may_have_run(may_have_run)
            .with_output_lines(output_lines)
            .with_shared_source(source)
    }

    /// Waits up to [`EXIT_TIMEOUT`] for the worker's exit.
    async fn wait_for_exit(&self) -> Option<WorkerExit> {
        tokio::time::timeout(EXIT_TIMEOUT, self.exit.exited()).await.ok()?;
        // `None` if the supervisor was dropped without a report. The worker may then still run.
        self.exit.reported()
    }

    /// Waits up to [`EXIT_TIMEOUT`] for the worker's exit, and returns its reason.
    pub(super) async fn exit_reason(&self) -> Option<String> {
        self.wait_for_exit().await.map(|exit| exit.reason.to_string())
    }

    /// Finds the reason why a call lost its connection: the worker's exit if it is reported in time, or else the status.
    async fn loss(&self, call: u64, status: &Status) -> Loss {
        let exit = self.wait_for_exit().await;
        let is_exit_known = exit.is_some();
        // Read after the exit, so that no lines are missing. Contains only lines of this call.
        let mut output_lines = self.progress.output_of(call, self.output_lines);
        let reason = match exit {
            Some(exit) => {
                if let ExitReason::Signal { .. } = exit.reason {
                    output_lines.extend(self.progress.stack());
                }
                exit.reason.to_string()
            }
            None => match status.source() {
                Some(source) => format!("its connection broke: {}", root_cause(source)),
                None => format!("its connection broke: {}", status.message()),
            },
        };
        // The exit explains more than the error of the connection.
        let source = (!is_exit_known && status.source().is_some()).then(|| SharedError::new(status.clone()));
        Loss { reason, output_lines, source, is_exit_known }
    }
}

/// The reason why a call lost its worker.
struct Loss {
    reason: String,
    output_lines: Vec<String>,
    /// The error of the connection, if the exit does not explain it.
    source: Option<SharedError>,
    /// Whether the supervisor reported the exit of the process.
    is_exit_known: bool,
}

/// The beginning of the [`unreadable_status`] message.
const VALUE_PREFIX: &str = "a chunk is malformed: ";

/// Whether this process created the status because it could not decode a message. The transport sets no source for such
/// statuses, so only their messages identify them.
pub(super) fn is_unreadable(status: &Status) -> bool {
    const MESSAGE_PREFIXES: [&str; 5] = [
        VALUE_PREFIX,
        "failed to decode Protobuf message",
        "Error, decoded message length too large",
        "protocol error: received message with",
        "Unexpected EOF decoding stream",
    ];
    let may_be_local =
        matches!(status.code(), Code::Internal | Code::OutOfRange) && status.details().is_empty();
    may_be_local && MESSAGE_PREFIXES.iter().any(|prefix| status.message().starts_with(prefix))
}

/// The status of a stream with a value that cannot be decoded.
pub(super) fn unreadable_status(error: &PayloadError) -> Status {
    Status::internal(format!("{VALUE_PREFIX}{error}"))
}

/// The message of a failure that arrived as a status. Omits the codes INTERNAL and UNKNOWN, because workers of the original
/// Snakepit and gRPC servers use them for any exception of a tool.
fn failure_message(code: Code, message: String) -> String {
    let name = match code {
        Code::Internal | Code::Unknown if !message.is_empty() => return message,
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    };
    if message.is_empty() { name.to_owned() } else { format!("{name}: {message}") }
}

#[cfg(test)]
mod tests {
    use snakepit_registry::CallId;

    use super::*;

    /// Converts a status for a call without a deadline.
    async fn convert(status: Status) -> ToolError {
        convert_with_deadline(status, None).await
    }

    async fn convert_with_deadline(status: Status, deadline: Option<Instant>) -> ToolError {
        let (_exit, exit) = ExitWatch::channel();
        let diagnostics = WorkerDiagnostics {
            id: WorkerId::new("w"),
            exit,
            progress: ProgressFile::default(),
            output_lines: 20,
        };
        diagnostics
            .error(&CallInfo { tool: "fetch".into(), deadline, id: CallId::next(), reports: None }, status)
            .await
    }

    #[tokio::test]
    async fn a_status_without_details_is_a_failure_of_the_tool() {
        let cases = [
            (Status::not_found("Resource not found"), "NOT_FOUND: Resource not found"),
            (Status::unavailable("the database is down"), "UNAVAILABLE: the database is down"),
            (Status::deadline_exceeded("its own query"), "DEADLINE_EXCEEDED: its own query"),
            (Status::invalid_argument("x"), "INVALID_ARGUMENT: x"),
            (Status::cancelled(""), "CANCELLED"),
            (Status::internal("boom"), "boom"),
            (Status::unknown("Exception calling application: no"), "Exception calling application: no"),
        ];
        for (status, text) in cases {
            let description = format!("{status:?}");
            let ToolError::Failed(failure) = convert(status).await else { panic!("{description}") };
            assert_eq!((failure.message.as_str(), failure.tool.as_str()), (text, "fetch"));
        }
        let unknown = convert(Status::unimplemented("Method not found!")).await;
        assert!(matches!(unknown, ToolError::Unsupported { .. }), "{unknown:?}");
    }

    #[tokio::test]
    async fn the_reason_identifies_rejections_of_a_worker() {
        use status::{error_status, field_error_status};
        let missing =
            convert(error_status(Code::NotFound, status::TOOL_NOT_FOUND, "tool `fetch` not found")).await;
        assert!(matches!(missing, ToolError::NotFound { .. }), "{missing:?}");
        let bad =
            convert(field_error_status("argument `x` of tool `fetch` is missing", "x", "is missing")).await;
        assert_eq!(bad.to_string(), "argument `x` of tool `fetch` is missing");
        let stream = error_status(Code::Unimplemented, status::UNSUPPORTED, "streams");
        assert_eq!(convert(stream).await.to_string(), "tool `fetch` streams");
        let stopping = convert(error_status(Code::Unavailable, status::STOPPING, "it is stopping")).await;
        assert!(matches!(&stopping, ToolError::Unavailable { .. }) && !stopping.may_have_run());
        let large = convert(status::answer_too_large("too large", 9, 8)).await;
        assert!(matches!(large, ToolError::AnswerTooLarge { size: 9, limit: 8, .. }), "{large:?}");
        let cancelled = convert(error_status(Code::Cancelled, status::CANCELLED, "x")).await;
        assert!(matches!(cancelled, ToolError::Cancelled { .. }), "{cancelled:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_progress_file_is_read_after_the_exit() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let (sender, exit) = ExitWatch::channel();
        let progress = ProgressFile::create(&path).unwrap();
        let diagnostics = WorkerDiagnostics { id: WorkerId::new("w"), exit, progress, output_lines: 20 };
        let info = CallInfo { tool: "fetch".into(), deadline: None, id: CallId::next(), reports: None };
        let may_have_run = async |id| {
            let lost = diagnostics.lost_call(&info, id, Status::unavailable("broken")).await.error;
            assert!(matches!(lost, ToolError::WorkerLost { .. }), "{lost:?}");
            lost.may_have_run()
        };
        assert!(may_have_run(1).await, "a worker that may be alive may begin any call");
        let reset = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        let lost = diagnostics.lost_call(&info, 1, reset).await.error;
        assert_eq!(lost.to_string(), "worker `w` was lost: its connection broke: connection reset");
        assert!(lost.source().is_some(), "{lost:?}");
        // The worker begins a call after its connection broke and before it exits.
        let exit = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&1_u64.to_ne_bytes(), 0).unwrap();
            sender
                .send_replace(Some(WorkerExit { reason: crate::ExitReason::Code(1), output_lines: vec![] }));
        };
        assert!(tokio::join!(may_have_run(1), exit).0);
        assert!(!may_have_run(2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_status_after_the_deadline_is_deadline_exceeded() {
        let now = Some(Instant::now());
        for status in [Status::cancelled("Timeout expired"), Status::deadline_exceeded("x")] {
            let late = convert_with_deadline(status, now).await;
            assert!(matches!(late, ToolError::DeadlineExceeded { .. }), "{late:?}");
        }
    }
}
