//! Tests of the conversions and of the JSON forms. The gRPC form is tested in `snakepit-server`, with all errors.

use std::time::Duration;

use serde_json::json;
use snakepit_session::{SessionError, SessionId};

use super::*;
use crate::{ChainedException, ErrorKind, Principal, ToolError};

#[test]
fn a_problem_document_has_the_members_of_its_error() {
    let retry_after = Some(Duration::from_millis(250));
    let overloaded = Fault::from(ToolError::Overloaded { queued: 9, limit: 9, retry_after });
    assert_eq!(
        overloaded.to_problem(&Principal::remote()),
        json!({
            "type": "https://github.com/snakepit-rs/snakepit/blob/main/docs/errors.md#overloaded",
            "title": "The queue is full, or another limit on the load is reached",
            "status": 429,
            "detail": "pool is overloaded: 9 calls wait, the limit is 9; retry later or add workers",
            "code": "RESOURCE_EXHAUSTED",
            "reason": "OVERLOADED",
            "may_have_run": false,
            "retry_after": 0.25,
            "metadata": {"queued": "9", "limit": "9"},
        })
    );
    let invalid = ToolError::invalid_argument("add", "a", "is missing");
    let problem = Fault::from(invalid).to_problem(&Principal::remote());
    assert_eq!(problem["errors"], json!([{"field": "a", "detail": "is missing"}]));
    assert_eq!((&problem["status"], problem.get("metadata")), (&json!(422), None));
}

#[test]
fn a_json_rpc_error_carries_the_exception_and_whether_the_tool_may_have_run() {
    let failure = ToolFailure {
        tool: "add".into(),
        error_type: "ValueError".into(),
        message: "no".into(),
        worker: "default-1-1".into(),
        output_lines: vec!["oops".into()],
        ..ToolFailure::default()
    };
    let error = Fault::from(ToolError::Failed(Box::new(failure))).to_json_rpc_error(&Principal::loopback());
    assert_eq!(
        error,
        json!({
            "code": Reason::ToolFailed.json_rpc_code(),
            "message": "tool `add` failed: ValueError: no",
            "data": {
                "reason": "TOOL_FAILED",
                "may_have_run": true,
                "exception":
                    {"type": "ValueError", "message": "no", "worker": "default-1-1", "output": ["oops"]},
            },
        })
    );
}

#[test]
fn only_readers_on_this_machine_receive_tracebacks_and_output() {
    let failure = ToolFailure {
        error_type: "ValueError".into(),
        message: "no".into(),
        code: "bad".into(),
        data: Some(json!([3])),
        notes: vec!["in /srv".into()],
        cause: Some(Box::new(ChainedException::new("KeyError", "'tea'"))),
        exceptions: vec![ChainedException::new("OSError", "full")],
        traceback: "File \"/srv/shop.py\"".into(),
        output_lines: vec!["secret".into()],
        ..ToolFailure::default()
    };
    let error = ToolError::Failed(Box::new(failure));
    let fault = Fault::from(error.clone());
    let exception = |reader| fault.to_problem(&reader)["exception"].clone();
    let message = json!({"type": "ValueError", "message": "no", "code": "bad", "data": [3]});
    for reader in
        [Principal::remote(), Principal::mounted(), Principal::new("alice", "token"), Principal::unset()]
    {
        assert_eq!(exception(reader.clone()), message, "{reader:?}");
        assert_eq!(fault.to_json_rpc_error(&reader)["data"]["exception"], message);
    }
    let full = exception(Principal::user(7));
    assert_eq!((&full["traceback"], &full["output"]), (&json!("File \"/srv/shop.py\""), &json!(["secret"])));
    assert_eq!(full["cause"], json!({"type": "KeyError", "message": "'tea'"}));
    assert_eq!(full["exceptions"], json!([{"type": "OSError", "message": "full"}]));
    assert_eq!(full["notes"], json!(["in /srv"]));

    let ToolError::Failed(rest) = error.without_traceback() else { panic!("another error") };
    assert_eq!((&*rest.traceback, rest.output_lines.len()), ("", 0));
    assert_eq!((&*rest.message, &*rest.code), ("no", "bad"));
    assert!(rest.notes.is_empty() && rest.causes().next().is_none() && rest.exceptions.is_empty());
}

