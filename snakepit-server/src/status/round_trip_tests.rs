//! Statuses of this host, converted back by a client.

use std::time::Duration;

use snakepit_registry::{CallStage, ChainedException, ErrorKind, ToolError, ToolFailure, Violation};
use snakepit_session::{SessionError, SessionId};
use tonic::{Code, Status};

use super::{from_session_error, from_tool_error, from_write_error, reserved_for_workers, to_tool_error};

fn layer(kind: ErrorKind, may_have_run: bool) -> ToolError {
    ToolError::Layer { kind, may_have_run, problem: "no quota".into(), source: None }
}

#[test]
fn tool_errors_survive_the_round_trip() {
    let tool = || "add".to_owned();
    let session = || SessionId::try_new("s").unwrap();
    let errors = [
        ToolError::NotFound { tool: tool(), suggestion: Some("adds".into()) },
        ToolError::NotFound { tool: tool(), suggestion: None },
        ToolError::invalid_argument(tool(), "a", "is missing"),
        ToolError::InvalidArguments {
            tool: tool(),
            violations: vec![
                Violation::new("a[3].b", "is missing"),
                Violation::new("c", "is a null, expected integer"),
            ],
        },
        ToolError::Unsupported { tool: tool(), problem: "streams".into(), may_have_run: false },
        ToolError::Unsupported { tool: tool(), problem: "streams".into(), may_have_run: true },
        ToolError::Failed(Box::new(ToolFailure {
            tool: tool(),
            error_type: "ValueError".into(),
            message: "no".into(),
            traceback: "Traceback".into(),
            worker: "default-1-1".into(),
            output_lines: vec!["oops".into()],
            code: "not_found".into(),
            data: Some(serde_json::json!({"left": 3})),
            args: vec!["no".into()],
            attributes: [("item".to_owned(), "tea".into())].into(),
            python_type: "KeyError".into(),
            omitted: vec!["args".into()],
            notes: vec!["note".into()],
            cause: Some(Box::new(ChainedException::new("KeyError", "'tea'"))),
            context: None,
            exceptions: vec![ChainedException::new("OSError", "full")],
        })),
        ToolError::Overloaded { queued: 9, limit: 9, retry_after: Some(Duration::from_millis(50)) },
        ToolError::TooManyConnections { limit: 9, retry_after: Some(Duration::from_millis(50)) },
        ToolError::AnswerDropped { used: 10, limit: 9 },
        ToolError::AnswerTooLarge { size: 10, limit: 9 },
        ToolError::DeadlineExceeded { tool: tool(), stage: CallStage::Queued, limit: None },
        ToolError::DeadlineExceeded { tool: tool(), stage: CallStage::Running, limit: None },
        ToolError::DeadlineExceeded {
            tool: tool(),
            stage: CallStage::Running,
            limit: Some(snakepit_registry::TimeLimit::Host(std::time::Duration::from_millis(1500))),
        },
        ToolError::Cancelled { tool: tool() },
        ToolError::WorkerLost {
            worker: "default-1-1".into(),
            reason: "it exited with code 1".into(),
            may_have_run: true,
            output_lines: vec!["oops".into()],
            retry_after: None,
            source: None,
        },
        ToolError::WorkerLost {
            worker: "default-1-1".into(),
            reason: "it exited with code 1".into(),
            may_have_run: false,
            output_lines: vec!["oops".into()],
            retry_after: Some(Duration::from_millis(50)),
            source: None,
        },
        ToolError::ConnectionLost {
            peer: "the host".into(),
            problem: "broken pipe".into(),
            source: None,
            retry_after: Some(Duration::from_millis(50)),
        },
        ToolError::unavailable("every worker failed to start"),
        ToolError::Deadlock { tool: tool() },
        ToolError::ShuttingDown { may_have_run: false },
        ToolError::ShuttingDown { may_have_run: true },
        ToolError::NoRuntime { may_have_run: false },
        ToolError::Rejected { problem: "the proxy answered 403 Forbidden".into() },
        ToolError::AccessDenied { problem: "the token expired".into() },
        ToolError::ClientClosed { may_have_run: true },
        ToolError::Session(SessionError::NotFound { id: session() }),
        layer(ErrorKind::DeadlineExceeded, true),
        layer(ErrorKind::Overloaded, false),
        layer(ErrorKind::Rejected, false),
        layer(ErrorKind::Rejected, true),
        ToolError::internal("bug"),
    ];
    for error in errors {
        let expected = format!("{error:?}");
        let back = to_tool_error("add", &from_tool_error(error));
        assert_eq!(format!("{back:?}"), expected);
    }
}

