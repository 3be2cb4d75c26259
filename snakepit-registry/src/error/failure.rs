//! [`ToolFailure`]: the exception of a tool, with the exceptions to which it is linked.

use std::{collections::BTreeMap, fmt, iter::successors};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The [`ToolFailure::error_type`] of a host tool that panicked.
pub(crate) const PANIC: &str = "panic";

/// The exception that a tool raised.
///
/// ```
/// use snakepit_registry::ToolFailure;
///
/// let failure = ToolFailure::new("shop.OutOfStock", "no tea left").with_code("out_of_stock");
/// assert_eq!(failure.to_string(), "shop.OutOfStock: no tea left");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolFailure {
    /// The tool that failed.
    pub tool: String,
    /// The exception's type as a Python traceback prints it, with its module unless it is a builtin: `ValueError`,
    /// `shop.OutOfStock`, `shop.Shelf.Empty`. Empty if the worker did not report it.
    ///
    /// For a host tool, the name of its Rust error type without the module, such as `ParseIntError`. It is `HostToolError` for
    /// text and for `HostError::new`, and `panic` for a panic.
    pub error_type: String,
    /// The exception's message.
    pub message: String,
    /// The formatted traceback. Empty if there is none.
    pub traceback: String,
    /// The id of the worker that ran the call. Empty for a host tool.
    pub worker: String,
    /// The last lines that the worker wrote to stdout and stderr, oldest first.
    pub output_lines: Vec<String>,
    /// A name of the error for programs, such as `not_found`, which the tool chose. Empty if there is none.
    pub code: String,
    /// A value that the tool attached to the error.
    pub data: Option<Value>,
    /// The arguments of the Python exception, without those that have no JSON form.
    pub args: Vec<Value>,
    /// The attributes of the Python exception that its class publishes in `__snakepit_attributes__`, without those that have no
    /// JSON form.
    pub attributes: BTreeMap<String, Value>,
    /// For a host tool, the exception class that the tool chose and Python raises: a builtin such as `KeyError`, or
    /// `module:Class`. Empty for `HostToolError`. Also empty for a worker tool, whose class is the `error_type`.
    pub python_type: String,
    /// The names of the fields that were omitted because they are too large: `args`, `attributes`, `data`, `notes`, `cause`,
    /// `context`, `exceptions`.
    pub omitted: Vec<String>,
    /// The notes that the Python tool added with `add_note`.
    pub notes: Vec<String>,
    /// The exception from which the Python tool raised this one: `raise .. from cause`.
    pub cause: Option<Box<ChainedException>>,
    /// The exception that the Python tool was handling when it raised this one, unless it is the cause or `from None` hides it.
    pub context: Option<Box<ChainedException>>,
    /// The members, if the exception is an `ExceptionGroup`.
    pub exceptions: Vec<ChainedException>,
}

impl fmt::Display for ToolFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The message of a panic names it already.
        if self.error_type.is_empty() || self.error_type == PANIC {
            f.write_str(&self.message)
        } else if self.message.is_empty() {
            f.write_str(&self.error_type)
        } else {
            write!(f, "{}: {}", self.error_type, self.message)
        }
    }
}

macro_rules! setters {
    ($($method:ident($field:ident: $ty:ty);)*) => {
        $(
            #[doc = concat!("Sets the field [`", stringify!($field), "`](Self::", stringify!($field), ").")]
            #[must_use]
            pub fn $method(mut self, $field: impl Into<$ty>) -> Self {
                self.$field = $field.into();
                self
            }
        )*
    };
}

impl ToolFailure {
    /// Creates a failure with the type of the exception, such as `ValueError` or `shop.OutOfStock`, and its message.
    pub fn new(error_type: impl Into<String>, message: impl Into<String>) -> Self {
        Self { error_type: error_type.into(), message: message.into(), ..Self::default() }
    }

    setters! {
        with_tool(tool: String);
        with_traceback(traceback: String);
        with_worker(worker: String);
        with_output_lines(output_lines: Vec<String>);
        with_code(code: String);
        with_data(data: Option<Value>);
        with_args(args: Vec<Value>);
        with_attributes(attributes: BTreeMap<String, Value>);
        with_python_type(python_type: String);
        with_notes(notes: Vec<String>);
    }

    /// Sets the field [`cause`](Self::cause).
    #[must_use]
    pub fn with_cause(mut self, cause: ChainedException) -> Self {
        self.cause = Some(Box::new(cause));
        self
    }

    /// Iterates over the exceptions that led to this one, as Python's traceback shows them: of each exception the cause or, without
    /// one, the context. The last one is the root cause.
    ///
    /// ```
    /// use snakepit_registry::{ChainedException, ToolFailure};
    ///
    /// let mut lookup = ChainedException::new("KeyError", "'tea'");
    /// lookup.notes.push("while reading shelf 3".into());
    /// let failure = ToolFailure::new("shop.OutOfStock", "no tea left").with_cause(lookup);
    /// let root = failure.causes().last().unwrap();
    /// assert_eq!((root.to_string(), root.notes.len()), ("KeyError: 'tea'".into(), 1));
    /// ```
    pub fn causes(&self) -> impl Iterator<Item = &ChainedException> {
        successors(self.cause.as_deref().or(self.context.as_deref()), |exception| {
            exception.cause.as_deref().or(exception.context.as_deref())
        })
    }

    /// Removes the fields that reveal code and paths of the tool, or output of its worker: the traceback, the notes, and the
    /// exceptions to which this one is linked.
    pub(crate) fn redact(&mut self) {
        self.traceback = String::new();
        self.output_lines = Vec::new();
        self.notes = Vec::new();
        self.cause = None;
        self.context = None;
        self.exceptions = Vec::new();
    }
}

/// An exception to which the exception of a Python tool is linked: its cause, its context, or a member of its group.
///
/// Its JSON form is the one that `details_json` uses in the protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChainedException {
    /// The exception's type, as in [`ToolFailure::error_type`].
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub error_type: String,
    /// The exception's message.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The exception's own frames, as a traceback prints them. Empty if it was not raised.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub traceback: String,
    /// The code of a `ToolError`. Empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The value that is attached to a `ToolError`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// The exception's arguments, without those that have no JSON form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Value>,
    /// The exception's published attributes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Value>,
    /// The notes of `add_note`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The exception from which this one was raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<Self>>,
    /// The exception that was handled when this one was raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<Box<Self>>,
    /// The members of an `ExceptionGroup`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Self>,
    /// The names of the fields that were omitted because they are too large.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<String>,
}

impl ChainedException {
    /// Creates an exception of this type with this message.
    pub fn new(error_type: impl Into<String>, message: impl Into<String>) -> Self {
        Self { error_type: error_type.into(), message: message.into(), ..Self::default() }
    }
}

impl fmt::Display for ChainedException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.error_type, &*self.message) {
            (name, "") => f.write_str(name),
            ("", message) => f.write_str(message),
            (name, message) => write!(f, "{name}: {message}"),
        }
    }
}
