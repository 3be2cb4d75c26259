//! Tests of the status table and of the size of statuses.

use snakepit_proto::status::DELIVERED;
use snakepit_registry::{CallStage, ToolFailure, Violation};
use snakepit_session::SessionId;
use tonic::Code;
use tonic_types::StatusExt;

use super::*;

#[test]
fn long_texts_do_not_make_a_status_too_large() {
    let long = || "long text ".repeat(10_000);
    let errors = [
        ToolError::not_found(long()).with_suggestion(long()),
        ToolError::invalid_argument(long(), long(), long()),
        ToolError::invalid_arguments(long(), vec![Violation::new(long(), long()); 8]),
        ToolError::unsupported(long(), long()),
        ToolError::Failed(Box::new(ToolFailure::new("", long()).with_traceback(long()))),
        ToolError::worker_lost(long(), long()).with_output_lines(vec![long(); 20]),
        ToolError::connection_lost(long(), long()),
        ToolError::internal(long()),
    ];
    let statuses = errors.into_iter().map(from_tool_error).chain([invalid_field(&long(), long())]);
    for status in statuses {
        let shown = format!("{:?}: {}", status.code(), status.message());
        assert!(status.message().len() < 1500, "{shown}");
        assert!(status.get_error_details().error_info().is_some(), "{shown}");
        let headers = status.into_http::<()>().into_parts().0.headers;
        let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(size < 6 * 1024, "{size}: {shown}");
    }
}

#[test]
fn a_failed_write_that_may_have_succeeded_has_no_retryable_code() {
    let failed = SessionError::backend("timed out");
    let (read, written) = (from_session_error(&failed), from_write_error(&failed));
    assert_eq!((read.code(), written.code()), (Code::Unavailable, Code::Internal));
    let info = |status: &Status| status.get_error_details().error_info().cloned().unwrap();
    assert_eq!(info(&written).reason, info(&read).reason);
    assert_eq!(info(&written).metadata[DELIVERED], "true");
    let full = SessionError::not_written("the disk is full");
    for status in [from_session_error(&full), from_write_error(&full)] {
        assert_eq!(status.code(), Code::Unavailable, "a retry is safe");
        assert_eq!(
            (&*info(&status).reason, &*info(&status).metadata[DELIVERED]),
            ("BACKEND_FAILED", "false")
        );
    }
    // A rejected write did not happen.
    let full = SessionError::BackendFull { size: 10, limit: 9 };
    assert_eq!(from_write_error(&full).code(), from_session_error(&full).code());
}

#[test]
fn the_last_output_of_a_lost_worker_is_in_the_details() {
    let lost = ToolError::worker_lost("default-1-1", "it exited with code 1")
        .with_output_lines((0..20).map(|line| format!("line {line}")).collect());
    let status = from_tool_error(lost);
    assert!(!status.message().contains("line 16") && status.message().contains("line 19"), "{status:?}");
    let failure = snakepit_proto::status::details_of(&status).failure.unwrap();
    assert_eq!((failure.output_lines.len(), failure.worker_id.as_str()), (20, "default-1-1"));
}

/// One error of each variant, and of each of its kinds.
pub(super) fn errors() -> Vec<ToolError> {
    let tool = || "add".to_owned();
    let id = || SessionId::try_new("s").unwrap();
    let session = id();
    let conflict = || SessionError::VersionConflict { variable: "x".into(), expected: 3, actual: 5 };
    vec![
        ToolError::not_found(tool()).with_suggestion("adds".to_owned()),
        ToolError::invalid_argument(tool(), "a", "is missing"),
        ToolError::invalid_arguments(tool(), vec![Violation::new("a", "is missing"); 2]),
        ToolError::unsupported(tool(), "streams"),
        ToolError::Failed(Box::new(ToolFailure::new("ValueError", "no").with_tool(tool()))),
        ToolError::overloaded(9, 9).with_retry_after(Duration::from_millis(50)),
        ToolError::deadline_exceeded(tool(), CallStage::Queued),
        ToolError::cancelled(tool()),
        ToolError::worker_lost("default-1-1", "it exited with code 1").with_output_lines(vec!["oops".into()]),
        ToolError::connection_lost("the host", "broken pipe"),
        ToolError::unavailable("every worker failed to start"),
        ToolError::deadlock(tool()),
        ToolError::shutting_down(false),
        ToolError::shutting_down(true),
        ToolError::rejected("the proxy answered 403 Forbidden"),
        ToolError::access_denied("the token expired"),
        ToolError::runtime_ended(false),
        ToolError::no_runtime(false),
        ToolError::Session(SessionError::NotFound { id: session.clone() }),
        ToolError::Session(SessionError::TooManySessions { limit: 1 }),
        ToolError::Session(SessionError::ProgramNotFound { session: session.clone(), name: "m".into() }),
        ToolError::Session(SessionError::TooManyPrograms { session: session.clone(), limit: 9 }),
        ToolError::Session(SessionError::SessionTooLarge { session, size: 10, limit: 9 }),
        ToolError::Session(SessionError::BackendFull { size: 10, limit: 9 }),
        ToolError::Session(SessionError::MetadataTooLarge {
            entries: 10,
            bytes: 99,
            max_entries: 9,
            max_bytes: 100,
        }),
        ToolError::Session(SessionError::InvalidPageToken),
        ToolError::Session(SessionError::backend("disk full")),
        ToolError::Session(SessionError::GlobalProgramNotFound { name: "m".into() }),
        ToolError::Session(SessionError::TooManyGlobalPrograms { limit: 9 }),
        ToolError::Session(SessionError::VariableNotFound { session: id(), identifier: "x".into() }),
        ToolError::Session(SessionError::VariableExists { session: id(), name: "x".into() }),
        ToolError::Session(SessionError::InvalidVariableName { problem: "it is empty".into() }),
        ToolError::Session(SessionError::InvalidType { kind: "null".into(), problem: "no".into() }),
        ToolError::Session(conflict()),
        ToolError::Session(SessionError::InvalidValue { variable: "x".into(), problem: "no".into() }),
        ToolError::Session(SessionError::ValueTooLarge { variable: "x".into(), size: 10, limit: 9 }),
        ToolError::Session(SessionError::VersionNotKept {
            variable: "x".into(),
            version: 1,
            oldest: 5,
            newest: 9,
        }),
        ToolError::Session(SessionError::TooManyVariables { session: id(), limit: 9 }),
        ToolError::Session(SessionError::TooManyWatches { limit: 9 }),
        ToolError::Session(SessionError::TooManyNames { given: 10, limit: 9 }),
        ToolError::Session(SessionError::WrittenTwice { variable: "x".into() }),
        ToolError::Session(SessionError::BatchRejected { errors: [("x".into(), conflict())].into() }),
        ToolError::internal("bug"),
    ]
}

