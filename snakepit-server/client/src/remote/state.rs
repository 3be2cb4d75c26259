//! Session operations on a remote host: one RPC each.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::StreamExt;
use snakepit_proto::{pb, status::check_request_size};
use snakepit_registry::{ToolCall, ToolError, ToolReply};
use snakepit_session::{
    Batch, Created, NewSession, NewVariable, Note, Payload, Program, ProgramInfo, ProgramName, Session,
    SessionError, SessionId, SetVariable, Source, UpdateKind, Variable, VariableId, VariableName,
    VariableType, VariableUpdate, VariableVersion, WatchEvent,
};
use snakepit_wire::{payload_from_wire, payload_to_wire, read_ahead};
use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, Response};

use super::{
    MAX_WATCHES, RemoteHost,
    closing::{UntilClosed, closed},
    is_of_proxy,
};
use crate::{
    Error, EventStream, HostHandle, status::session_error, trace::attach_current_trace,
    transport::BridgeClient,
};

/// Sends a request that changes state, and waits for its response up to the request timeout. It is a macro because each RPC is
/// a separate method of the generated client.
macro_rules! write_rpc {
    ($host:ident, $rpc:literal, $method:ident($request:expr)) => {{
        let request = $request;
        let timeout = $host.0.options.request_timeout;
        check_request_size(&request).map_err(|status| timeout.error($rpc, &status))?;
        let send = |mut client: BridgeClient| {
            let request = timeout.apply(request.clone());
            async move { client.$method(request).await }
        };
        $host.0.until_cut(timeout.within($rpc, $host.0.request(false, send))).await?
    }};
}

/// Sends an idempotent request and returns the result. Unlike `write_rpc!`, repeats it when the connection breaks.
macro_rules! repeatable_rpc {
    ($host:ident, $rpc:literal, $method:ident($request:expr)) => {{
        let (request, timeout) = ($request, $host.0.options.request_timeout);
        let send = |mut client: BridgeClient| {
            let request = timeout.apply(request.clone());
            async move { client.$method(request).await }
        };
        $host.0.until_cut(timeout.within($rpc, $host.0.request(true, send))).await
    }};
}

/// Sends a request that only reads. Returns the response, and returns from the function on an error.
macro_rules! read_rpc {
    ($host:ident, $rpc:literal, $method:ident($request:expr)) => {
        $crate::remote::state::repeatable_rpc!($host, $rpc, $method($request))
            .map_err($crate::Error::into_read_error)?
    };
}

pub(super) use read_rpc;
pub(super) use repeatable_rpc;
pub(super) use write_rpc;

impl crate::host::sealed::Sealed for RemoteHost {}

impl RemoteHost {
    /// Deletes variables on a host of an earlier version, which cannot delete several in one step.
    async fn delete_one_by_one(&self, id: &SessionId, identifiers: &[&str]) -> Result<Vec<bool>, Error> {
        if identifiers.is_empty() {
            self.find_variables(id, identifiers).await?;
        }
        let mut deleted = Vec::with_capacity(identifiers.len());
        for identifier in identifiers {
            deleted.push(match self.delete_variable(id, identifier).await {
                Ok(()) => true,
                Err(Error::Session(SessionError::VariableNotFound { .. })) => false,
                Err(error) => return Err(error),
            });
        }
        Ok(deleted)
    }
}

impl HostHandle for RemoteHost {
    async fn call(&self, mut call: Box<ToolCall>) -> Result<ToolReply, ToolError> {
        attach_current_trace(&mut call);
        if call.deadline.is_none()
            && let Some(timeout) = self.0.options.default_timeout
        {
            call.deadline = Instant::now().checked_add(timeout);
        }
        // Boxed, so that the large future of a remote call does not become part of the caller's.
        match call.wait_for_room() {
            None => Box::pin(self.0.call(*call)).await,
            Some(limit) => Box::pin(self.0.call_with_wait_for_room(*call, limit)).await,
        }
    }

    async fn open_session(&self, id: &SessionId, new: NewSession) -> Result<(), Error> {
        let NewSession { metadata, ttl } = new;
        let request = pb::InitializeSessionRequest {
            session_id: id.to_string(),
            metadata,
            ttl_seconds: ttl.map_or(0, whole_seconds),
            ..pb::InitializeSessionRequest::default()
        };
        repeatable_rpc!(self, "InitializeSession", initialize_session(request)).map(drop)
    }

