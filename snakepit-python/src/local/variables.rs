//! [`LocalSession`]: a session in this process, with the same variables as on a host.

use std::collections::{BTreeMap, HashMap};

use pyo3::{prelude::*, types::PyDict};
use snakepit_session::{
    Batch, MemoryBackend, NewSession, NewVariable, Note, SessionBackend, SessionError, SessionId,
    SessionLimits, SetVariable, VariableName, VariableType,
};
use tokio_stream::StreamExt;

use crate::{
    background::BackgroundRuntime,
    call::Call,
    errors::{HostError, InvalidArgumentError, VariableNotFoundError},
    runtime::RuntimeHandle,
    variables::{
        NewValue, Variable, VariableUpdate, VariableVersion, VariableWatch, Written, constraints_to_json,
        payload_for_new, with_author,
    },
};

/// One session without a host.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct LocalSession {
    backend: MemoryBackend,
    id: SessionId,
}

#[pymethods]
impl LocalSession {
    #[new]
    fn new(session_id: &str) -> PyResult<Self> {
        Ok(Self { backend: MemoryBackend::new(SessionLimits::default()), id: super::session_id(session_id)? })
    }

    /// Creates the session if it does not exist.
    fn open(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, self.backend.create(&self.id, NewSession::default())).map(drop)
    }

    /// Raises `NotFoundError` if the session does not exist.
    fn require(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, self.backend.get(&self.id)).map(drop)
    }

    /// Deletes the session with its variables.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, self.backend.delete(&self.id)).map(drop)
    }

    /// The variables of the session, as `call` accesses them.
    fn variables(slf: Py<Self>, call: Py<Call>) -> LocalVariables {
        LocalVariables { session: slf, call }
    }
}

impl LocalSession {
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        operation: impl Future<Output = Result<T, SessionError>> + Send,
    ) -> PyResult<T> {
        Ok(BackgroundRuntime::get()?.wait(py, operation)?.map_err(HostError::Session)?)
    }
}

/// The counterpart of `Variables` for a [`LocalSession`].
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct LocalVariables {
    session: Py<LocalSession>,
    call: Py<Call>,
}

impl LocalVariables {
    fn run<'a, T: Send, F: Future<Output = Result<T, SessionError>> + Send>(
        &'a self,
        py: Python<'_>,
        operation: impl FnOnce(&'a MemoryBackend, &'a SessionId) -> F,
    ) -> PyResult<T> {
        let session = self.session.get();
        session.run(py, operation(&session.backend, &session.id))
    }

    fn with_author(&self, metadata: BTreeMap<String, String>) -> Note {
        Note::from_metadata(with_author(self.call.get(), metadata))
    }

    fn update(
        &self,
        py: Python<'_>,
        identifier: String,
        value: &Bound<'_, PyAny>,
        note: Note,
        expected_version: Option<i32>,
    ) -> PyResult<SetVariable> {
        let value = NewValue::read(&identifier, value)?;
        let kind = match value.needs_kind().then(|| self.get(py, &identifier)).transpose() {
            Ok(variable) => variable.and_then(|variable| variable.kind()),
            // The write itself reports the missing variable.
            Err(error) if error.is_instance_of::<VariableNotFoundError>(py) => None,
            Err(error) => return Err(error),
        };
        let value = value.into_payload(kind)?;
        let expected_version = expected_version.map(version).transpose()?;
        Ok(SetVariable { identifier, value, note, expected_version })
    }
}

#[pymethods]
impl LocalVariables {
    #[pyo3(signature = (name, type_name, initial_value, constraints, metadata))]
    fn register(
        &self,
        py: Python<'_>,
        name: &str,
        type_name: Option<&str>,
        initial_value: &Bound<'_, PyAny>,
        constraints: Option<&Bound<'_, PyAny>>,
        metadata: BTreeMap<String, String>,
    ) -> PyResult<String> {
        let kind = type_name.map(VariableType::parse_kind).transpose().map_err(HostError::Session)?;
        let value = payload_for_new(name, initial_value, kind)?;
        let kind = kind.unwrap_or_else(|| value.ty());
        let constraints = constraints
            .map(|constraints| constraints_to_json(constraints, name))
            .transpose()?
            .unwrap_or_default();
        let ty = VariableType::with_constraints(kind, &String::from_utf8_lossy(&constraints));
        let name = VariableName::try_new(name).map_err(HostError::Session)?;
        let new =
            NewVariable { ty: ty.map_err(HostError::Session)?, value, note: self.with_author(metadata) };
        let variable = self.run(py, |backend, id| backend.register_variable(id, &name, new))?;
        Ok(variable.id.to_string())
    }

    fn get(&self, py: Python<'_>, identifier: &str) -> PyResult<Variable> {
        self.run(py, |backend, id| backend.variable(id, identifier)).map(Variable::from)
    }

