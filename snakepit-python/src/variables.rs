//! [`Variables`]: the variables of a call's session. The host stores all of them. This process caches none, so each
//! read returns the latest write of any tool.

mod variable;
mod watch;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use pyo3::{exceptions::PyBaseException, prelude::*, types::PyDict};
use snakepit_proto::pb;
use snakepit_session::{Payload, ValueType};
use snakepit_wire::{payload_to_wire, read_ahead};
use tokio_stream::StreamExt;

use crate::{
    call::{Call, NOTHING},
    caller::Caller,
    errors::{HostError, SnakepitError, from_batch, is_variable_not_found},
    host::{Host, RequestKind},
    value::{self, Numbers, Purpose},
};

pub(crate) use self::{
    variable::{Variable, VariableUpdate, VariableVersion},
    watch::VariableWatch,
};

/// The variables of a call's session.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Variables {
    pub(crate) call: Py<Call>,
}

/// The new versions of the written variables, and the exceptions of the rejected ones, by identifier.
pub(crate) type Written<V> = (BTreeMap<String, V>, BTreeMap<String, Py<PyBaseException>>);

impl Variables {
    fn session_id(&self) -> String {
        self.call.get().session_id.clone()
    }

    fn with_author(&self, metadata: BTreeMap<String, String>) -> BTreeMap<String, String> {
        with_author(self.call.get(), metadata)
    }
}

#[pymethods]
impl Variables {
    #[pyo3(signature = (name, type_name, initial_value, constraints, metadata))]
    fn register(
        &self,
        py: Python<'_>,
        name: String,
        type_name: Option<String>,
        initial_value: &Bound<'_, PyAny>,
        constraints: Option<&Bound<'_, PyAny>>,
        metadata: BTreeMap<String, String>,
    ) -> PyResult<Py<PyAny>> {
        let kind = type_name.as_ref().and_then(|name| name.parse().ok());
        let payload = payload_for_new(&name, initial_value, kind)?;
        let type_name = type_name.unwrap_or_else(|| payload.ty().as_str().to_owned());
        let constraints = constraints
            .map(|constraints| constraints_to_json(constraints, &name))
            .transpose()?
            .unwrap_or_default();
        let (initial_value, buffer) = payload_to_wire(payload);
        let request = pb::RegisterVariableRequest {
            session_id: self.session_id(),
            name,
            r#type: type_name,
            initial_value: Some(initial_value),
            // The JSON was just written, so it is UTF-8.
            constraints_json: String::from_utf8_lossy(&constraints).into_owned(),
            metadata: self.with_author(metadata),
            initial_binary_value: buffer.unwrap_or_default(),
        };
        self.call.get().answer(py, RequestKind::Write, request, |_, response| {
            let pb::RegisterVariableResponse { success, variable_id, error_message } = response;
            check_success(success, error_message)?;
            Ok(variable_id)
        })
    }

    fn get(&self, py: Python<'_>, identifier: String) -> PyResult<Py<PyAny>> {
        let request = pb::GetVariableRequest {
            session_id: self.session_id(),
            variable_identifier: identifier,
            bypass_cache: true,
        };
        self.call.get().answer(py, RequestKind::Read, request, |_, response| {
            Ok(Variable::from(response.variable.unwrap_or_default()))
        })
    }

    /// Writes a variable and returns its new version.
    #[pyo3(signature = (identifier, value, metadata, expected_version))]
    fn set(
        &self,
        py: Python<'_>,
        identifier: String,
        value: &Bound<'_, PyAny>,
        metadata: BTreeMap<String, String>,
        expected_version: Option<i32>,
    ) -> PyResult<Py<PyAny>> {
        let value = NewValue::read(&identifier, value)?;
        let mut request = pb::SetVariableRequest {
            session_id: self.session_id(),
            variable_identifier: identifier,
            metadata: self.with_author(metadata),
            expected_version: expected_version.unwrap_or_default(),
            check_version: expected_version.is_some(),
            ..pb::SetVariableRequest::default()
        };
        let send = |host: Host, caller: Caller| async move {
            let payload =
                value.resolve(&host, &caller, &request.session_id, &request.variable_identifier).await?;
            let (value, buffer) = payload_to_wire(payload);
            (request.value, request.binary_value) = (Some(value), buffer.unwrap_or_default());
            host.request(&caller, RequestKind::Write, request).await
        };
        self.call.get().answer_of(py, send, |_, response| {
            let pb::SetVariableResponse { success, error_message, new_version } = response;
            check_success(success, error_message)?;
            Ok(new_version)
        })
    }