    async fn delete_session(&self, id: &SessionId) -> Result<(), Error> {
        let request = pb::CleanupSessionRequest { session_id: id.to_string(), force: false };
        write_rpc!(self, "CleanupSession", cleanup_session(request));
        Ok(())
    }

    async fn session(&self, id: &SessionId) -> Result<Session, Error> {
        let request = pb::GetSessionRequest { session_id: id.to_string() };
        let session = read_rpc!(self, "GetSession", get_session(request));
        Ok(Session {
            id: id.clone(),
            metadata: session.metadata.into(),
            created_at: time(session.created_at),
            expires_in: Duration::from_millis(session.expires_in_ms),
            ttl: Duration::from_millis(session.ttl_ms),
            program_count: count(session.program_count),
            variable_count: count(session.variable_count),
            bytes: usize::try_from(session.bytes).unwrap_or(usize::MAX),
            last_worker: Some(session.last_worker_id).filter(|id| !id.is_empty()).map(Into::into),
        })
    }

    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<VariableId, Error> {
        let NewVariable { ty, value, note } = new;
        let (value, buffer) = payload_to_wire(value);
        let request = pb::RegisterVariableRequest {
            session_id: id.to_string(),
            name: name.to_string(),
            r#type: ty.kind().to_string(),
            initial_value: Some(value),
            constraints_json: ty.constraints_json().to_owned(),
            metadata: note.to_metadata(),
            initial_binary_value: buffer.unwrap_or_default(),
        };
        let response = write_rpc!(self, "RegisterVariable", register_variable(request));
        Ok(VariableId::try_new(response.variable_id)?)
    }

    async fn variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, Error> {
        let request = pb::GetVariableRequest {
            session_id: id.to_string(),
            variable_identifier: require_identifier(id, identifier)?,
            bypass_cache: true,
        };
        let response = read_rpc!(self, "GetVariable", get_variable(request));
        variable(response.variable.unwrap_or_default())
    }

    async fn variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, Error> {
        let request = pb::ListVariablesRequest { session_id: id.to_string(), pattern: pattern.to_owned() };
        let response = read_rpc!(self, "ListVariables", list_variables(request));
        response.variables.into_iter().map(variable).collect()
    }

    async fn set_variable(&self, id: &SessionId, write: SetVariable) -> Result<u32, Error> {
        let SetVariable { identifier, value, note, expected_version } = write;
        let (value, buffer) = payload_to_wire(value);
        let request = pb::SetVariableRequest {
            session_id: id.to_string(),
            variable_identifier: require_identifier(id, &identifier)?,
            value: Some(value),
            metadata: note.to_metadata(),
            expected_version: expected_version.map_or(0, version_to_wire),
            binary_value: buffer.unwrap_or_default(),
            check_version: expected_version.is_some(),
        };
        let response = write_rpc!(self, "SetVariable", set_variable(request));
        Ok(version(response.new_version))
    }

    async fn find_variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, Error> {
        let request = pb::BatchGetVariablesRequest {
            session_id: id.to_string(),
            variable_identifiers: identifiers.iter().map(|&identifier| identifier.to_owned()).collect(),
            include_metadata: true,
            bypass_cache: true,
        };
        let response = read_rpc!(self, "GetVariables", get_variables(request));
        let find = |identifier: &&str| response.variables.get(*identifier).cloned().map(variable).transpose();
        identifiers.iter().map(find).collect()
    }

