//! Converts the errors of calls and sessions to faults.

use snakepit_reason::{Code, LAYER};
use snakepit_session::{SessionError, error_chain};

use super::Fault;
use crate::{CallStage, ErrorKind, TimeLimit, ToolError, ToolFailure};

impl From<ToolError> for Fault {
    fn from(error: ToolError) -> Self {
        let (message, internals) = match &error {
            // These messages end with the output of a worker, which only some readers may see.
            ToolError::WorkerLost { .. } | ToolError::Unavailable { .. } => {
                let (full, message) = (error.to_string(), error.clone().without_traceback().to_string());
                let internals = full.strip_prefix(&*message).unwrap_or_default().to_owned();
                (message, internals)
            }
            _ => (error_chain(&error).to_string(), String::new()),
        };
        let mut fault = Self { internals, ..Self::new(error.kind().reason(), message) };
        fault.may_have_run = error.may_have_run();
        match error {
            ToolError::NotFound { suggestion, .. } => {
                fault.with_entries(suggestion.map(|name| ("suggestion", name)))
            }
            ToolError::InvalidArguments { violations, .. } => Self { violations, ..fault },
            ToolError::Unsupported { may_have_run: true, .. } => fault.with_may_have_run(true),
            ToolError::Failed(failure) => {
                let code = Code::of_failure(&failure.code);
                Self { code: code.unwrap_or(fault.code), ..fault.with_failure(failure) }
            }
            ToolError::Overloaded { queued, limit, retry_after } => {
                fault.with_entry("queued", &queued).with_entry("limit", &limit).with_retry(retry_after)
            }
            ToolError::TooManyBytes { holders, used, limit, retry_after } => fault
                .with_entry("whose", &holders)
                .with_entry("used_bytes", &used)
                .with_entry("limit", &limit)
                .with_retry(retry_after),
            ToolError::TooManyConnections { limit, retry_after } => {
                fault.with_entry("connections", &limit).with_may_have_run(false).with_retry(retry_after)
            }
            ToolError::AnswerTooLarge { size, limit } => {
                fault.with_entry("size", &size).with_entry("limit", &limit).with_may_have_run(true)
            }
            // No retry delay: the tool has run.
            ToolError::AnswerDropped { used, limit } => {
                fault.with_entry("used_bytes", &used).with_entry("limit", &limit)
            }
            ToolError::DeadlineExceeded { stage, limit, .. } => {
                let fault = fault.with_entry("stage", &stage);
                match limit {
                    Some(TimeLimit::Host(time)) => fault.with_entry("default_timeout_ms", &time.as_millis()),
                    // Callers know their own limits.
                    Some(TimeLimit::Caller(_)) | None => fault,
                }
            }
            ToolError::WorkerLost { worker, reason, may_have_run, output_lines, retry_after, .. } => {
                let lost = ToolFailure { message: reason, worker, output_lines, ..ToolFailure::default() };
                fault.with_may_have_run(may_have_run).with_failure(Box::new(lost)).suggest_retry(retry_after)
            }
            ToolError::ConnectionLost { peer, problem, retry_after, .. } => {
                fault.with_entry("peer", &peer).with_entry("problem", &problem).suggest_retry(retry_after)
            }
            ToolError::Unavailable { retry_after, .. } => fault.with_retry(retry_after),
            ToolError::ShuttingDown { may_have_run, .. }
            | ToolError::ClientClosed { may_have_run }
            | ToolError::RuntimeEnded { may_have_run }
            | ToolError::NoRuntime { may_have_run } => fault.with_may_have_run(may_have_run),
            ToolError::Layer { kind, may_have_run, .. } => layer_fault(fault, kind, may_have_run),
            ToolError::Session(error) => Self::from(&error),
            _ => fault,
        }
    }
}

/// Completes the fault of a layer's error. The entry `layer` distinguishes it from the same error of the host.
fn layer_fault(fault: Fault, kind: ErrorKind, may_have_run: bool) -> Fault {
    let stage = if may_have_run { CallStage::Running } else { CallStage::Queued };
    let fault = fault.with_entry(LAYER, &true).with_may_have_run(may_have_run).with_entry("stage", &stage);
    match kind {
        ErrorKind::DeadlineExceeded | ErrorKind::Overloaded => fault,
        // The call may have run, so the code is not `FAILED_PRECONDITION`. gRPC libraries retry neither code.
        _ if may_have_run => fault.with_code(Code::Unknown),
        _ => fault,
    }
}

impl From<&SessionError> for Fault {
    /// Converts the error of a read, or of a write that the backend certainly rejected.
    fn from(error: &SessionError) -> Self {
        session_fault(error, false)
    }
}

