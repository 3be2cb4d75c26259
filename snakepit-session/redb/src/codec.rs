//! The encoding of records: MessagePack with named fields, so that new versions can add fields.

use serde::{Serialize, de::DeserializeOwned};
use snakepit_session::SessionError;

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, SessionError> {
    rmp_serde::to_vec_named(value)
        .map_err(|error| SessionError::Backend { problem: format!("cannot write a record: {error}") })
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SessionError> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| SessionError::Backend { problem: format!("cannot read a record: {error}") })
}