    /// Returns the existing variables by identifier, and the identifiers of the missing ones.
    fn get_many(&self, py: Python<'_>, identifiers: Vec<String>) -> PyResult<Py<PyAny>> {
        let request = pb::BatchGetVariablesRequest {
            session_id: self.session_id(),
            variable_identifiers: identifiers,
            include_metadata: true,
            bypass_cache: true,
        };
        self.call.get().answer(py, RequestKind::Read, request, |_, response| {
            let variables = response.variables.into_iter();
            let variables: HashMap<_, _> =
                variables.map(|(key, variable)| (key, Variable::from(variable))).collect();
            Ok((variables, response.missing_variables))
        })
    }

    fn set_many(
        &self,
        py: Python<'_>,
        updates: &Bound<'_, PyDict>,
        metadata: BTreeMap<String, String>,
        expected_versions: BTreeMap<String, i32>,
        atomic: bool,
    ) -> PyResult<Py<PyAny>> {
        let mut request = pb::BatchSetVariablesRequest {
            session_id: self.session_id(),
            metadata: self.with_author(metadata),
            atomic,
            expected_versions,
            ..pb::BatchSetVariablesRequest::default()
        };
        let mut values = Vec::with_capacity(updates.len());
        for (identifier, value) in updates {
            let identifier: String = identifier.extract()?;
            let value = NewValue::read(&identifier, &value)?;
            values.push((identifier, value));
        }
        let send = |host: Host, caller: Caller| async move {
            for (identifier, value) in values {
                let payload = value.resolve(&host, &caller, &request.session_id, &identifier).await?;
                let (value, buffer) = payload_to_wire(payload);
                if let Some(buffer) = buffer {
                    request.binary_updates.insert(identifier.clone(), buffer);
                }
                request.updates.insert(identifier, value);
            }
            host.request(&caller, RequestKind::Write, request).await
        };
        self.call.get().answer_of(py, send, |py, response| {
            let pb::BatchSetVariablesResponse { success, errors, new_versions, reasons } = response;
            check_success(success || !errors.is_empty(), "the host rejected the batch".to_owned())?;
            let errors = errors.into_iter().map(|(name, message)| {
                let error = from_batch(message, reasons.get(&name));
                (name, error.into_value(py))
            });
            let written: Written<i32> = (new_versions, errors.collect());
            Ok(written)
        })
    }

    fn find(&self, py: Python<'_>, pattern: String) -> PyResult<Py<PyAny>> {
        let request = pb::ListVariablesRequest { session_id: self.session_id(), pattern };
        self.call.get().answer(py, RequestKind::Read, request, |_, response| {
            Ok(response.variables.into_iter().map(Variable::from).collect::<Vec<_>>())
        })
    }

    fn delete(&self, py: Python<'_>, identifier: String) -> PyResult<Py<PyAny>> {
        let request =
            pb::DeleteVariableRequest { session_id: self.session_id(), variable_identifier: identifier };
        self.call.get().answer(py, RequestKind::Write, request, |_, response| {
            check_success(response.success, response.error_message)?;
            Ok(NOTHING)
        })
    }

    fn history(&self, py: Python<'_>, identifier: String, limit: i32) -> PyResult<Py<PyAny>> {
        let request = pb::GetVariableHistoryRequest {
            session_id: self.session_id(),
            variable_identifier: identifier.clone(),
            limit,
        };
        self.call.get().answer(py, RequestKind::Read, request, move |_, response| {
            let entries = response.entries.into_iter();
            Ok(entries.map(|entry| VariableVersion::from_wire(&identifier, entry)).collect::<Vec<_>>())
        })
    }

    fn rollback(&self, py: Python<'_>, identifier: String, version: i32) -> PyResult<Py<PyAny>> {
        let request = pb::RollbackVariableRequest {
            session_id: self.session_id(),
            variable_identifier: identifier,
            target_version: version,
            metadata: self.with_author(BTreeMap::new()),
        };
        self.call.get().answer(py, RequestKind::Write, request, |_, response| {
            let pb::RollbackVariableResponse { success, variable, error_message } = response;
            check_success(success, error_message)?;
            Ok(Variable::from(variable.unwrap_or_default()))
        })
    }