#[test]
fn a_host_without_its_runtime_is_shutting_down_for_clients() {
    for may_have_run in [false, true] {
        let back = to_tool_error("add", &from_tool_error(ToolError::RuntimeEnded { may_have_run }));
        assert!(
            matches!(back, ToolError::ShuttingDown { may_have_run: was } if was == may_have_run),
            "{back:?}"
        );
        assert_eq!(back.is_retryable(), !may_have_run, "another host may run the call");
    }
}

#[test]
fn permanent_answers_of_proxies_are_not_transient() {
    for (http, transient) in
        [(302, false), (401, false), (403, false), (404, false), (413, false), (429, true)]
    {
        let answer = format!("grpc-status header missing, mapped from HTTP status code {http}");
        let error = to_tool_error("add", &Status::unknown(answer));
        assert_eq!((error.is_retryable(), error.may_have_run()), (transient, false), "{error}");
    }
}

#[test]
fn session_errors_survive_the_round_trip() {
    let session = || SessionId::try_new("s").unwrap();
    let variable = || "n".to_owned();
    for error in [
        SessionError::NotFound { id: session() },
        SessionError::ProgramNotFound { session: session(), name: "m".into() },
        SessionError::GlobalProgramNotFound { name: "m".into() },
        SessionError::ProgramTooLarge { name: "m".into(), size: 10, limit: 9 },
        SessionError::VariableNotFound { session: session(), identifier: variable() },
        SessionError::VariableExists { session: session(), name: variable() },
        SessionError::InvalidValue { variable: variable(), problem: "value 2 is above maximum 1".into() },
        SessionError::ValueTooLarge { variable: variable(), size: 10, limit: 9 },
        SessionError::VersionConflict { variable: variable(), expected: 1, actual: 2 },
        SessionError::VersionNotKept { variable: variable(), version: 1, oldest: 2, newest: 3 },
        SessionError::WrittenTwice { variable: variable() },
        SessionError::MetadataTooLarge { entries: 1, bytes: 2, max_entries: 3, max_bytes: 4 },
        SessionError::TooManySessions { limit: 1 },
        SessionError::TooManyPrograms { session: session(), limit: 9 },
        SessionError::TooManyGlobalPrograms { limit: 9 },
        SessionError::TooManyVariables { session: session(), limit: 9 },
        SessionError::TooManyWatches { limit: 9 },
        SessionError::SessionTooLarge { session: session(), size: 10, limit: 9 },
        SessionError::BackendFull { size: 10, limit: 9 },
        SessionError::backend("disk full"),
        SessionError::not_written("disk full"),
    ] {
        for status in [from_session_error(&error), from_write_error(&error)] {
            let back = to_tool_error("SetVariable", &status);
            assert!(matches!(&back, ToolError::Session(back) if *back == error), "{error:?}: {back:?}");
        }
    }
}

#[test]
fn a_status_without_a_reason_keeps_its_text() {
    let error = to_tool_error("add", &Status::new(Code::OutOfRange, "too far"));
    assert_eq!(error.to_string(), "internal error: the host answered OutOfRange: too far");
}

#[test]
fn statuses_without_permission_become_access_denied() {
    for http in [401, 403, 407] {
        let answer = format!("grpc-status header missing, mapped from HTTP status code {http}");
        let error = to_tool_error("add", &Status::unknown(answer));
        assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
        let text = error.to_string();
        let peer = if http == 407 { "the proxy" } else { "the server or a proxy" };
        assert!(text.starts_with(&format!("access denied: {peer} answered {http} ")), "{text}");
        assert!(text.contains("bearer_token"), "{text}");
    }
    for code in [Code::Unauthenticated, Code::PermissionDenied] {
        let error = to_tool_error("add", &Status::new(code, "who are you?"));
        assert_eq!(error.kind(), ErrorKind::AccessDenied);
        assert!(error.to_string().starts_with("access denied: who are you?; "), "{error}");
    }
    let reserved = to_tool_error("", &reserved_for_workers());
    assert!(reserved.to_string().starts_with("access denied: RegisterTools is reserved"), "{reserved}");
    assert!(!reserved.to_string().contains("bearer_token"), "{reserved}");
}
