//! The wire form of every status. Clients of all versions parse it, so a change to the snapshot is a change to the protocol.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use prost::Message;
use snakepit_registry::{ErrorKind, ToolError};
use snakepit_session::SessionError;
use tonic::Status;

use super::{tests::errors, *};

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

/// The code, the message and the details of a status. The order of the metadata is not part of the protocol.
fn wire_form(status: &Status) -> String {
    let parsed = RpcStatus::decode(status.details()).unwrap();
    assert_eq!((parsed.code, parsed.message.as_str()), (status.code() as i32, status.message()));
    let mut text = format!("{:?}: {}", status.code(), status.message());
    for detail in parsed.details {
        let name = detail.type_url.strip_prefix("type.googleapis.com/").expect("a known prefix");
        if name == "google.rpc.ErrorInfo" {
            let ErrorInfo { reason, domain, metadata } = ErrorInfo::decode(&*detail.value).unwrap();
            write!(text, "\n  {name} {domain} {reason} {metadata:?}").unwrap();
        } else {
            write!(text, "\n  {name} {}", detail.value.escape_ascii()).unwrap();
        }
    }
    text
}

/// The wire form of every status.
pub(super) fn forms() -> String {
    let full = || BudgetExhausted { used: 10, limit: 9 };
    let later = Some(Duration::from_millis(50));
    let layer = |kind, may_have_run| ToolError::layer(kind, "no").with_may_have_run(may_have_run);
    let further = [
        ToolError::unsupported("add", "streams").with_may_have_run(true),
        ToolError::overloaded(9, 9),
        answer_dropped(full()),
        ToolError::worker_lost("default-1-1", "it exited").with_may_have_run(false).with_retry_after(later),
        ToolError::connection_lost("the host", "reset").with_retry_after(later),
        ToolError::unavailable("starting").with_retry_after(later),
        layer(ErrorKind::DeadlineExceeded, true),
        layer(ErrorKind::Overloaded, false),
        layer(ErrorKind::Rejected, false),
        layer(ErrorKind::Rejected, true),
        connection_budget_exhausted(full()),
    ];
    let of_requests = [
        from_write_error(&SessionError::backend("disk full")),
        from_write_error(&SessionError::not_written("disk full")),
        invalid_field("name", "is empty"),
        rpc_deadline_exceeded(),
        shutting_down(true),
        connection_evicted(),
        answer_too_large("the values", 10, 9, "read fewer"),
        stream_rejected(arrival_budget_exhausted(full()), true),
        message_too_large(MessageTooLarge::Bytes(10), 9),
        message_too_large(MessageTooLarge::Fields, 9),
        headers_too_large(10, 9),
        too_slow(10, Duration::from_secs(30)),
        second_message(),
        request_incomplete(&"reset"),
        rpc_not_offered("AddDependency", "call a tool"),
        reserved_for_workers(),
        reserved_for_clients("ListTools"),
        incompatible_worker("another version"),
        unexpected_reply("add", "a stream", "a value"),
    ];
    let statuses = errors().into_iter().chain(further).map(from_tool_error).chain(of_requests);
    let forms: Vec<String> = statuses.map(|status| wire_form(&status)).collect();
    forms.join("\n")
}

#[test]
fn the_wire_form_of_statuses_stays_as_it_is() {
    insta::assert_snapshot!(forms());
}
