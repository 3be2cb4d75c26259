//! [`Failure`]: the error of a command, as text for people or as JSON for scripts.

use std::{fmt, time::Duration};

use clap::error::{ContextKind, ContextValue};
use serde_json::{Map, Value};
use snakepit_proto::pb;
use snakepit_server::{Fault, Principal, Reason, ToolError};
use snakepit_wire::failure_from_wire;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A failure as the user sees it: one line of text, the tool's traceback if there is one, and an exit code for scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The row in the table of reasons, from which the exit code comes.
    reason: Reason,
    /// The code for scripts, if a server sent one that is not in the table.
    foreign_code: Option<String>,
    pub(crate) message: String,
    /// Empty unless the tool raised an exception.
    traceback: String,
    /// The exception of the tool, for scripts. Boxed, because most failures have none.
    exception: Option<Box<Value>>,
    /// Whether the tool may have run. If not, a retry is safe.
    pub(crate) may_have_run: bool,
    /// The pause after which a retry may succeed, if the server suggests one.
    retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        let may_have_run = matches!(reason, Reason::ToolFailed | Reason::Rejected | Reason::OutputFailed);
        Self {
            reason,
            foreign_code: None,
            message: message.into(),
            traceback: String::new(),
            exception: None,
            may_have_run,
            retry_after: None,
        }
    }

    /// The failure of a malformed command line.
    pub(crate) fn of_usage(error: &clap::Error) -> Self {
        Self::new(Reason::Usage, problem_of(error))
    }

    /// Takes the reason from a status. For a status without a known reason, keeps the exit code of this failure, and takes the
    /// code from the unknown reason or from the gRPC code, such as `NOT_FOUND`.
    pub(crate) fn with_reason_of(mut self, status: &Status) -> Self {
        let text = status.get_error_details().error_info().map(|info| info.reason.clone());
        match text.as_deref().and_then(Reason::parse) {
            Some(reason) => self.reason = reason,
            None => self.foreign_code = Some(text.unwrap_or_else(|| code_name(status.code()))),
        }
        self
    }

    /// The reason. `None` if a server sent a code that is not in the table.
    pub(crate) const fn reason(&self) -> Option<Reason> {
        match self.foreign_code {
            None => Some(self.reason),
            Some(_) => None,
        }
    }

    /// The code for scripts.
    pub(crate) fn code(&self) -> &str {
        self.foreign_code.as_deref().unwrap_or(self.reason.as_str())
    }

    pub(crate) const fn exit_code(&self) -> u8 {
        self.reason.exit_code()
    }

    pub(crate) fn traceback(mut self, traceback: impl Into<String>) -> Self {
        self.traceback = traceback.into();
        self
    }

    /// Adds the exception of the tool. The server has removed the parts that this caller must not see.
    pub(crate) fn exception(mut self, failure: pb::ToolFailure) -> Self {
        let failure = failure_from_wire(failure);
        self.traceback.clone_from(&failure.traceback);
        let mut parts = Map::new();
        if !failure.args.is_empty() {
            parts.insert("args".to_owned(), failure.args.clone().into());
        }
        if !failure.attributes.is_empty() {
            parts.insert("attributes".to_owned(), serde_json::json!(failure.attributes));
        }
        if !failure.omitted.is_empty() {
            parts.insert("omitted".to_owned(), failure.omitted.clone().into());
        }
        let fault = Fault::from(ToolError::Failed(Box::new(failure)));
        let mut exception = fault.to_problem(&Principal::loopback())["exception"].take();
        if let Value::Object(members) = &mut exception {
            members.extend(parts);
            self.exception = Some(Box::new(exception));
        }
        self
    }

    pub(crate) const fn may_have_run(mut self, may_have_run: bool) -> Self {
        self.may_have_run = may_have_run;
        self
    }

    pub(crate) const fn retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    pub(crate) fn as_json(&self) -> Value {
        let Self { message, may_have_run, .. } = self;
        let mut object =
            serde_json::json!({"code": self.code(), "message": message, "may_have_run": may_have_run});
        if let Some(retry_after) = self.retry_after {
            object["retry_after"] = retry_after.as_secs_f64().into();
        }
        if !self.traceback.is_empty() {
            object["traceback"] = self.traceback.as_str().into();
        }
        if let Some(exception) = &self.exception {
            object["exception"] = Value::clone(exception);
        }
        object
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snakepit: {}", self.message)?;
        match self.traceback.trim_end() {
            "" => Ok(()),
            traceback => write!(f, "\n{traceback}"),
        }
    }
}

