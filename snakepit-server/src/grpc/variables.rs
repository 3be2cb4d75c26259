//! RPCs for the variables of a session.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::StreamExt;
use snakepit_proto::{
    MAX_MESSAGE_BYTES, pb,
    pb::variable::Source as WireSource,
    status::{Details, details_of},
};
use snakepit_session::{
    Batch, NewVariable, Note, Payload, SessionError, SetVariable, Source, ValueType, Variable, VariableId,
    VariableName, VariableType, VariableUpdate, VariableVersion, WatchEvent, error_chain,
};
use snakepit_wire::{payload_from_wire, payload_to_wire};
use tonic::{Request, Status};

use super::{
    bridge::Bridge,
    inline_buffers::{InlineBuffers as _, takes_buffers},
    open_ended::OpenEndedStream,
    request::{bounded, deadline, read_status, session_id, write_status},
};
use crate::{
    blocking::run_blocking,
    status::{answer_too_large, from_write_error, invalid_field},
};

/// The longest pattern of a listing, in bytes. The host matches it with the name of every variable.
const MAX_PATTERN_BYTES: usize = 1024;

pub(super) type Updates = Pin<Box<dyn Stream<Item = Result<pb::VariableUpdate, Status>> + Send>>;

impl Bridge {
    pub(super) async fn register_one(
        &self,
        request: pb::RegisterVariableRequest,
    ) -> Result<pb::RegisterVariableResponse, Status> {
        let pb::RegisterVariableRequest {
            session_id: id,
            name,
            r#type,
            initial_value,
            constraints_json,
            metadata,
            initial_binary_value,
        } = request;
        let id = session_id(&id)?;
        let name = VariableName::try_new(name).map_err(read_status)?;
        let kind = VariableType::parse_kind(&r#type).map_err(read_status)?;
        let ty = variable_type(kind, constraints_json).await.map_err(read_status)?;
        let value = value("initial_value", initial_value, initial_binary_value)?;
        let new = NewVariable { ty, value, note: Note::from_metadata(metadata) };
        let variable = self.host().sessions.register_variable(&id, &name, new).await.map_err(write_status)?;
        Ok(pb::RegisterVariableResponse {
            success: true,
            variable_id: variable.id.to_string(),
            error_message: String::new(),
        })
    }

    pub(super) async fn variable(
        &self,
        request: &pb::GetVariableRequest,
    ) -> Result<pb::GetVariableResponse, Status> {
        let id = session_id(&request.session_id)?;
        let identifier = identifier(&request.variable_identifier)?;
        let variable = self.host().sessions.variable(&id, identifier).await.map_err(read_status)?;
        Ok(pb::GetVariableResponse { variable: Some(variable_to_wire(variable)), from_cache: false })
    }

    pub(super) async fn set_one(
        &self,
        request: pb::SetVariableRequest,
    ) -> Result<pb::SetVariableResponse, Status> {
        let pb::SetVariableRequest {
            session_id: id,
            variable_identifier,
            value: any,
            metadata,
            expected_version,
            binary_value,
            check_version,
        } = request;
        let id = session_id(&id)?;
        identifier(&variable_identifier)?;
        let expected = version("expected_version", expected_version)?;
        let update = SetVariable {
            identifier: variable_identifier,
            value: value("value", any, binary_value)?,
            note: Note::from_metadata(metadata),
            expected_version: (check_version || expected != 0).then_some(expected),
        };
        let new_version = self.host().sessions.set_variable(&id, update).await.map_err(write_status)?;
        Ok(pb::SetVariableResponse {
            success: true,
            error_message: String::new(),
            new_version: version_to_wire(new_version),
        })
    }

    pub(super) async fn variables(
        &self,
        request: pb::BatchGetVariablesRequest,
    ) -> Result<pb::BatchGetVariablesResponse, Status> {
        let id = session_id(&request.session_id)?;
        let bound = |name| bounded("variable_identifiers", name, VariableId::MAX_BYTES);
        let identifiers =
            request.variable_identifiers.iter().map(|name| bound(name)).collect::<Result<Vec<_>, _>>()?;
        let variables = self.host().sessions.variables(&id, &identifiers).await.map_err(read_status)?;
        check_response_size(variables.iter().flatten().map(size))?;
        let mut response = pb::BatchGetVariablesResponse::default();
        for (identifier, variable) in request.variable_identifiers.into_iter().zip(variables) {
            let Some(variable) = variable else {
                response.missing_variables.push(identifier);
                continue;
            };
            let mut variable = variable_to_wire(variable);
            if !request.include_metadata {
                variable.metadata.clear();
            }
            response.variables.insert(identifier, variable);
        }
        Ok(response)
    }

    pub(super) async fn set_many(
        &self,
        request: pb::BatchSetVariablesRequest,
    ) -> Result<pb::BatchSetVariablesResponse, Status> {
        let pb::BatchSetVariablesRequest {
            session_id: id,
            updates,
            metadata,
            atomic,
            binary_updates: mut buffers,
            expected_versions: mut expected,
        } = request;
        let id = session_id(&id)?;
        let note = Note::from_metadata(metadata);
        let mut response = pb::BatchSetVariablesResponse::default();
        let mut writes = Vec::with_capacity(updates.len());
        let with_values: Vec<_> = updates
            .into_iter()
            .map(|(name, any)| {
                let buffer = buffers.remove(&name).unwrap_or_default();
                (name, Some(any), buffer)
            })
            .collect();
        // A buffer without a value of the same name is raw bytes, as in the arguments of a call.
        let buffers_only = buffers.into_iter().map(|(name, buffer)| (name, None, buffer));
        for (name, any, buffer) in with_values.into_iter().chain(buffers_only) {
            bounded("updates", &name, VariableId::MAX_BYTES)?;
            let field = format!("updates[{name}]");
            if name.is_empty() {
                return Err(invalid_field(&field, "has no name; give the variable's id or name"));
            }
            let expected_version = expected
                .remove(&name)
                .map(|expected| version(&format!("expected_versions[{name}]"), expected))
                .transpose()?;
            match value(&field, any, buffer) {
                Ok(value) => {
                    writes.push(SetVariable {
                        identifier: name,
                        value,
                        note: note.clone(),
                        expected_version,
                    });
                }
                Err(status) => {
                    reject_write(&mut response, name.clone(), status.message().to_owned(), &status);
                    // No variable accepts null, so the backend rejects the atomic batch and reports the reasons of all other writes.
                    if atomic {
                        writes.push(SetVariable::new(name, Payload::null()));
                    }
                }
            }
        }
        if let Some(name) = expected.keys().next() {
            bounded("expected_versions", name, VariableId::MAX_BYTES)?;
            return Err(invalid_field(&format!("expected_versions[{name}]"), "names none of the updates"));
        }
        let names: Vec<_> = writes.iter().map(|write| write.identifier.clone()).collect();
        let batch = if atomic { Batch::Atomic } else { Batch::Each };
        match self.host().sessions.set_variables(&id, writes, batch).await {
            Ok(outcomes) => {
                for (name, outcome) in names.into_iter().zip(outcomes) {
                    match outcome {
                        Ok(version) => drop(response.new_versions.insert(name, version_to_wire(version))),
                        Err(error) => {
                            reject_write(
                                &mut response,
                                name,
                                error_chain(&error).to_string(),
                                &from_write_error(&error),
                            );
                        }
                    }
                }
            }
            Err(SessionError::BatchRejected { errors }) => {
                for (name, error) in errors {
                    reject_write(
                        &mut response,
                        name,
                        error_chain(&error).to_string(),
                        &from_write_error(&error),
                    );
                }
            }
            Err(error) => return Err(write_status(error)),
        }
        response.success = response.errors.is_empty();
        Ok(response)
    }

    pub(super) async fn list(
        &self,
        request: &pb::ListVariablesRequest,
    ) -> Result<pb::ListVariablesResponse, Status> {
        let id = session_id(&request.session_id)?;
        let bytes = request.pattern.len();
        if bytes > MAX_PATTERN_BYTES {
            let problem = format_args!("has {bytes} bytes, the limit is {MAX_PATTERN_BYTES}");
            return Err(invalid_field("pattern", problem));
        }
        let variables =
            self.host().sessions.list_variables(&id, &request.pattern).await.map_err(read_status)?;
        check_response_size(variables.iter().map(size))?;
        Ok(pb::ListVariablesResponse { variables: variables.into_iter().map(variable_to_wire).collect() })
    }

    pub(super) async fn delete_one(
        &self,
        request: &pb::DeleteVariableRequest,
    ) -> Result<pb::DeleteVariableResponse, Status> {
        let id = session_id(&request.session_id)?;
        let identifier = identifier(&request.variable_identifier)?;
        self.host().sessions.delete_variable(&id, identifier).await.map_err(write_status)?;
        Ok(pb::DeleteVariableResponse { success: true, error_message: String::new() })
    }

    pub(super) async fn delete_many(
        &self,
        request: &pb::DeleteVariablesRequest,
    ) -> Result<pb::DeleteVariablesResponse, Status> {
        let id = session_id(&request.session_id)?;
        let bound = |name| bounded("variable_identifiers", name, VariableId::MAX_BYTES);
        let identifiers =
            request.variable_identifiers.iter().map(|name| bound(name)).collect::<Result<Vec<_>, _>>()?;
        let deleted = self.host().sessions.delete_variables(&id, &identifiers).await.map_err(write_status)?;
        Ok(pb::DeleteVariablesResponse { deleted: deleted.iter().map(Option::is_some).collect() })
    }

    pub(super) async fn watch(&self, request: Request<pb::WatchVariablesRequest>) -> Result<Updates, Status> {
        let (headers, extensions, request) = request.into_parts();
        let deadline = deadline(&headers, &extensions)?;
        let takes_buffers = takes_buffers(&headers);
        let pb::WatchVariablesRequest { session_id: id, variable_identifiers, include_initial_values } =
            request;
        let id = session_id(&id)?;
        for name_or_id in &variable_identifiers {
            identifier(name_or_id)?;
        }
        let sessions = &self.host().sessions;
        let watch = sessions.watch_variables(&id, &variable_identifiers, include_initial_values).await;
        let updates = watch.map_err(read_status)?.then(move |event| async move {
            match event {
                Ok(WatchEvent::Update(update)) => Ok(update_to_wire(update).for_client(takes_buffers).await),
                Ok(WatchEvent::Lost(lost_updates)) => Ok(pb::VariableUpdate {
                    update_type: "lost".to_owned(),
                    lost_updates,
                    ..pb::VariableUpdate::default()
                }),
                Err(error) => Err(read_status(error)),
            }
        });
        Ok(Box::pin(OpenEndedStream::new(updates, self.host().stop.clone()).with_deadline(deadline)))
    }

    pub(super) async fn history(
        &self,
        request: &pb::GetVariableHistoryRequest,
    ) -> Result<pb::GetVariableHistoryResponse, Status> {
        let id = session_id(&request.session_id)?;
        let identifier = identifier(&request.variable_identifier)?;
        let limit = usize::try_from(request.limit)
            .map_err(|_| invalid_field("limit", "is negative; use 0 for all stored versions"))?;
        let versions =
            self.host().sessions.variable_history(&id, identifier, limit).await.map_err(read_status)?;
        check_response_size(versions.iter().map(|version| version.value.size()))?;
        Ok(pb::GetVariableHistoryResponse { entries: versions.into_iter().map(version_entry).collect() })
    }

    pub(super) async fn rollback(
        &self,
        request: pb::RollbackVariableRequest,
    ) -> Result<pb::RollbackVariableResponse, Status> {
        let id = session_id(&request.session_id)?;
        let identifier = identifier(&request.variable_identifier)?;
        let target = version("target_version", request.target_version)?;
        let note = Note::from_metadata(request.metadata);
        let variable = self.host().sessions.rollback_variable(&id, identifier, target, note).await;
        Ok(pb::RollbackVariableResponse {
            success: true,
            variable: Some(variable_to_wire(variable.map_err(write_status)?)),
            error_message: String::new(),
        })
    }
}

/// Parses a type. Constraints are parsed on a blocking thread, because compiling a regular expression takes milliseconds.
async fn variable_type(kind: ValueType, constraints: String) -> Result<Arc<VariableType>, SessionError> {
    if constraints.is_empty() {
        return VariableType::new(kind);
    }
    run_blocking(move || VariableType::with_constraints(kind, &constraints)).await
}

/// Checks the id or name of a variable, which must not be empty.
fn identifier(identifier: &str) -> Result<&str, Status> {
    if identifier.is_empty() {
        return Err(invalid_field("variable_identifier", "is empty; give the variable's id or name"));
    }
    bounded("variable_identifier", identifier, VariableId::MAX_BYTES)
}

fn value(field: &str, any: Option<pb::Any>, buffer: Bytes) -> Result<Payload, Status> {
    let buffer = (!buffer.is_empty()).then_some(buffer);
    if any.is_none() && buffer.is_none() {
        return Err(invalid_field(field, "is missing"));
    }
    payload_from_wire(any.unwrap_or_default(), buffer)
        .map_err(|error| invalid_field(field, format_args!("cannot be read: {error}")))
}

fn version(field: &str, version: i32) -> Result<u32, Status> {
    u32::try_from(version)
        .map_err(|_| invalid_field(field, format_args!("is {version}, but versions start at 0")))
}

/// Versions on the wire are int32; larger ones become the largest.
fn version_to_wire(version: u32) -> i32 {
    i32::try_from(version).unwrap_or(i32::MAX)
}

/// Records why one write of a batch was rejected, with the reason that the status of a single write has. Keeps the first reason of
/// each variable.
fn reject_write(
    response: &mut pb::BatchSetVariablesResponse,
    name: String,
    message: String,
    status: &Status,
) {
    if !response.errors.contains_key(&name) {
        let Details { reason, metadata, .. } = details_of(status);
        let code = status.code().into();
        let reason = pb::ErrorReason { code, reason: reason.unwrap_or_default(), metadata };
        response.reasons.insert(name.clone(), reason);
        response.errors.insert(name, message);
    }
}

/// The approximate encoded size of a variable, in bytes.
fn size(variable: &Variable) -> usize {
    let metadata = variable.metadata.iter().map(|(key, value)| key.len() + value.len() + 16);
    variable.value.size() + variable.ty.constraints_json().len() + metadata.sum::<usize>() + 1024
}

/// Checks that values fit into one response. Without this check, the client would receive a generic error of the transport.
fn check_response_size(sizes: impl Iterator<Item = usize>) -> Result<(), Status> {
    let size: usize = sizes.sum();
    if size > MAX_MESSAGE_BYTES {
        return Err(answer_too_large(
            "the requested values",
            size,
            MAX_MESSAGE_BYTES,
            "request fewer in one call",
        ));
    }
    Ok(())
}

fn variable_to_wire(variable: Variable) -> pb::Variable {
    let Variable { id, name, ty, value, version, metadata, source, updated_at } = variable;
    let (value, buffer) = payload_to_wire(value);
    pb::Variable {
        id: id.to_string(),
        name: name.to_string(),
        r#type: ty.kind().to_string(),
        value: Some(value),
        constraints_json: ty.constraints_json().to_owned(),
        metadata: (&metadata).into(),
        source: source_to_wire(source),
        last_updated_at: Some(updated_at.into()),
        version: version_to_wire(version),
        access_control_json: String::new(),
        optimization_status: None,
        binary_value: buffer.unwrap_or_default(),
    }
}

fn source_to_wire(source: Source) -> i32 {
    match source {
        Source::Host => WireSource::Elixir.into(),
        Source::Python => WireSource::Python.into(),
    }
}

fn update_to_wire(update: VariableUpdate) -> pb::VariableUpdate {
    let VariableUpdate { kind, variable, note } = update;
    pb::VariableUpdate {
        variable_id: variable.id.to_string(),
        update_source: note.author().to_owned(),
        update_metadata: (&note.metadata).into(),
        timestamp: Some(variable.updated_at.into()),
        update_type: kind.as_str().to_owned(),
        lost_updates: 0,
        variable: Some(variable_to_wire(variable)),
    }
}

fn version_entry(version: VariableVersion) -> pb::VariableHistoryEntry {
    let VariableVersion { version, value, at, note } = version;
    let (value, buffer) = payload_to_wire(value);
    pb::VariableHistoryEntry {
        version: version_to_wire(version),
        value: Some(value),
        timestamp: Some(at.into()),
        changed_by: note.author().to_owned(),
        source: source_to_wire(note.source),
        metadata: (&note.metadata).into(),
        binary_value: buffer.unwrap_or_default(),
    }
}
