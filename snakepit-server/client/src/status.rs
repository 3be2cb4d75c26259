//! Converts the gRPC statuses of a host back to the errors from which the host created them.

use std::{error::Error as _, io, time::Duration};

use snakepit_proto::{
    proxy,
    status::{
        CONNECTION_LOST, DELIVERED, Details, LAYER, PROXY, SHUTTING_DOWN, caused_by, details_of, root_cause,
    },
};
use snakepit_registry::{CallStage, ErrorKind, TimeLimit, ToolError};
use snakepit_session::{SessionError, SessionId};
use snakepit_wire::{failure_from_wire, violations_from_wire};
use tonic::Code;
/// The gRPC status, from the version of `tonic` that this crate uses.
pub use tonic::Status;
use tonic_types::StatusExt;

/// The name of the peer in errors.
pub(crate) const HOST: &str = "the host";

/// Converts the status of a call to a [`ToolError`]. A status without the reasons of this project becomes
/// [`ToolError::Internal`] with the code and message of the status.
#[must_use]
pub fn to_tool_error(tool: &str, status: &Status) -> ToolError {
    let tool_name = || tool.to_owned();
    if caused_by::<tonic::TimeoutExpired>(status) {
        return ToolError::deadline_exceeded(tool_name(), CallStage::Running);
    }
    if let Some(source) = status.source() {
        let problem = root_cause(source).to_string();
        if is_unreachable(status) {
            // Without a connection the request cannot have reached the host.
            let reason = format!("{HOST} cannot be reached: {problem}");
            return ToolError::unavailable(reason);
        }
        return ToolError::connection_lost(HOST, problem).with_source(status.clone());
    }
    let status = &proxy::clarify(status.clone());
    let details = status.get_error_details();
    let info = details.error_info();
    let entry = |key: &str| info.and_then(|info| info.metadata.get(key)).cloned();
    let number = |key: &str| entry(key).and_then(|text| text.parse().ok()).unwrap_or_default();
    let retry_after: Option<Duration> = details.retry_info().and_then(|info| info.retry_delay);
    let message_after =
        |prefix: &str| status.message().strip_prefix(prefix).unwrap_or(status.message()).to_owned();
    let reason = info.map(|info| info.reason.as_str()).unwrap_or_default();
    if let Some(error) = session_error(reason, entry, status.message()) {
        return ToolError::Session(error);
    }
    let may_have_run = entry(DELIVERED).is_some_and(|flag| flag == "true");
    let Details { failure, violations, .. } = details_of(status);
    match (reason, failure, violations) {
        ("DEADLINE_EXCEEDED" | "OVERLOADED" | "REJECTED", ..) if entry(LAYER).is_some() => ToolError::layer(
            match reason {
                "DEADLINE_EXCEEDED" => ErrorKind::DeadlineExceeded,
                "OVERLOADED" => ErrorKind::Overloaded,
                _ => ErrorKind::Rejected,
            },
            message_after("a layer of the host ended the call: "),
        )
        .with_may_have_run(entry(DELIVERED).is_none_or(|flag| flag != "false")),
        ("TOOL_NOT_FOUND", ..) => ToolError::not_found(tool_name()).with_suggestion(entry("suggestion")),
        ("INVALID_ARGUMENT", _, violations) if !violations.is_empty() => {
            ToolError::invalid_arguments(tool_name(), violations_from_wire(violations))
        }
        ("REQUEST_TOO_LARGE", ..) => arguments_too_large(tool, status),
        ("UNSUPPORTED", ..) => {
            let problem = message_after(&format!("tool `{tool}` "));
            ToolError::unsupported(tool_name(), problem).with_may_have_run(may_have_run)
        }
        ("TOOL_FAILED", Some(failure), _) => {
            let failure = failure_from_wire(failure);
            ToolError::Failed(Box::new(failure.with_tool(tool_name())))
        }
        ("ANSWER_DROPPED", ..) => ToolError::answer_dropped(number("used_bytes"), number("limit")),
        ("ANSWER_TOO_LARGE", ..) if entry("size").is_some() => {
            ToolError::answer_too_large(number("size"), number("limit"))
        }
        ("OVERLOADED", ..) if entry("used_bytes").is_some() => ToolError::too_many_bytes(
            entry("whose").unwrap_or_default(),
            number("used_bytes"),
            number("limit"),
        )
        .with_retry_after(retry_after),
        ("OVERLOADED", ..) if entry("connections").is_some() => {
            ToolError::too_many_connections(number("connections")).with_retry_after(retry_after)
        }
        ("OVERLOADED", ..) => {
            ToolError::overloaded(number("queued"), number("limit")).with_retry_after(retry_after)
        }
        ("DEADLINE_EXCEEDED", ..) => {
            let is_queued = entry("stage").is_some_and(|stage| stage == CallStage::Queued.to_string());
            let stage = if is_queued { CallStage::Queued } else { CallStage::Running };
            let default_timeout = entry("default_timeout_ms").and_then(|text| text.parse().ok());
            let limit = default_timeout.map(|time| TimeLimit::Host(Duration::from_millis(time)));
            ToolError::deadline_exceeded(tool_name(), stage).with_time_limit(limit)
        }
        ("CANCELLED", ..) => ToolError::cancelled(tool_name()),
        ("WORKER_LOST", Some(lost), _) => ToolError::worker_lost(lost.worker_id, lost.message)
            // Without this entry, assume that the call may have run.
            .with_may_have_run(entry(DELIVERED).is_none_or(|flag| flag != "false"))
            .with_output_lines(lost.output_lines)
            .with_retry_after(retry_after),
        (PROXY, ..) if status.code() == Code::InvalidArgument => arguments_too_large(tool, status),
        ("ACCESS_DENIED", ..) => ToolError::access_denied(message_after("access denied: ")),
        _ if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) => {
            // A host of this project states the reason completely.
            let advice = match reason {
                "" | PROXY => {
                    "; set a token with `ClientBuilder::bearer_token`, or check the one that is set"
                }
                _ => "",
            };
            ToolError::access_denied(format!("{}{advice}", status.message()))
        }
        (PROXY, ..) if status.code() != Code::Unavailable => ToolError::rejected(status.message().to_owned()),
        ("REJECTED", ..) => ToolError::rejected(message_after("the call was rejected: ")),
        (PROXY | CONNECTION_LOST, ..) if entry(DELIVERED).is_some_and(|flag| flag == "false") => {
            ToolError::unavailable(status.message())
        }
        (PROXY, ..) => {
            let problem = status.message().to_owned();
            ToolError::connection_lost(HOST, problem)
        }
        (CONNECTION_LOST, ..) => ToolError::connection_lost(
            entry("peer").unwrap_or_default(),
            entry("problem").unwrap_or_default(),
        )
        .with_retry_after(retry_after),
        // The message contains the last error, if the host sent it.
        ("NO_WORKER", ..) => {
            ToolError::unavailable(message_after("no worker is available: ")).with_retry_after(retry_after)
        }
        ("DEADLOCK", ..) => ToolError::deadlock(tool_name()),
        ("CLIENT_CLOSED", ..) => ToolError::client_closed(may_have_run),
        (SHUTTING_DOWN, ..) => ToolError::shutting_down(may_have_run).of_remote_host(),
        ("NO_RUNTIME", ..) => ToolError::no_runtime(may_have_run),
        ("INTERNAL", ..) => ToolError::internal(message_after("internal error: ")),
        _ => ToolError::internal(format!("the host answered {:?}: {}", status.code(), status.message())),
    }
}

