//! [`PayloadError`], the error of creating or reading a payload.

use super::{Dtype, ValueType};
use crate::SharedError;

/// An error of creating or reading a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The name is not one of [`ValueType`].
    #[error(
        "unknown value type `{name}`; one of float, integer, string, boolean, choice, module, embedding, tensor, map, list, null, bytes"
    )]
    #[non_exhaustive]
    UnknownType {
        /// The name.
        name: String,
    },
    /// The Rust value does not serialize to JSON.
    #[error("value cannot be serialized to JSON")]
    #[non_exhaustive]
    Serialize {
        /// The error of serde.
        source: SharedError,
    },
    /// The payload's JSON does not match the requested Rust type.
    #[error("{ty} value does not fit {target}")]
    #[non_exhaustive]
    Deserialize {
        /// The payload's type.
        ty: ValueType,
        /// The Rust type.
        target: &'static str,
        /// The error of serde.
        source: SharedError,
    },
    /// The JSON does not match the declared type.
    #[error("value is declared as {ty}, but it is {found}")]
    #[non_exhaustive]
    Mismatch {
        /// The declared type.
        ty: ValueType,
        /// The kind of the JSON.
        found: &'static str,
    },
    /// The value has bytes or arrays inside it whose references to its buffers are invalid.
    #[error("value {problem}")]
    #[non_exhaustive]
    Nested {
        /// The reason.
        problem: String,
    },
    /// The number of items does not match the shape of the array.
    #[error("a tensor of shape {shape:?} cannot have {items} items")]
    #[non_exhaustive]
    Shape {
        /// The length of each axis.
        shape: Vec<usize>,
        /// The number of items.
        items: usize,
    },
    /// The value is not an array with a raw buffer, or its buffer does not match its metadata.
    #[error("{ty} value is not an array: {problem}")]
    #[non_exhaustive]
    NotAnArray {
        /// The payload's type.
        ty: ValueType,
        /// The reason.
        problem: String,
    },
    /// The items of the array have another data type than requested.
    #[error("the array has items of {found}, not {expected}; read it with another type")]
    #[non_exhaustive]
    Dtype {
        /// The requested data type.
        expected: Dtype,
        /// The name of the data type in the metadata.
        found: String,
    },
    /// The array has another number of axes than requested.
    #[error("the array has shape {shape:?}, which does not have {expected} axes")]
    #[non_exhaustive]
    Axes {
        /// The length of each axis.
        shape: Vec<usize>,
        /// The requested number of axes.
        expected: usize,
    },
}

impl PayloadError {
    /// Creates the error of a type that is not one of [`ValueType`].
    #[must_use]
    pub fn unknown_type(name: impl Into<String>) -> Self {
        Self::UnknownType { name: name.into() }
    }
}