impl Fault {
    /// Converts the error of a write. If the backend failed, the write may have happened, so the code is one that gRPC libraries
    /// do not retry.
    #[must_use]
    pub fn of_write(error: &SessionError) -> Self {
        session_fault(error, matches!(error, SessionError::Backend { .. }))
    }

    /// Adds the time after which a retry may succeed, if it is known.
    fn suggest_retry(self, after: Option<std::time::Duration>) -> Self {
        if after.is_some() { self.with_retry(after) } else { self }
    }
}

fn session_fault(error: &SessionError, may_have_happened: bool) -> Fault {
    let mut fault =
        Fault::new(error.kind().reason(), error_chain(error).to_string()).with_entries(entries_of(error));
    if may_have_happened {
        fault = fault.with_code(Code::Internal).with_may_have_run(true);
    } else if matches!(error, SessionError::NotWritten { .. }) {
        fault = fault.with_may_have_run(false);
    }
    match field_of(error) {
        Some(field) => fault.with_violation(field, error.to_string()),
        None => fault,
    }
}

/// The field of a request that an error refers to, as the protocol names it.
const fn field_of(error: &SessionError) -> Option<&'static str> {
    Some(match error {
        SessionError::InvalidId { .. } => "session_id",
        SessionError::InvalidProgramName { .. } | SessionError::InvalidVariableName { .. } => "name",
        SessionError::ProgramTooLarge { .. } => "program",
        SessionError::MetadataTooLarge { .. } => "metadata",
        SessionError::InvalidType { .. } => "type",
        SessionError::InvalidValue { .. } | SessionError::ValueTooLarge { .. } => "value",
        SessionError::WrittenTwice { .. } | SessionError::BatchRejected { .. } => "updates",
        SessionError::TooManyNames { .. } => "variable_identifiers",
        SessionError::InvalidPageToken => "page_token",
        _ => return None,
    })
}

/// The metadata from which a client reconstructs the error.
fn entries_of(error: &SessionError) -> Vec<(&'static str, String)> {
    match error {
        SessionError::NotFound { id } => vec![("session", id.to_string())],
        SessionError::ProgramNotFound { session, name } => {
            vec![("session", session.to_string()), ("program", name.clone())]
        }
        SessionError::GlobalProgramNotFound { name } => vec![("program", name.clone())],
        SessionError::VariableNotFound { session, identifier } => {
            vec![("session", session.to_string()), ("variable", identifier.clone())]
        }
        SessionError::VariableExists { session, name } => {
            vec![("session", session.to_string()), ("variable", name.clone())]
        }
        SessionError::InvalidValue { variable, .. } => vec![("variable", variable.clone())],
        SessionError::ValueTooLarge { variable, size, limit } => {
            vec![("variable", variable.clone()), ("size", size.to_string()), ("limit", limit.to_string())]
        }
        SessionError::VersionConflict { variable, expected, actual } => vec![
            ("variable", variable.clone()),
            ("expected", expected.to_string()),
            ("actual", actual.to_string()),
        ],
        SessionError::VersionNotKept { variable, version, oldest, newest } => vec![
            ("variable", variable.clone()),
            ("version", version.to_string()),
            ("oldest", oldest.to_string()),
            ("newest", newest.to_string()),
        ],
        SessionError::WrittenTwice { variable } => vec![("variable", variable.clone())],
        SessionError::TooManyNames { given, limit } => {
            vec![("given", given.to_string()), ("limit", limit.to_string())]
        }
        SessionError::ProgramTooLarge { name, size, limit } => {
            vec![("program", name.clone()), ("size", size.to_string()), ("limit", limit.to_string())]
        }
        SessionError::MetadataTooLarge { entries, bytes, max_entries, max_bytes } => vec![
            ("entries", entries.to_string()),
            ("bytes", bytes.to_string()),
            ("max_entries", max_entries.to_string()),
            ("max_bytes", max_bytes.to_string()),
        ],
        SessionError::TooManySessions { limit }
        | SessionError::TooManyWatches { limit }
        | SessionError::TooManyGlobalPrograms { limit } => vec![("limit", limit.to_string())],
        SessionError::TooManyPrograms { session, limit }
        | SessionError::TooManyVariables { session, limit } => {
            vec![("session", session.to_string()), ("limit", limit.to_string())]
        }
        SessionError::SessionTooLarge { session, size, limit } => {
            vec![("session", session.to_string()), ("size", size.to_string()), ("limit", limit.to_string())]
        }
        SessionError::BackendFull { size, limit } => {
            vec![("size", size.to_string()), ("limit", limit.to_string())]
        }
        SessionError::Backend { problem, source } | SessionError::NotWritten { problem, source } => {
            let causes = source.as_ref().map(|source| format!(": {}", error_chain(&**source)));
            vec![("problem", problem.clone() + &causes.unwrap_or_default())]
        }
        _ => Vec::new(),
    }
}
