//! Statuses of this host, converted back by a client.

use std::time::Duration;

use snakepit_registry::{CallStage, ChainedException, ErrorKind, ToolError, ToolFailure, Violation};
use snakepit_session::{SessionError, SessionId};
use tonic::{Code, Status};

use super::{from_session_error, from_tool_error, from_write_error, reserved_for_workers, to_tool_error};

fn layer(kind: ErrorKind, may_have_run: bool) -> ToolError {
    ToolError::layer(kind, "no quota").with_may_have_run(may_have_run)
}

#[test]
fn tool_errors_survive_the_round_trip() {
    let tool = || "add".to_owned();
    let session = || SessionId::try_new("s").unwrap();
    let mut failure = ToolFailure::new("ValueError", "no")
        .with_tool(tool())
        .with_traceback("Traceback")
        .with_worker("default-1-1")
        .with_output_lines(vec!["oops".into()])
        .with_code("not_found")
        .with_data(serde_json::json!({"left": 3}))
        .with_args(vec!["no".into()])
        .with_attributes([("item".to_owned(), "tea".into())])
        .with_python_type("KeyError")
        .with_notes(vec!["note".into()])
        .with_cause(ChainedException::new("KeyError", "'tea'"));
    failure.exceptions = vec![ChainedException::new("OSError", "full")];
    failure.omitted = vec!["args".into()];
    let errors = [
        ToolError::not_found(tool()).with_suggestion("adds".to_owned()),
        ToolError::not_found(tool()),
        ToolError::invalid_argument(tool(), "a", "is missing"),
        ToolError::invalid_arguments(
            tool(),
            vec![Violation::new("a[3].b", "is missing"), Violation::new("c", "is a null, expected integer")],
        ),
        ToolError::unsupported(tool(), "streams"),
        ToolError::unsupported(tool(), "streams").with_may_have_run(true),
        ToolError::Failed(Box::new(failure)),
        ToolError::overloaded(9, 9).with_retry_after(Duration::from_millis(50)),
        ToolError::too_many_connections(9).with_retry_after(Duration::from_millis(50)),
        ToolError::answer_dropped(10, 9),
        ToolError::answer_too_large(10, 9),
        ToolError::deadline_exceeded(tool(), CallStage::Queued),
        ToolError::deadline_exceeded(tool(), CallStage::Running),
        ToolError::deadline_exceeded(tool(), CallStage::Running).with_time_limit(Some(
            snakepit_registry::TimeLimit::Host(std::time::Duration::from_millis(1500)),
        )),
        ToolError::cancelled(tool()),
        ToolError::worker_lost("default-1-1", "it exited with code 1").with_output_lines(vec!["oops".into()]),
        ToolError::worker_lost("default-1-1", "it exited with code 1")
            .with_may_have_run(false)
            .with_output_lines(vec!["oops".into()])
            .with_retry_after(Duration::from_millis(50)),
        ToolError::connection_lost("the host", "broken pipe").with_retry_after(Duration::from_millis(50)),
        ToolError::unavailable("every worker failed to start"),
        ToolError::deadlock(tool()),
        ToolError::shutting_down(false).of_remote_host(),
        ToolError::shutting_down(true).of_remote_host(),
        ToolError::no_runtime(false),
        ToolError::rejected("the proxy answered 403 Forbidden"),
        ToolError::access_denied("the token expired"),
        ToolError::client_closed(true),
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
        let back = to_tool_error("add", &from_tool_error(ToolError::runtime_ended(may_have_run)));
        assert!(
            matches!(back, ToolError::ShuttingDown { may_have_run: was, .. } if was == may_have_run),
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