fn arguments_too_large(tool: &str, status: &Status) -> ToolError {
    ToolError::invalid_argument(tool, "arguments", format!("are too large: {}", status.message()))
}

/// Returns whether connecting failed, so that the request was not sent.
pub(crate) fn is_unreachable(status: &Status) -> bool {
    // The timeout of a connection is an IO error that contains the error of the timer.
    let timed_out = |error: &(dyn std::error::Error + 'static)| {
        let io = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        io.is_some_and(|inner| inner.is::<tokio::time::error::Elapsed>())
    };
    caused_by::<tonic::ConnectError>(status)
        || std::iter::successors(status.source(), |&error| error.source()).any(timed_out)
}

/// Reconstructs a session error from the reason, the metadata entries and the message of a status. Returns `None` if the status
/// has another reason or lacks an entry.
pub(crate) fn session_error(
    reason: &str,
    entry: impl Fn(&str) -> Option<String>,
    message: &str,
) -> Option<SessionError> {
    let session = || SessionId::try_new(entry("session")?).ok();
    let number = |key: &str| entry(key)?.parse().ok();
    let count = |key: &str| entry(key)?.parse().ok();
    Some(match reason {
        "SESSION_NOT_FOUND" => SessionError::NotFound { id: session()? },
        "PROGRAM_NOT_FOUND" => match session() {
            Some(session) => SessionError::ProgramNotFound { session, name: entry("program")? },
            None => SessionError::GlobalProgramNotFound { name: entry("program")? },
        },
        "VARIABLE_NOT_FOUND" => {
            SessionError::VariableNotFound { session: session()?, identifier: entry("variable")? }
        }
        "VARIABLE_EXISTS" => SessionError::VariableExists { session: session()?, name: entry("variable")? },
        "VERSION_NOT_KEPT" => SessionError::VersionNotKept {
            variable: entry("variable")?,
            version: number("version")?,
            oldest: number("oldest")?,
            newest: number("newest")?,
        },
        "VERSION_CONFLICT" => SessionError::VersionConflict {
            variable: entry("variable")?,
            expected: number("expected")?,
            actual: number("actual")?,
        },
        "INVALID_VALUE" => {
            let variable = entry("variable")?;
            match count("limit") {
                Some(limit) => SessionError::ValueTooLarge { variable, size: count("size")?, limit },
                None => {
                    let problem = message.strip_prefix(&format!("variable `{variable}`: "));
                    SessionError::InvalidValue { problem: problem.unwrap_or(message).to_owned(), variable }
                }
            }
        }
        "INVALID_ARGUMENT" if entry("max_entries").is_some() => SessionError::MetadataTooLarge {
            entries: count("entries")?,
            bytes: count("bytes")?,
            max_entries: count("max_entries")?,
            max_bytes: count("max_bytes")?,
        },
        "INVALID_ARGUMENT" if entry("given").is_some() => {
            SessionError::TooManyNames { given: count("given")?, limit: count("limit")? }
        }
        "INVALID_ARGUMENT" if entry("program").is_some() => SessionError::ProgramTooLarge {
            name: entry("program")?,
            size: count("size")?,
            limit: count("limit")?,
        },
        "INVALID_ARGUMENT" if entry("variable").is_some() => {
            SessionError::WrittenTwice { variable: entry("variable")? }
        }
        "TOO_MANY_SESSIONS" => SessionError::TooManySessions { limit: count("limit")? },
        "TOO_MANY_VARIABLES" => {
            SessionError::TooManyVariables { session: session()?, limit: count("limit")? }
        }
        "TOO_MANY_WATCHES" => SessionError::TooManyWatches { limit: count("limit")? },
        "TOO_MANY_PROGRAMS" => SessionError::TooManyGlobalPrograms { limit: count("limit")? },
        "SESSION_FULL" => match count("size") {
            Some(size) => SessionError::SessionTooLarge { session: session()?, size, limit: count("limit")? },
            None => SessionError::TooManyPrograms { session: session()?, limit: count("limit")? },
        },
        "BACKEND_FULL" => SessionError::BackendFull { size: count("size")?, limit: count("limit")? },
        "BACKEND_FAILED" => {
            let problem = entry("problem").unwrap_or_else(|| message.to_owned());
            match entry(DELIVERED).as_deref() {
                Some("false") => SessionError::not_written(problem),
                _ => SessionError::backend(problem),
            }
        }
        _ => return None,
    })
}
