//! Conversions of tool failures, and statuses of invalid requests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use snakepit_proto::{
    pb,
    status::{bounded, field_error_status},
};
use snakepit_registry::{ChainedException, ToolFailure};
use tonic::Status;

/// The content of `details_json`.
#[derive(Serialize)]
struct Details<'a> {
    #[serde(skip_serializing_if = "<[Value]>::is_empty")]
    args: &'a [Value],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: &'a BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: &'a Option<Value>,
    #[serde(skip_serializing_if = "str::is_empty")]
    python_type: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    omitted: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: &'a Option<Box<ChainedException>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: &'a Option<Box<ChainedException>>,
    #[serde(skip_serializing_if = "<[ChainedException]>::is_empty")]
    exceptions: &'a [ChainedException],
}

/// Adds the fields of a failure that a JSON object contains, as in the field `details_json` of a `ToolFailure`. Parses each value
/// separately, so that an invalid value does not affect the others. A value is invalid if it is malformed, or if Rust cannot
/// represent it, such as a huge number.
pub fn add_details(failure: &mut ToolFailure, json: &[u8]) {
    let parts: BTreeMap<String, &RawValue> = match json {
        [] => return,
        json => serde_json::from_slice(json).unwrap_or_default(),
    };
    let args = part::<Vec<&RawValue>>(&parts, "args").into_iter().flatten();
    failure.args = args.filter_map(|value| serde_json::from_str(value.get()).ok()).collect();
    let attributes = part::<BTreeMap<String, &RawValue>>(&parts, "attributes").into_iter().flatten();
    failure.attributes = attributes
        .filter_map(|(name, value)| Some((name, serde_json::from_str(value.get()).ok()?)))
        .collect();
    failure.data = part::<Value>(&parts, "data").filter(|data| !data.is_null());
    failure.python_type = part(&parts, "python_type").unwrap_or_default();
    failure.omitted = part(&parts, "omitted").unwrap_or_default();
    failure.notes = part(&parts, "notes").unwrap_or_default();
    failure.cause = part(&parts, "cause");
    failure.context = part(&parts, "context");
    failure.exceptions = part(&parts, "exceptions").unwrap_or_default();
}

/// Parses one part. `None` if it is absent or malformed.
fn part<'a, T: Deserialize<'a>>(parts: &BTreeMap<String, &'a RawValue>, name: &str) -> Option<T> {
    parts.get(name).and_then(|value| serde_json::from_str(value.get()).ok())
}

