//! [`HostError`]: the error of a host tool, and the Python exception that it becomes.

use std::{error::Error, fmt};

use serde::Serialize;
use snakepit_session::{Payload, error_chain};

use crate::{ToolFailure, answer::short_type_name};

/// The error of a host tool. It chooses what callers receive: a code and data for programs, and the class of the exception in
/// Python.
///
/// Every error type converts to it with `?`. The result keeps the name of the type, and its message includes the error's sources.
/// A [`ToolFailure`] converts with all of its parts.
///
/// In Python, the exception is a `HostToolError`, unless [`python_type`](Self::python_type) names another class. It has the
/// attributes `code` and `data`. Callers in Rust find both in [`ToolFailure`].
///
/// ```
/// use serde_json::json;
/// use snakepit_registry::{FnTool, HostError, ToolCall, ToolHandler};
///
/// async fn find(key: Option<u32>) -> Result<u32, HostError> {
///     let number: u32 = "7".parse()?; // any error
///     key.map(|key| key + number)
///         .ok_or_else(|| HostError::new("no such item").code("not_found").data(json!({"left": 3})).python_type("KeyError"))
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let tool = FnTool::new("find", || find(None));
/// let error = tool.call(ToolCall::new("find")).await.unwrap_err();
/// let failure = error.failure().unwrap();
/// assert_eq!((failure.code.as_str(), failure.python_type.as_str()), ("not_found", "KeyError"));
/// assert_eq!(failure.data, Some(json!({"left": 3})));
/// # }
/// ```
// Does not implement `Error`, because that would conflict with the conversion from every `Error`.
#[derive(Clone, PartialEq, Eq)]
pub struct HostError(Box<ToolFailure>);

impl HostError {
    /// Creates an error with this message. Its [`error_type`](ToolFailure::error_type) in Rust is `HostToolError`.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(Box::new(ToolFailure {
            error_type: short_type_name::<String>().to_owned(),
            message: message.into(),
            ..ToolFailure::default()
        }))
    }

    /// Sets a name of the error for programs, such as `not_found`.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.0.code = code.into();
        self
    }

    /// Attaches a value, such as `json!({"left": 3})` or a struct. A value that does not serialize to JSON is omitted. Keep the
    /// value below 2 KiB: gRPC sends the error of a stream in headers, so the host omits larger values there.
    #[must_use]
    pub fn data(mut self, data: impl Serialize) -> Self {
        self.0.data = Payload::try_from_serde(&data).and_then(|data| data.to_serde()).ok();
        self
    }

    /// Sets the class of the exception in Python: a builtin such as `KeyError`, or an importable class as `module:Class`. Python
    /// constructs it with the message as the only argument. If that fails, or the class is not an exception, Python raises
    /// `HostToolError`.
    #[must_use]
    pub fn python_type(mut self, class: impl Into<String>) -> Self {
        self.0.python_type = class.into();
        self
    }

    /// The failure that callers receive.
    #[must_use]
    pub fn failure(&self) -> &ToolFailure {
        &self.0
    }

    pub(crate) fn into_failure(self) -> Box<ToolFailure> {
        self.0
    }
}

/// Converts a failure with all of its parts. Use it to forward the failure of another tool, or to imitate a Python exception in a
/// test.
///
/// ```
/// use snakepit_registry::{FnTool, HostError, ToolCall, ToolFailure, ToolHandler};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // Takes the place of a Python tool that raises `shop.OutOfStock`.
/// let price = FnTool::new("price", || async {
///     let (error_type, message) = ("shop.OutOfStock".to_owned(), "no tea".to_owned());
///     Err::<f64, _>(HostError::from(ToolFailure::new(error_type, message)))
/// });
///
/// let error = price.call(ToolCall::new("price")).await.unwrap_err();
/// assert_eq!(error.error_type(), Some("shop.OutOfStock"));
/// # }
/// ```
impl From<ToolFailure> for HostError {
    fn from(failure: ToolFailure) -> Self {
        Self(Box::new(failure))
    }
}

impl<E: Error + 'static> From<E> for HostError {
    fn from(error: E) -> Self {
        let mut this = Self::new(error_chain(&error).to_string());
        short_type_name::<E>().clone_into(&mut this.0.error_type);
        this
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ToolFailure { error_type, message, code, data, python_type, .. } = &*self.0;
        f.debug_struct("HostError")
            .field("error_type", error_type)
            .field("message", message)
            .field("code", code)
            .field("data", data)
            .field("python_type", python_type)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IntoAnswer;

    #[derive(Debug, thiserror::Error)]
    #[error("the shelf {0} is empty")]
    struct Empty(u8, #[source] std::num::ParseIntError);

    #[test]
    fn any_error_converts_with_its_type_and_its_sources() {
        let parse = || "x".parse::<u8>().unwrap_err();
        let error = HostError::from(Empty(3, parse())).code("empty");
        let expected = ("Empty", "the shelf 3 is empty: invalid digit found in string", "empty");
        let failure = error.failure();
        assert_eq!((failure.error_type.as_str(), failure.message.as_str(), failure.code.as_str()), expected);
        let wrapped = HostError::from(std::io::Error::other(parse()));
        assert_eq!(wrapped.to_string(), "invalid digit found in string", "no text appears twice");
    }

    #[test]
    fn the_error_of_an_answer_keeps_its_parts() {
        let error = HostError::new("no").code("c").data([1]).python_type("KeyError");
        let failure = Err::<(), _>(error.clone()).into_answer().unwrap_err();
        assert_eq!(*failure, *error.failure());
        assert_eq!(
            (failure.error_type.as_str(), failure.data),
            ("HostToolError", Some(serde_json::json!([1])))
        );
    }
}
