//! Prints a fault as JSON: a problem document, or a JSON-RPC error object.

use serde_json::{Map, Value, json};
use snakepit_reason::DELIVERED;

use super::Fault;
use crate::{Principal, ToolFailure};

/// The page that describes each reason, for the member `type` of problem documents.
const PAGE: &str = "https://github.com/snakepit-rs/snakepit/blob/main/docs/errors.md";

impl Fault {
    /// Converts the fault to a problem document (RFC 9457), the body of an HTTP response of the type `application/problem+json`.
    /// Includes tracebacks and output of workers only if the reader is [local](Principal::is_local).
    ///
    /// | member | content |
    /// | --- | --- |
    /// | `type` | the page of the reason |
    /// | `title` | the meaning of the reason |
    /// | `status` | the HTTP status |
    /// | `detail` | the message |
    /// | `code` | the name of the gRPC code |
    /// | others | as in [`to_json_rpc_error`](Self::to_json_rpc_error) |
    #[must_use]
    pub fn to_problem(&self, reader: &Principal) -> Value {
        let reason = self.reason;
        let mut problem = Map::new();
        problem.insert("type".into(), format!("{PAGE}#{}", reason.as_str().to_lowercase()).into());
        problem.insert("title".into(), reason.meaning().trim_end_matches('.').into());
        problem.insert("status".into(), self.http_status().into());
        problem.insert("detail".into(), self.message_for(reader).into());
        problem.insert("code".into(), self.code().name().into());
        problem.extend(self.members(reader));
        Value::Object(problem)
    }

    /// Converts the fault to the error object of a JSON-RPC response, as in MCP. It has a `code`, a `message`, and `data` with
    /// these members. Includes tracebacks and output of workers only if the reader is [local](Principal::is_local).
    ///
    /// | member | content |
    /// | --- | --- |
    /// | `reason` | the reason |
    /// | `may_have_run` | whether the tool may have run; if `false`, a retry is safe |
    /// | `retry_after` | the suggested pause before a retry in seconds; absent if unknown |
    /// | `errors` | the invalid fields, each with `field` and `detail`; absent if there are none |
    /// | `exception` | `type`, `message`, `worker`, `code` and `data` of the tool's exception; if the principal is [local](Principal::is_local), also `traceback`, `output`, `notes`, `cause`, `context` and `exceptions`; absent without one |
    /// | `metadata` | further data of the reason; absent if there is none |
    ///
    /// MCP reports the exception of a tool as a result with `isError`, not as an error object.
    #[must_use]
    pub fn to_json_rpc_error(&self, reader: &Principal) -> Value {
        json!({
            "code": self.json_rpc_code(),
            "message": self.message_for(reader),
            "data": Value::Object(self.members(reader)),
        })
    }

    fn message_for(&self, reader: &Principal) -> String {
        if reader.is_local() { self.full_message() } else { self.message.clone() }
    }

    /// The members that both forms have.
    fn members(&self, reader: &Principal) -> Map<String, Value> {
        let is_local = reader.is_local();
        let mut members = Map::new();
        members.insert("reason".into(), self.reason.as_str().into());
        members.insert("may_have_run".into(), self.may_have_run.into());
        if let Some(after) = self.retry_after() {
            members.insert("retry_after".into(), after.as_secs_f64().into());
        }
        if !self.violations.is_empty() {
            let errors = self.violations.iter();
            let errors =
                errors.map(|violation| json!({"field": violation.field, "detail": violation.description}));
            members.insert("errors".into(), errors.collect());
        }
        if let Some(failure) = &self.failure {
            let mut exception = Map::new();
            for (key, text) in [
                ("type", &failure.error_type),
                ("message", &failure.message),
                ("traceback", &failure.traceback),
                ("worker", &failure.worker),
                ("code", &failure.code),
            ] {
                if !text.is_empty() && (key != "traceback" || is_local) {
                    exception.insert(key.into(), text.as_str().into());
                }
            }
            exception.extend(failure.data.clone().map(|data| ("data".into(), data)));
            if is_local {
                exception.extend(internals(failure));
            }
            members.insert("exception".into(), exception.into());
        }
        let entries = self.entries.iter().filter(|(key, _)| *key != DELIVERED);
        let metadata: Map<_, _> =
            entries.map(|(key, value)| ((*key).to_owned(), value.as_str().into())).collect();
        if !metadata.is_empty() {
            members.insert("metadata".into(), metadata.into());
        }
        members
    }
}

/// The members that only some readers see, without the traceback.
fn internals(failure: &ToolFailure) -> Map<String, Value> {
    let mut members = Map::new();
    for (key, lines) in [("output", &failure.output_lines), ("notes", &failure.notes)] {
        if !lines.is_empty() {
            members.insert(key.into(), lines.clone().into());
        }
    }
    for (key, linked) in [("cause", &failure.cause), ("context", &failure.context)] {
        members.extend(linked.as_ref().map(|linked| (key.into(), json!(linked))));
    }
    if !failure.exceptions.is_empty() {
        members.insert("exceptions".into(), json!(failure.exceptions));
    }
    members
}
