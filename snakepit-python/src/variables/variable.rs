//! [`Variable`], [`VariableVersion`] and [`VariableUpdate`]: immutable objects that Python code receives.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use pyo3::{
    exceptions::{PyException, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::PyDict,
};
use snakepit_proto::pb;
use snakepit_session::{Payload, ValueType, WatchEvent};
use snakepit_wire::{WireError, payload_from_wire};

use crate::{errors::SnakepitError, value};

/// A value that is converted to a Python object on first access, because a listing may hold many large values.
struct Value {
    /// The name of the value for error messages.
    label: String,
    payload: Result<Payload, WireError>,
    object: PyOnceLock<Py<PyAny>>,
}

impl Value {
    fn new(label: String, payload: Result<Payload, WireError>) -> Arc<Self> {
        Arc::new(Self { label, payload, object: PyOnceLock::new() })
    }

    fn from_wire(label: String, any: Option<pb::Any>, buffer: Bytes) -> Arc<Self> {
        let buffer = (!buffer.is_empty()).then_some(buffer);
        Self::new(label, payload_from_wire(any.unwrap_or_default(), buffer))
    }

    fn get(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let object = self.object.get_or_try_init(py, || match &self.payload {
            Ok(payload) => {
                let object = value::to_python(py, payload.clone()).map(Bound::unbind);
                object.map_err(|error| self.unreadable(py, error))
            }
            Err(error) => Err(self.unreadable(py, PyValueError::new_err(error.to_string()))),
        });
        object.map(|object| object.clone_ref(py))
    }

    /// Wraps the error of a stored value that cannot be converted. Exceptions such as a cancellation are not wrapped.
    fn unreadable(&self, py: Python<'_>, error: PyErr) -> PyErr {
        if !error.is_instance_of::<PyException>(py) {
            return error;
        }
        let wrapped = SnakepitError::new_err(format!(
            "the value of {} cannot be read: {}",
            self.label,
            error.value(py)
        ));
        wrapped.set_cause(py, Some(error));
        wrapped
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.payload.fmt(f)
    }
}

/// Converts a time. A missing or unrepresentable time becomes the epoch.
fn time(time: Option<impl TryInto<SystemTime>>) -> SystemTime {
    let time = time.and_then(|time| time.try_into().ok());
    time.unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH)
}

/// A snapshot of a variable. Later writes do not change it.
#[pyclass(frozen, module = "snakepit_bridge")]
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    /// The id, which starts with ``var_``. Registering a deleted variable again creates a new id.
    #[pyo3(get)]
    id: String,
    /// The name.
    #[pyo3(get)]
    name: String,
    /// The name of the type, such as ``float``.
    #[pyo3(get, name = "type")]
    ty: String,
    /// The version: 0 after the registration, plus 1 with each write.
    #[pyo3(get)]
    version: i64,
    /// The metadata of the registration, merged with that of later writes.
    #[pyo3(get)]
    metadata: BTreeMap<String, String>,
    /// The side that wrote the value: ``host`` or ``python``.
    #[pyo3(get)]
    source: &'static str,
    /// The time of the last write.
    #[pyo3(get)]
    updated_at: SystemTime,
    constraints: String,
    value: Arc<Value>,
}

impl Variable {
    /// The type, or `None` if this version of the package does not know it.
    pub(crate) fn kind(&self) -> Option<ValueType> {
        self.ty.parse().ok()
    }
}

#[pymethods]
impl Variable {
    /// The value. Arrays are numpy arrays.
    #[getter]
    fn value(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.value.get(py)
    }

    /// The constraints, as passed to ``register_variable``.
    #[getter]
    fn constraints<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.constraints.trim() {
            "" | "null" => Ok(PyDict::new(py).into_any()),
            json => value::json_to_python(py, json.as_bytes()),
        }
    }

    fn __repr__(&self) -> String {
        let Self { name, ty, version, .. } = self;
        format!("Variable(name={name:?}, type={ty:?}, version={version})")
    }
}

impl From<pb::Variable> for Variable {
    fn from(variable: pb::Variable) -> Self {
        let source = match variable.source() {
            pb::variable::Source::Elixir => "host",
            pb::variable::Source::Python => "python",
        };
        Self {
            value: Value::from_wire(variable_label(&variable.name), variable.value, variable.binary_value),
            id: variable.id,
            name: variable.name,
            ty: variable.r#type,
            version: variable.version.into(),
            metadata: variable.metadata,
            source,
            updated_at: time(variable.last_updated_at),
            constraints: variable.constraints_json,
        }
    }
}