    async fn set_variables(
        &self,
        id: &SessionId,
        writes: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, Error> {
        let note = writes.first().map(|write| write.note.clone()).unwrap_or_default();
        if writes.iter().any(|write| write.note != note) {
            let problem =
                "a batch over gRPC has one note, but these writes have different ones; write them one by one";
            return Err(Error::Rejected { rpc: "SetVariables", problem: problem.to_owned() });
        }
        let mut request = pb::BatchSetVariablesRequest {
            session_id: id.to_string(),
            metadata: note.to_metadata(),
            atomic: batch == Batch::Atomic,
            ..pb::BatchSetVariablesRequest::default()
        };
        let mut names = Vec::with_capacity(writes.len());
        for SetVariable { identifier, value, note: _, expected_version } in writes {
            let (value, buffer) = payload_to_wire(value);
            if request.updates.insert(identifier.clone(), value).is_some() {
                let error = SessionError::WrittenTwice { variable: identifier.clone() };
                return Err(SessionError::BatchRejected { errors: [(identifier, error)].into() }.into());
            }
            request.binary_updates.extend(buffer.map(|buffer| (identifier.clone(), buffer)));
            request
                .expected_versions
                .extend(expected_version.map(|version| (identifier.clone(), version_to_wire(version))));
            names.push(identifier);
        }
        let mut response = write_rpc!(self, "SetVariables", set_variables(request));
        let errors = response.errors.into_iter().map(|(name, message)| {
            let pb::ErrorReason { reason, metadata, .. } = response.reasons.remove(&name).unwrap_or_default();
            let error = session_error(&reason, |key| metadata.get(key).cloned(), &message);
            (name, error.unwrap_or_else(|| SessionError::backend(message)))
        });
        let mut errors: BTreeMap<_, _> = errors.collect();
        if batch == Batch::Atomic && !errors.is_empty() {
            return Err(SessionError::BatchRejected { errors }.into());
        }
        let outcome = |name: &String| match (errors.remove(name), response.new_versions.get(name)) {
            (Some(error), _) => Ok(Err(error)),
            (None, Some(new)) => Ok(Ok(version(*new))),
            (None, None) => Err(malformed_response(format!("no version of `{name}`"))),
        };
        names.iter().map(outcome).collect()
    }

    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<(), Error> {
        let request = pb::DeleteVariableRequest {
            session_id: id.to_string(),
            variable_identifier: require_identifier(id, identifier)?,
        };
        write_rpc!(self, "DeleteVariable", delete_variable(request));
        Ok(())
    }

    async fn delete_variables(&self, id: &SessionId, identifiers: &[&str]) -> Result<Vec<bool>, Error> {
        let request = pb::DeleteVariablesRequest {
            session_id: id.to_string(),
            variable_identifiers: identifiers.iter().map(|&identifier| identifier.to_owned()).collect(),
        };
        let timeout = self.0.options.request_timeout;
        check_request_size(&request).map_err(|status| timeout.error("DeleteVariables", &status))?;
        let send = |mut client: BridgeClient| {
            let request = timeout.apply(request.clone());
            async move { client.delete_variables(request).await }
        };
        let response = async {
            match self.0.request(false, send).await {
                Ok(response) => Ok(response.map(Some)),
                Err(status) if status.code() == Code::Unimplemented && !is_of_proxy(&status) => {
                    Ok(Response::new(None))
                }
                Err(status) => Err(status),
            }
        };
        let Some(response) = self.0.until_cut(timeout.within("DeleteVariables", response)).await? else {
            return self.delete_one_by_one(id, identifiers).await;
        };
        let deleted = response.deleted;
        if deleted.len() != identifiers.len() {
            let problem = format!("{} outcomes for {} variables", deleted.len(), identifiers.len());
            return Err(malformed_response(problem));
        }
        Ok(deleted)
    }

    async fn history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, Error> {
        let request = pb::GetVariableHistoryRequest {
            session_id: id.to_string(),
            variable_identifier: require_identifier(id, identifier)?,
            limit: i32::try_from(limit).unwrap_or(i32::MAX),
        };
        let response = read_rpc!(self, "GetVariableHistory", get_variable_history(request));
        let entry = |entry: pb::VariableHistoryEntry| {
            Ok(VariableVersion {
                version: version(entry.version),
                at: time(entry.timestamp),
                note: note(source(entry.source()), &entry.changed_by, entry.metadata),
                value: payload(entry.value, entry.binary_value)?,
            })
        };
        response.entries.into_iter().map(entry).collect()
    }

    async fn rollback(&self, id: &SessionId, identifier: &str, target: u32) -> Result<Variable, Error> {
        let request = pb::RollbackVariableRequest {
            session_id: id.to_string(),
            variable_identifier: require_identifier(id, identifier)?,
            target_version: version_to_wire(target),
            metadata: BTreeMap::new(),
        };
        let response = write_rpc!(self, "RollbackVariable", rollback_variable(request));
        variable(response.variable.unwrap_or_default())
    }

    async fn watch(
        &self,
        id: &SessionId,
        identifiers: Vec<String>,
        include_initial: bool,
    ) -> Result<EventStream, Error> {
        let permit = Arc::clone(&self.0.watch_permits)
            .try_acquire_owned()
            .map_err(|_| SessionError::TooManyWatches { limit: MAX_WATCHES })?;
        let request = pb::WatchVariablesRequest {
            session_id: id.to_string(),
            variable_identifiers: identifiers,
            include_initial_values: include_initial,
        };
        let timeout = self.0.options.request_timeout;
        let send = |mut client: BridgeClient| {
            let request = request.clone();
            async move { client.watch_variables(request).await }
        };
        let response = timeout.within("WatchVariables", self.0.request(false, send));
        let updates = self.0.until_cut(response).await.map_err(Error::into_read_error)?;
        let (reading, updates) = read_ahead(updates, &self.0.backlogs);
        let mut task = JoinSet::new();
        task.spawn(reading);
        let events = updates.map(move |update| {
            let _held_by_stream = (&permit, &task);
            match update {
                Ok(update) => event(update),
                Err(status) => Err(timeout.error("WatchVariables", &status).into_read_error()),
            }
        });
        Ok(UntilClosed::new(events, &self.0.close.closing, closed(false).into()).boxed())
    }

    async fn put_program(
        &self,
        id: &SessionId,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, Error> {
        self.put_program_of(Some(id), name, program).await
    }

    async fn program(&self, id: &SessionId, name: &ProgramName) -> Result<Program, Error> {
        self.program_of(Some(id), name).await
    }

    async fn programs(&self, id: &SessionId) -> Result<Vec<ProgramInfo>, Error> {
        self.programs_of(Some(id)).await
    }

    async fn delete_program(&self, id: &SessionId, name: &ProgramName) -> Result<(), Error> {
        self.delete_program_of(Some(id), name).await
    }
}

/// The error for a response that violates the protocol.
pub(super) fn malformed_response(problem: impl std::fmt::Display) -> Error {
    Error::Tool(ToolError::internal(format!("the host's answer cannot be read: {problem}")))
}

/// Rejects an empty id or name. A host would only report that the field is missing.
fn require_identifier(id: &SessionId, identifier: &str) -> Result<String, Error> {
    if identifier.is_empty() {
        let (session, identifier) = (id.clone(), String::new());
        return Err(SessionError::VariableNotFound { session, identifier }.into());
    }
    Ok(identifier.to_owned())
}

fn payload(value: Option<pb::Any>, buffer: Bytes) -> Result<Payload, Error> {
    let buffer = (!buffer.is_empty()).then_some(buffer);
    payload_from_wire(value.unwrap_or_default(), buffer).map_err(malformed_response)
}

fn variable(variable: pb::Variable) -> Result<Variable, Error> {
    let source = source(variable.source());
    let kind = variable.r#type.parse().map_err(malformed_response)?;
    Ok(Variable {
        id: VariableId::try_new(variable.id)?,
        name: VariableName::try_new(variable.name)?,
        ty: VariableType::known(kind, &variable.constraints_json)?,
        value: payload(variable.value, variable.binary_value)?,
        version: version(variable.version),
        metadata: variable.metadata.into(),
        source,
        updated_at: time(variable.last_updated_at),
    })
}

const fn source(source: pb::variable::Source) -> Source {
    match source {
        pb::variable::Source::Elixir => Source::Host,
        pb::variable::Source::Python => Source::Python,
    }
}

/// Reads a note. For a write without an author, a host sends the name of the source, such as `python`.
fn note(source: Source, author: &str, metadata: BTreeMap<String, String>) -> Note {
    let has_author = !author.is_empty() && author != source.as_str();
    Note { source, changed_by: has_author.then(|| author.into()), metadata: metadata.into() }
}

fn event(update: pb::VariableUpdate) -> Result<WatchEvent, Error> {
    if update.update_type == "lost" {
        return Ok(WatchEvent::Lost(update.lost_updates));
    }
    let kind = UpdateKind::named(&update.update_type)
        .ok_or_else(|| malformed_response(format!("an update of type `{}`", update.update_type)))?;
    let variable = variable(update.variable.unwrap_or_default())?;
    // The last writer of the variable made this update.
    let note = note(variable.source, &update.update_source, update.update_metadata);
    Ok(WatchEvent::Update(VariableUpdate { kind, variable, note }))
}

pub(super) fn time(at: Option<prost_types::Timestamp>) -> SystemTime {
    at.and_then(|at| SystemTime::try_from(at).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Converts a TTL to whole seconds, rounded up. The result is at least 1, because 0 means the host's default.
pub(super) fn whole_seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX).max(1)
}

pub(super) fn count(n: i32) -> usize {
    usize::try_from(n).unwrap_or_default()
}

fn version(version: i32) -> u32 {
    u32::try_from(version).unwrap_or_default()
}

fn version_to_wire(version: u32) -> i32 {
    i32::try_from(version).unwrap_or(i32::MAX)
}