/// Converts a tool failure from its message.
#[must_use]
pub fn failure_from_wire(failure: pb::ToolFailure) -> ToolFailure {
    let pb::ToolFailure {
        r#type,
        message,
        traceback,
        tool_name,
        worker_id,
        session_id: _,
        output_lines,
        code,
        details_json,
    } = failure;
    let mut failure = ToolFailure::new(r#type, message)
        .with_tool(tool_name)
        .with_traceback(traceback)
        .with_worker(worker_id)
        .with_output_lines(output_lines)
        .with_code(code);
    add_details(&mut failure, &details_json);
    failure
}

/// Converts a tool failure to a message, within the size limits of [`bounded`].
#[must_use]
pub fn failure_to_wire(failure: ToolFailure, session_id: String) -> pb::ToolFailure {
    let ToolFailure {
        tool,
        error_type,
        message,
        traceback,
        worker,
        output_lines,
        code,
        data,
        args,
        attributes,
        python_type,
        omitted,
        notes,
        cause,
        context,
        exceptions,
        ..
    } = failure;
    let details = Details {
        args: &args,
        attributes: &attributes,
        data: &data,
        python_type: &python_type,
        omitted: &omitted,
        notes: &notes,
        cause: &cause,
        context: &context,
        exceptions: &exceptions,
    };
    // Values and maps of strings always serialize.
    let mut details_json = serde_json::to_vec(&details).unwrap_or_default();
    if details_json == b"{}" {
        details_json = Vec::new();
    }
    bounded(pb::ToolFailure {
        r#type: error_type,
        message,
        traceback,
        tool_name: tool,
        worker_id: worker,
        session_id,
        output_lines,
        code,
        details_json: details_json.into(),
    })
}

/// The status of a call with an invalid argument.
#[must_use]
pub fn bad_argument(tool: &str, argument: &str, problem: &str) -> Status {
    field_error_status(format!("argument `{argument}` of tool `{tool}` {problem}"), argument, problem)
}

/// The status of a request with an invalid field.
#[must_use]
pub fn bad_field(field: &str, problem: &str) -> Status {
    field_error_status(format!("`{field}` {problem}"), field, problem)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn full_exception() -> ChainedException {
        let mut exception = ChainedException::new("shop.Missing", "no");
        exception.traceback = "File".into();
        exception.code = "not_found".into();
        exception.data = Some(json!([1]));
        exception.args = vec![json!("no")];
        exception.attributes = BTreeMap::from([("item".into(), json!("tea"))]);
        exception.notes = vec!["note".into()];
        exception.context = Some(Box::new(ChainedException::new("OSError", "full")));
        exception.cause = exception.context.clone();
        exception.exceptions = vec![ChainedException::new("OSError", "")];
        exception.omitted = vec!["data".into()];
        exception
    }

    #[test]
    fn all_parts_of_a_failure_survive_the_wire() {
        let mut failure = ToolFailure::new("shop.Missing", "no")
            .with_tool("find")
            .with_traceback("Traceback")
            .with_worker("w")
            .with_output_lines(vec!["line".into()])
            .with_code("not_found")
            .with_data(json!({"left": [1, null]}))
            .with_args(vec![json!("no"), json!(2)])
            .with_attributes(BTreeMap::from([("item".into(), json!("tea"))]))
            .with_python_type("shop:Missing");
        failure.omitted = vec!["args".into()];
        failure.notes = vec!["note".into()];
        failure.cause = Some(Box::new(full_exception()));
        failure.context = Some(Box::new(ChainedException::new("KeyError", "'tea'")));
        failure.exceptions = vec![full_exception(), ChainedException::new("OSError", "")];
        assert_eq!(failure_from_wire(failure_to_wire(failure.clone(), "s".into())), failure);
        let plain = ToolFailure::new("", "no");
        let wire = failure_to_wire(plain.clone(), String::new());
        assert!(wire.details_json.is_empty(), "a plain failure has no details");
        assert_eq!(failure_from_wire(wire), plain);
    }

    #[test]
    fn malformed_details_are_left_out_one_by_one() {
        let details = |json: &str| {
            let mut failure = ToolFailure::default();
            add_details(&mut failure, json.as_bytes());
            failure
        };
        let huge = "9".repeat(400);
        let mixed =
            details(&format!(r#"{{"args": [1, 1e999, "\ud800", {huge}, 2], "data": {{"a": 1}}, "new": 1}}"#));
        assert_eq!((mixed.args, mixed.data), (vec![json!(1), json!(2)], Some(json!({"a": 1}))));
        let one_bad = details(r#"{"args": 1, "attributes": [2], "python_type": 3, "data": "kept"}"#);
        assert_eq!(one_bad, ToolFailure::default().with_data(json!("kept")));
        for malformed in ["", "{", "[]", r#"{"args": 1}"#, "\u{0}"] {
            assert_eq!(details(malformed), ToolFailure::default(), "{malformed}");
        }
    }

    #[test]
    fn large_parts_are_dropped_one_by_one_and_named() {
        let large = || json!("x".repeat(300 * 1024));
        let dropped = |failure: ToolFailure| {
            let kept = failure_from_wire(failure_to_wire(failure, String::new()));
            (kept.args.len(), kept.attributes.len(), kept.data.is_some(), kept.omitted.join(" "))
        };
        let small = || {
            ToolFailure::default()
                .with_args(vec![json!(1)])
                .with_attributes(BTreeMap::from([("item".into(), json!("tea"))]))
                .with_data(json!({"left": 3}))
        };
        assert_eq!(dropped(small()), (1, 1, true, String::new()));
        let large_args = small().with_args(vec![large()]);
        assert_eq!(dropped(large_args), (0, 1, true, "args".into()));
        let large_data = small().with_data(large());
        assert_eq!(dropped(large_data), (1, 1, false, "data".into()));
        let mut cause = ChainedException::new("OSError", "full");
        cause.args = vec![large()];
        let large_cause = small().with_cause(cause).with_notes(vec!["n".into()]);
        let kept = failure_from_wire(failure_to_wire(large_cause, String::new()));
        assert_eq!((kept.cause, kept.notes.len(), &*kept.omitted.join(" ")), (None, 1, "cause"));
        let half = || json!("x".repeat(150 * 1024));
        let both = small().with_args(vec![half()]).with_data(half());
        assert_eq!(dropped(both), (0, 1, true, "args".into()), "data matters most");
    }
}