impl From<snakepit_session::Variable> for Variable {
    fn from(variable: snakepit_session::Variable) -> Self {
        let snakepit_session::Variable { id, name, ty, value, version, metadata, source, updated_at } =
            variable;
        Self {
            value: Value::new(variable_label(name.as_str()), Ok(value)),
            id: id.to_string(),
            name: name.to_string(),
            ty: ty.kind().to_string(),
            version: version.into(),
            metadata: (&metadata).into(),
            source: source.as_str(),
            updated_at,
            constraints: ty.constraints_json().to_owned(),
        }
    }
}

/// One version of a variable, as stored by the host.
#[pyclass(frozen, module = "snakepit_bridge")]
#[derive(Debug)]
pub(crate) struct VariableVersion {
    /// The number of the version. 0 is the registered value.
    #[pyo3(get)]
    version: i64,
    /// The time of the write.
    #[pyo3(get)]
    updated_at: SystemTime,
    /// The writer: ``changed_by`` of the write's metadata, by default the worker id, or else ``host`` or ``python``.
    #[pyo3(get)]
    changed_by: String,
    /// The metadata of the write.
    #[pyo3(get)]
    metadata: BTreeMap<String, String>,
    value: Arc<Value>,
}

#[pymethods]
impl VariableVersion {
    /// The value of this version.
    #[getter]
    fn value(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.value.get(py)
    }

    fn __repr__(&self) -> String {
        let Self { version, changed_by, .. } = self;
        format!("VariableVersion(version={version}, changed_by={changed_by:?})")
    }
}

impl VariableVersion {
    /// Converts a version from its wire form. `identifier` is a name or an id.
    pub(crate) fn from_wire(identifier: &str, entry: pb::VariableHistoryEntry) -> Self {
        Self {
            value: Value::from_wire(
                version_label(identifier, entry.version),
                entry.value,
                entry.binary_value,
            ),
            version: entry.version.into(),
            updated_at: time(entry.timestamp),
            changed_by: entry.changed_by,
            metadata: entry.metadata,
        }
    }

    /// Converts a version of a [`LocalSession`](crate::local::LocalSession).
    pub(crate) fn from_local(identifier: &str, entry: snakepit_session::VariableVersion) -> Self {
        Self {
            value: Value::new(version_label(identifier, entry.version), Ok(entry.value)),
            version: entry.version.into(),
            updated_at: entry.at,
            changed_by: entry.note.author().to_owned(),
            metadata: (&entry.note.metadata).into(),
        }
    }
}

fn variable_label(name: &str) -> String {
    format!("variable `{name}`")
}

fn version_label(identifier: &str, version: impl fmt::Display) -> String {
    format!("version {version} of variable `{identifier}`")
}

/// A change to a watched variable.
#[pyclass(frozen, module = "snakepit_bridge")]
#[derive(Debug)]
pub(crate) struct VariableUpdate {
    /// The kind of change: ``initial``, ``registered``, ``set``, ``rolled_back``, ``deleted``, or ``lost`` if updates
    /// were dropped because the watch did not read them fast enough.
    #[pyo3(get)]
    kind: String,
    /// The variable after the change, or its last state if it was deleted. ``None`` if ``kind`` is ``lost``.
    #[pyo3(get)]
    variable: Option<Variable>,
    /// The number of dropped updates. 0 unless ``kind`` is ``lost``.
    #[pyo3(get)]
    lost: u64,
    /// The writer: ``changed_by`` of the write's metadata, by default the worker id, or else ``host`` or ``python``.
    #[pyo3(get)]
    source: String,
    /// The metadata of the write.
    #[pyo3(get)]
    metadata: BTreeMap<String, String>,
    /// The time of the change.
    #[pyo3(get)]
    timestamp: SystemTime,
}

#[pymethods]
impl VariableUpdate {
    fn __repr__(&self) -> String {
        let Self { kind, variable, lost, .. } = self;
        match variable {
            Some(variable) => format!("VariableUpdate(kind={kind:?}, variable={})", variable.__repr__()),
            None => format!("VariableUpdate(kind={kind:?}, lost={lost})"),
        }
    }
}

impl From<pb::VariableUpdate> for VariableUpdate {
    fn from(update: pb::VariableUpdate) -> Self {
        Self {
            kind: update.update_type,
            variable: update.variable.map(Variable::from),
            lost: update.lost_updates,
            source: update.update_source,
            metadata: update.update_metadata,
            timestamp: time(update.timestamp),
        }
    }
}

impl From<WatchEvent> for VariableUpdate {
    fn from(event: WatchEvent) -> Self {
        match event {
            WatchEvent::Update(update) => Self {
                kind: update.kind.as_str().to_owned(),
                lost: 0,
                source: update.note.author().to_owned(),
                metadata: (&update.note.metadata).into(),
                timestamp: update.variable.updated_at,
                variable: Some(update.variable.into()),
            },
            WatchEvent::Lost(lost) => Self::from(pb::VariableUpdate {
                update_type: "lost".to_owned(),
                lost_updates: lost,
                ..pb::VariableUpdate::default()
            }),
        }
    }
}