    /// Watches variables, or all of them if none is named. The watch receives every update after this method has
    /// returned.
    fn watch(&self, py: Python<'_>, identifiers: Vec<String>, initial: bool) -> PyResult<Py<PyAny>> {
        let request = pb::WatchVariablesRequest {
            session_id: self.session_id(),
            variable_identifiers: identifiers,
            include_initial_values: initial,
        };
        let call = self.call.get();
        let (host, watcher) = (call.host()?.clone(), call.caller.clone());
        let open = |host: Host, caller: Caller| async move { host.watch_variables(&caller, request).await };
        call.answer_of(py, open, move |_, updates| {
            let runtime = host.runtime();
            let (read_task, updates) = read_ahead(updates, host.backlogs());
            runtime.tokio().spawn(read_task);
            let updates = updates.map(|update| update.map(VariableUpdate::from).map_err(HostError::from));
            Ok(VariableWatch::new(runtime, watcher, updates))
        })
    }
}

/// Adds the writer to a write's metadata, unless the tool set it.
pub(crate) fn with_author(call: &Call, mut metadata: BTreeMap<String, String>) -> BTreeMap<String, String> {
    for (key, value) in [("source", "python"), ("changed_by", &*call.worker_id)] {
        metadata.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    metadata
}

/// Converts the constraints of a new variable.
pub(crate) fn constraints_to_json(constraints: &Bound<'_, PyAny>, name: &str) -> PyResult<Bytes> {
    let description = format_args!("the constraints of variable `{name}`");
    value::python_to_json(constraints, Purpose::Variable, description)
}

/// Converts the value of a new variable of type `kind`.
pub(crate) fn payload_for_new(
    name: &str,
    value: &Bound<'_, PyAny>,
    kind: Option<ValueType>,
) -> PyResult<Payload> {
    let payload =
        value::from_python(value, Purpose::Variable, format_args!("the value of variable `{name}`"))?;
    match (kind, Numbers::from_large_list(value, &payload)?) {
        (Some(kind), Some(numbers)) => numbers.into_payload_or(payload, kind),
        _ => Ok(payload),
    }
}

/// A new value of an existing variable.
#[derive(Debug)]
pub(crate) struct NewValue {
    payload: Payload,
    /// The numbers of a large list, whose form depends on the type of the variable.
    numbers: Option<Numbers>,
}

impl NewValue {
    /// Reads a value.
    ///
    /// # Errors
    /// The exception for a value that cannot be sent.
    pub(crate) fn read(identifier: &str, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let description = format_args!("the value of variable `{identifier}`");
        let payload = value::from_python(value, Purpose::Variable, description)?;
        let numbers = Numbers::from_large_list(value, &payload)?;
        Ok(Self { payload, numbers })
    }

    /// Returns whether the form of the value depends on the type of the variable.
    pub(crate) const fn needs_kind(&self) -> bool {
        self.numbers.is_some()
    }

    /// Returns the payload for a variable of this type, or of an unknown one.
    ///
    /// # Errors
    /// If the metadata of the buffer cannot be encoded.
    pub(crate) fn into_payload(self, kind: Option<ValueType>) -> PyResult<Payload> {
        match (self.numbers, kind) {
            (Some(numbers), Some(kind)) => numbers.into_payload_or(self.payload, kind),
            _ => Ok(self.payload),
        }
    }

    /// Returns the payload for this variable. Only for large lists of numbers, this function requests the variable from the host.
    async fn resolve(
        self,
        host: &Host,
        caller: &Caller,
        session_id: &str,
        identifier: &str,
    ) -> Result<Payload, HostError> {
        if !self.needs_kind() {
            return Ok(self.payload);
        }
        let request = pb::GetVariableRequest {
            session_id: session_id.to_owned(),
            variable_identifier: identifier.to_owned(),
            bypass_cache: true,
        };
        let kind = match host.request(caller, RequestKind::Read, request).await {
            Ok(response) => response.variable.unwrap_or_default().r#type.parse().ok(),
            // The write itself will report the missing variable. In a batch, it does so for each variable.
            Err(HostError::Status(status)) if is_variable_not_found(&status) => None,
            Err(error) => return Err(error),
        };
        self.into_payload(kind).map_err(HostError::Exception)
    }
}

/// Returns an error if a write failed. Only hosts of the original Snakepit report failures in the response. Hosts of this
/// project report them as statuses.
fn check_success(success: bool, error_message: String) -> PyResult<()> {
    if success { Ok(()) } else { Err(SnakepitError::new_err(error_message)) }
}