/// The canonical name of a code, such as `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// The problem in an error of the parser, with the valid values and the tips, but without the usage of the command.
pub(crate) fn problem_of(error: &clap::Error) -> String {
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => String::new(),
    };
    let whole = error.to_string();
    let problem = whole.strip_prefix("error: ").unwrap_or(&whole);
    let ends = [usage.as_str(), "\n\nUsage:", "\n\nFor more information"];
    let end = ends.iter().filter(|end| !end.is_empty()).filter_map(|end| problem.find(end)).min();
    problem[..end.unwrap_or(problem.len())].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_determines_the_exit_code() {
        let status = |reason: &str| {
            let details = tonic_types::ErrorDetails::with_error_info(
                reason,
                "snakepit",
                std::collections::HashMap::new(),
            );
            Status::with_error_details(Code::NotFound, "no", details)
        };
        for &reason in Reason::ALL {
            let failure = Failure::new(Reason::Rejected, "no").with_reason_of(&status(reason.as_str()));
            assert_eq!((failure.reason(), failure.exit_code()), (Some(reason), reason.exit_code()));
            assert_eq!(failure.as_json()["code"], reason.as_str());
        }
        // A newer server, and a server of another project.
        for (status, code) in [(status("NEW_REASON"), "NEW_REASON"), (Status::not_found("no"), "NOT_FOUND")] {
            let failure = Failure::new(Reason::Unreachable, "no").with_reason_of(&status);
            assert_eq!((failure.reason(), failure.exit_code()), (None, Reason::Unreachable.exit_code()));
            assert_eq!(failure.as_json()["code"], code);
        }
        assert_eq!(code_name(Code::Ok), "OK");
    }

    #[test]
    fn json_has_a_retry_delay_and_a_traceback_only_if_they_exist() {
        let plain = Failure::new(Reason::Unreachable, "no").as_json();
        assert_eq!(plain, serde_json::json!({"code": "UNREACHABLE", "message": "no", "may_have_run": false}));
        let full = Failure::new(Reason::ToolFailed, "no")
            .traceback("in f")
            .retry_after(Some(Duration::from_millis(100)))
            .as_json();
        assert_eq!(full["retry_after"], 0.1);
        assert_eq!((&full["traceback"], &full["may_have_run"]), (&"in f".into(), &true.into()));
        assert_eq!(full.get("exception"), None);
    }

    #[test]
    fn json_has_the_exception_of_the_tool() {
        let details =
            br#"{"data": {"id": 7}, "args": ["tea"], "attributes": {"item": "tea"}, "notes": ["a note"], "cause": {"type": "KeyError", "message": "7"}}"#;
        let failure = pb::ToolFailure {
            r#type: "shop.NoItem".into(),
            message: "no item".into(),
            code: "not_found".into(),
            traceback: "in f".into(),
            details_json: details.to_vec().into(),
            ..pb::ToolFailure::default()
        };
        let json = Failure::new(Reason::ToolFailed, "no").exception(failure).as_json();
        let exception = &json["exception"];
        assert_eq!((&json["traceback"], &exception["traceback"]), (&"in f".into(), &"in f".into()));
        assert_eq!((&exception["type"], &exception["code"]), (&"shop.NoItem".into(), &"not_found".into()));
        assert_eq!((&exception["data"]["id"], &exception["notes"][0]), (&7.into(), &"a note".into()));
        assert_eq!(exception["cause"]["type"], "KeyError");
        assert_eq!((&exception["args"][0], &exception["attributes"]["item"]), (&"tea".into(), &"tea".into()));
    }
}
