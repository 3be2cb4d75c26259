//! [`Fault`]: a protocol-neutral error. Every protocol converts it to its own form, so all of them report the same error in the
//! same way.
//!
//! ```text
//! ToolError, SessionError, errors of requests ──> Fault ──> gRPC status (snakepit-wire)
//!                                                       ├──> problem document (RFC 9457)
//!                                                       └──> JSON-RPC error object, as in MCP
//! ```

mod convert;
mod json;
#[cfg(test)]
mod tests;

use std::time::Duration;

use snakepit_reason::{Code, DELIVERED, Reason};

use crate::ToolFailure;

/// A protocol-neutral error for a client.
///
/// The [table of reasons](Reason) determines its codes. Create one from a [`ToolError`](crate::ToolError) or a
/// [`SessionError`](snakepit_session::SessionError):
///
/// ```
/// use snakepit_registry::{Code, Fault, Principal, Reason, ToolError};
///
/// let fault = Fault::from(ToolError::not_found("ad").with_suggestion("add".to_owned()));
/// assert_eq!((fault.reason, fault.code(), fault.http_status()), (Reason::ToolNotFound, Code::NotFound, 404));
///
/// let reader = Principal::remote();
/// let problem = fault.to_problem(&reader);
/// assert_eq!((&problem["status"], &problem["reason"]), (&404.into(), &"TOOL_NOT_FOUND".into()));
/// assert_eq!(fault.to_json_rpc_error(&reader)["code"], -32602);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Fault {
    /// The machine-readable reason.
    pub reason: Reason,
    /// The message for people, without output of workers.
    pub message: String,
    /// The invalid fields or arguments.
    pub violations: Vec<Violation>,
    /// The exception of the tool, or the last output of a lost worker.
    pub failure: Option<Box<ToolFailure>>,
    /// Additional data, from which clients reconstruct the error.
    pub entries: Vec<(&'static str, String)>,
    /// The end of the message, for readers that are [local](crate::Principal::is_local).
    internals: String,
    may_have_run: bool,
    code: Code,
    /// `Some` if a gRPC status carries the field `RetryInfo`, with the delay if it is known.
    retry: Option<Option<Duration>>,
}

/// An invalid field of a request, or an invalid argument of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// The path of the field, or the name of the argument.
    pub field: String,
    /// The problem, as a predicate: "is missing".
    pub description: String,
}

impl Violation {
    /// Creates a violation.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

impl Fault {
    /// Creates a fault of a request that did not run.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            internals: String::new(),
            may_have_run: false,
            violations: Vec::new(),
            failure: None,
            entries: Vec::new(),
            code: reason.code(),
            retry: None,
        }
    }

    /// Selects another of the [codes](Reason::codes) of the reason. A code that the reason does not have is ignored.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        if self.reason.codes().contains(&code) {
            self.code = code;
        }
        self
    }

    /// Adds an entry.
    #[must_use]
    pub fn with_entry(mut self, key: &'static str, value: &(impl ToString + ?Sized)) -> Self {
        self.entries.push((key, value.to_string()));
        self
    }

    /// Adds entries.
    #[must_use]
    pub fn with_entries(mut self, entries: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        self.entries.extend(entries);
        self
    }

    /// Sets whether the request may have run, and adds the entry `delivered`, for reasons that do not imply it.
    #[must_use]
    pub fn with_may_have_run(mut self, may_have_run: bool) -> Self {
        self.may_have_run = may_have_run;
        self.entries.retain(|(key, _)| *key != DELIVERED);
        self.with_entry(DELIVERED, &may_have_run)
    }

    /// Adds an invalid field or argument.
    #[must_use]
    pub fn with_violation(mut self, field: impl Into<String>, description: impl Into<String>) -> Self {
        self.violations.push(Violation::new(field, description));
        self
    }

    /// Marks the fault as worth a retry, after this time if it is known.
    #[must_use]
    pub const fn with_retry(mut self, after: Option<Duration>) -> Self {
        self.retry = Some(after);
        self
    }

    /// Adds the exception of the tool, or the last output of a lost worker.
    #[must_use]
    pub fn with_failure(mut self, failure: Box<ToolFailure>) -> Self {
        self.failure = Some(failure);
        self
    }

    /// Whether the tool may have begun to run, or the write may have happened. If not, a retry is safe.
    #[must_use]
    pub const fn may_have_run(&self) -> bool {
        self.may_have_run
    }

    /// Returns the message with the output of workers, for a reader that is [local](crate::Principal::is_local).
    #[doc(hidden)]
    #[must_use]
    pub fn full_message(&self) -> String {
        format!("{}{}", self.message, self.internals)
    }

    /// The gRPC code. For a tool failure, the code that the tool chose, if it is [the name of one](Code::of_failure).
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The HTTP status, for a problem document.
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        if self.has_code_of_tool() { self.code.http_status() } else { self.reason.http_status() }
    }

    /// The code of a JSON-RPC error object, as in MCP.
    #[must_use]
    pub const fn json_rpc_code(&self) -> i32 {
        if self.has_code_of_tool() { -32020 - self.code.number() } else { self.reason.json_rpc_code() }
    }

    /// Whether the tool chose the code.
    const fn has_code_of_tool(&self) -> bool {
        matches!(self.reason, Reason::ToolFailed) && !matches!(self.code, Code::Internal)
    }

    /// The time after which a retry may succeed, if it is known. In HTTP, the header `Retry-After` carries it in whole seconds.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self.retry {
            Some(after) => after,
            None => None,
        }
    }

    /// Whether a gRPC status carries a `google.rpc.RetryInfo`, and its delay.
    #[doc(hidden)]
    #[must_use]
    pub const fn retry_info(&self) -> Option<Option<Duration>> {
        self.retry
    }
}
