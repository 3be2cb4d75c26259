//! [`Metadata`]: the description of a raw buffer.

use bytes::Bytes;
use pyo3::{exceptions::PyValueError, prelude::*};
use serde::{Deserialize, Serialize};

/// The container name of lists in the metadata.
pub(super) const LIST: &str = "list";

/// The JSON that accompanies a raw buffer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Metadata {
    #[serde(rename = "type", default)]
    pub(super) ty: String,
    #[serde(default)]
    pub(super) shape: Vec<usize>,
    #[serde(default)]
    pub(super) dtype: String,
    /// Clients that omit the format send raw data.
    #[serde(default = "raw")]
    pub(super) binary_format: String,
    /// The Python type of the value if it was not an array. Hosts and other clients pass it on or ignore it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) container: String,
}

fn raw() -> String {
    "raw".to_owned()
}

impl Metadata {
    pub(super) fn to_json(&self) -> PyResult<Bytes> {
        let json = serde_json::to_vec(self).map_err(|e| PyValueError::new_err(e.to_string()))?;
        Ok(json.into())
    }

    /// Parses metadata.
    ///
    /// # Errors
    /// `ValueError` if the JSON is malformed.
    pub(super) fn parse(metadata: &[u8]) -> PyResult<Self> {
        serde_json::from_slice(metadata)
            .map_err(|e| PyValueError::new_err(format!("the metadata of a binary value is malformed: {e}")))
    }
}
