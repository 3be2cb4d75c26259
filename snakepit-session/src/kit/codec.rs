//! The encoding of records: MessagePack with named fields, so that new releases can add fields.

use serde::{Serialize, de::DeserializeOwned};

use crate::SessionError;

/// Encodes a record.
///
/// # Errors
/// [`SessionError::Backend`] if the value cannot be serialized.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, SessionError> {
    rmp_serde::to_vec_named(value)
        .map_err(|error| SessionError::backend("cannot write a record").with_source(error))
}

/// Decodes a record.
///
/// # Errors
/// [`SessionError::Backend`] if the bytes are not a record of this type.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SessionError> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| SessionError::backend("cannot read a record").with_source(error))
}