#[test]
fn statuses_agree_with_the_table_of_reasons_and_with_the_kinds_of_errors() {
    let bytes = ToolError::too_many_bytes("calls", 9, 9);
    let answers = [ToolError::answer_dropped(9, 9), ToolError::answer_too_large(10, 9)];
    for error in errors().into_iter().chain([bytes]).chain(answers) {
        let (kind, shown) = (error.kind(), error.to_string());
        let (may_have_run, retry_after) = (error.may_have_run(), error.retry_after());
        let fault = Fault::from(error.clone());
        assert_eq!((fault.may_have_run(), fault.retry_after()), (may_have_run, retry_after), "{shown}");
        let status = from_tool_error(error);
        let reason = snakepit_wire::reason_of(&status).expect("a reason of the table");
        assert_eq!((reason, reason.http_status()), (kind.reason(), kind.http_status()), "{shown}");
        assert!(reason.codes().iter().any(|code| code.number() == status.code() as i32), "{shown}");
        let details = snakepit_proto::status::details_of(&status);
        assert_eq!(details.retry_after, retry_after, "{shown}");
        // gRPC libraries retry UNAVAILABLE. This entry states whether the call may have run.
        let on_the_wire = details.metadata.get(DELIVERED);
        assert!(on_the_wire.is_none_or(|flag| *flag == may_have_run.to_string()), "{shown}");
        for entry in details.metadata.keys() {
            let page = include_str!("../../../docs/errors.md");
            assert!(page.contains(&format!("| `{entry}` |")), "docs/errors.md does not describe `{entry}`");
        }
        // The error that a client reconstructs has the same classification.
        let back = to_tool_error("add", &status);
        assert_eq!((back.kind().reason(), back.may_have_run()), (kind.reason(), may_have_run), "{shown}");
    }
}

/// Reasons that no error of a call has: those of whole requests, of workers, of clients and of the command line.
const OTHER_REASONS: [Reason; 16] = [
    Reason::Stopping,
    Reason::AnswerDropped,
    Reason::AnswerTooLarge,
    Reason::RequestTooLarge,
    Reason::RequestIncomplete,
    Reason::Reserved,
    Reason::IncompatibleVersion,
    Reason::Proxy,
    Reason::NotConnected,
    Reason::ClientClosed,
    Reason::InvalidPayload,
    Reason::NotStarted,
    Reason::Usage,
    Reason::Unreachable,
    Reason::CannotStart,
    Reason::OutputFailed,
];

#[test]
fn every_reason_of_the_table_is_in_use() {
    for &reason in Reason::ALL {
        let is_used = errors().iter().any(|error| error.kind().reason() == reason);
        assert_ne!(is_used, OTHER_REASONS.contains(&reason), "{reason}");
    }
}

#[test]
fn the_status_table_is_as_documented() {
    let table: Vec<String> = errors()
        .into_iter()
        .map(from_tool_error)
        .chain([
            from_write_error(&SessionError::backend("disk full")),
            reserved_for_workers(),
            reserved_for_clients("ListTools"),
            incompatible_worker("another version"),
        ])
        .map(|status| {
            let details = status.get_error_details();
            let reason = details.error_info().map_or("-", |info| info.reason.as_str()).to_owned();
            let retry = details.retry_info().and_then(|info| info.retry_delay);
            format!("{:?} {reason} retry={retry:?}: {}", status.code(), status.message())
        })
        .collect();
    insta::assert_snapshot!(table.join("\n"));
}