    #[pyo3(signature = (identifier, value, metadata, expected_version))]
    fn set(
        &self,
        py: Python<'_>,
        identifier: String,
        value: &Bound<'_, PyAny>,
        metadata: BTreeMap<String, String>,
        expected_version: Option<i32>,
    ) -> PyResult<u32> {
        let update = self.update(py, identifier, value, self.with_author(metadata), expected_version)?;
        self.run(py, |backend, id| backend.set_variable(id, update))
    }

    fn get_many(
        &self,
        py: Python<'_>,
        identifiers: Vec<String>,
    ) -> PyResult<(HashMap<String, Variable>, Vec<String>)> {
        let names: Vec<_> = identifiers.iter().map(String::as_str).collect();
        let variables = self.run(py, |backend, id| backend.variables(id, &names))?;
        let (mut found, mut missing) = (HashMap::new(), Vec::new());
        for (identifier, variable) in identifiers.into_iter().zip(variables) {
            match variable {
                Some(variable) => drop(found.insert(identifier, variable.into())),
                None => missing.push(identifier),
            }
        }
        Ok((found, missing))
    }

    fn set_many(
        &self,
        py: Python<'_>,
        updates: &Bound<'_, PyDict>,
        metadata: BTreeMap<String, String>,
        mut expected_versions: BTreeMap<String, i32>,
        atomic: bool,
    ) -> PyResult<Written<u32>> {
        let note = self.with_author(metadata);
        let mut writes = Vec::with_capacity(updates.len());
        for (identifier, value) in updates {
            let identifier: String = identifier.extract()?;
            let expected_version = expected_versions.remove(&identifier);
            writes.push(self.update(py, identifier, &value, note.clone(), expected_version)?);
        }
        if let Some(name) = expected_versions.keys().next() {
            return Err(invalid(format!("`expected_versions[{name}]` names none of the updates")));
        }
        let names: Vec<_> = writes.iter().map(|write| write.identifier.clone()).collect();
        let batch = if atomic { Batch::Atomic } else { Batch::Each };
        let session = self.session.get();
        let outcomes =
            BackgroundRuntime::get()?.wait(py, session.backend.set_variables(&session.id, writes, batch))?;
        let exception = |error| PyErr::from(HostError::Session(error)).into_value(py);
        let (mut versions, mut errors) = (BTreeMap::new(), BTreeMap::new());
        match outcomes {
            Ok(outcomes) => {
                for (name, outcome) in names.into_iter().zip(outcomes) {
                    match outcome {
                        Ok(version) => drop(versions.insert(name, version)),
                        Err(error) => drop(errors.insert(name, exception(error))),
                    }
                }
            }
            Err(SessionError::BatchRejected { errors: reasons }) => {
                errors.extend(reasons.into_iter().map(|(name, error)| (name, exception(error))));
            }
            Err(error) => return Err(HostError::Session(error).into()),
        }
        Ok((versions, errors))
    }

    fn find(&self, py: Python<'_>, pattern: &str) -> PyResult<Vec<Variable>> {
        let found = self.run(py, |backend, id| backend.list_variables(id, pattern))?;
        Ok(found.into_iter().map(Variable::from).collect())
    }

    fn delete(&self, py: Python<'_>, identifier: &str) -> PyResult<()> {
        self.run(py, |backend, id| backend.delete_variable(id, identifier)).map(drop)
    }

    fn history(&self, py: Python<'_>, identifier: &str, limit: i32) -> PyResult<Vec<VariableVersion>> {
        let limit = usize::try_from(limit)
            .map_err(|_| invalid("`limit` is negative; use 0 for all stored versions".to_owned()))?;
        let versions = self.run(py, |backend, id| backend.variable_history(id, identifier, limit))?;
        Ok(versions.into_iter().map(|entry| VariableVersion::from_local(identifier, entry)).collect())
    }

    fn rollback(&self, py: Python<'_>, identifier: &str, version: i32) -> PyResult<Variable> {
        let target = self::version(version)?;
        let note = self.with_author(BTreeMap::new());
        let variable = self.run(py, |backend, id| backend.rollback_variable(id, identifier, target, note))?;
        Ok(variable.into())
    }

    #[allow(clippy::needless_pass_by_value, reason = "an argument of a Python function")]
    fn watch(&self, py: Python<'_>, identifiers: Vec<String>, initial: bool) -> PyResult<VariableWatch> {
        let events = self.run(py, |backend, id| backend.watch_variables(id, &identifiers, initial))?;
        let updates = events.map(|event| event.map(VariableUpdate::from).map_err(HostError::Session));
        let runtime = RuntimeHandle::Background(BackgroundRuntime::get()?);
        Ok(VariableWatch::new(runtime, self.call.get().caller.clone(), updates))
    }
}

fn version(version: i32) -> PyResult<u32> {
    u32::try_from(version).map_err(|_| invalid(format!("version is {version}; versions start at 0")))
}

fn invalid(message: String) -> PyErr {
    InvalidArgumentError::new_err(message)
}
