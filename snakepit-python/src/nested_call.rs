//! Calls that a tool makes to other tools of its host, wherever they run.

use std::collections::BTreeMap;

use pyo3::{prelude::*, types::PyDict};
use snakepit_proto::{pb, status::failure_of};
use snakepit_session::Payload;
use snakepit_wire::{payload_from_wire, payload_to_wire};
use tonic::Status;

use crate::{
    call::Call,
    caller::Caller,
    errors::HostError,
    host::{Host, RequestKind},
    value::{self, Purpose},
};

/// Creates the request for a call in the session of `call`.
///
/// # Errors
/// The exception for an argument that cannot be sent.
pub(crate) fn request(
    call: &Call,
    name: &str,
    arguments: &Bound<'_, PyDict>,
) -> PyResult<pb::ExecuteToolRequest> {
    let (mut parameters, mut binary_parameters) = (BTreeMap::new(), BTreeMap::new());
    for (key, argument) in arguments {
        let key: String = key.extract()?;
        let description = format_args!("argument `{key}` of tool `{name}`");
        let (value, buffer) = payload_to_wire(value::from_python(&argument, Purpose::Argument, description)?);
        if let Some(buffer) = buffer {
            binary_parameters.insert(key.clone(), buffer);
        }
        parameters.insert(key, value);
    }
    Ok(pb::ExecuteToolRequest {
        session_id: call.session_id.clone(),
        tool_name: name.to_owned(),
        parameters,
        binary_parameters,
        ..pb::ExecuteToolRequest::default()
    })
}

/// Calls a tool and decodes its answer. The request names the worker, so the host knows which call waits for the answer.
pub(crate) async fn execute(
    host: &Host,
    caller: &Caller,
    request: pb::ExecuteToolRequest,
) -> Result<Payload, HostError> {
    let tool = request.tool_name.clone();
    let response = host.request(caller, RequestKind::Write, request).await?;
    let pb::ExecuteToolResponse { success, result, error_message, binary_result, failure, .. } = response;
    if !success {
        let failure =
            failure.unwrap_or(pb::ToolFailure { message: error_message, ..pb::ToolFailure::default() });
        return Err(HostError::CalledToolFailed(Box::new(failure)));
    }
    let buffer = (!binary_result.is_empty()).then_some(binary_result);
    payload_from_wire(result.unwrap_or_default(), buffer).map_err(|error| {
        let message = format!("the answer of tool `{tool}` cannot be read: {error}");
        HostError::CalledToolFailed(Box::new(pb::ToolFailure { message, ..pb::ToolFailure::default() }))
    })
}

/// Converts the status that ended a stream of a tool.
pub(crate) fn error_of(status: Status) -> HostError {
    match failure_of(&status) {
        Some(failure) => HostError::CalledToolFailed(Box::new(failure)),
        None => HostError::from(status),
    }
}