#[test]
fn only_readers_on_this_machine_receive_output_in_the_message() {
    let lost = ToolError::WorkerLost {
        worker: "w".into(),
        reason: "it exited with code 1".into(),
        may_have_run: false,
        was_sent: true,
        output_lines: vec!["secret".into()],
        retry_after: None,
        source: None,
    };
    let unavailable = ToolError::Unavailable {
        reason: "every worker failed to start".into(),
        last_error: "worker ended before it was ready; its last output:\nsecret".into(),
        retry_after: None,
    };
    for error in [lost, unavailable] {
        let fault = Fault::from(error.clone());
        let elsewhere = Principal::mounted();
        for document in [fault.to_problem(&elsewhere), fault.to_json_rpc_error(&elsewhere)] {
            assert!(!document.to_string().contains("secret"), "{document}");
        }
        let public = error.clone().without_traceback().to_string();
        assert_eq!(fault.to_problem(&elsewhere)["detail"], json!(public));
        let here = Principal::user(7);
        assert_eq!(fault.to_problem(&here)["detail"], json!(error.to_string()));
        assert_eq!(fault.to_json_rpc_error(&here)["message"], json!(error.to_string()));
        assert_eq!(fault.full_message(), error.to_string(), "gRPC prints this");
        assert!(!public.contains("secret"), "{public}");
    }
}

#[test]
fn a_write_that_may_have_happened_has_a_code_that_libraries_do_not_retry() {
    let failed = SessionError::backend("timed out");
    let (read, written) = (Fault::from(&failed), Fault::of_write(&failed));
    assert_eq!((read.code(), written.code()), (Code::Unavailable, Code::Internal));
    assert_eq!((read.may_have_run(), written.may_have_run()), (false, true));
    assert_eq!(read.reason, written.reason);
    let missing = SessionError::NotFound { id: SessionId::try_new("s").unwrap() };
    assert_eq!(Fault::of_write(&missing).code(), Fault::from(&missing).code());
}

#[test]
fn a_fault_has_only_the_codes_of_its_reason() {
    let fault = Fault::new(Reason::ToolNotFound, "no").with_code(Code::Internal);
    assert_eq!(fault.code(), Code::NotFound);
    let layer = |may_have_run| {
        let kind = ErrorKind::Rejected;
        Fault::from(ToolError::Layer { kind, may_have_run, problem: "no".into(), source: None })
    };
    assert_eq!((layer(true).code(), layer(false).code()), (Code::Unknown, Code::FailedPrecondition));
    let cut = Fault::new(Reason::ShuttingDown, "no").with_may_have_run(false).with_may_have_run(true);
    assert_eq!((cut.may_have_run(), &cut.entries[..]), (true, &[(DELIVERED, "true".to_owned())][..]));
}

#[test]
fn the_code_of_a_tool_determines_the_codes_of_its_failure() {
    let failed =
        |code: &str| ToolError::Failed(Box::new(ToolFailure { code: code.into(), ..ToolFailure::default() }));
    for (code, grpc, http) in [
        ("not_found", Code::NotFound, 404),
        ("permission_denied", Code::PermissionDenied, 403),
        ("out_of_stock", Code::Internal, 500),
        ("NOT_FOUND", Code::Internal, 500),
        ("", Code::Internal, 500),
    ] {
        let error = failed(code);
        assert_eq!(error.http_status(), http, "{code}");
        let fault = Fault::from(error);
        let found = (fault.reason, fault.code(), fault.http_status(), fault.json_rpc_code());
        assert_eq!(found, (Reason::ToolFailed, grpc, http, -32020 - grpc.number()), "{code}");
        assert!(fault.may_have_run());
        assert_eq!(fault.to_problem(&Principal::remote())["status"], json!(http));
    }
}
