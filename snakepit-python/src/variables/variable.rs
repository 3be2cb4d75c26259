//! What Python sees of variables: plain objects that nothing changes any more.

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

use crate::{host::SnakepitError, value};

/// A value that becomes a Python object when somebody looks at it: a listing may hold many, and large ones.
struct Value {
    /// What it is of, to say so when it cannot be read: the one who wrote it is somebody else.
    what: String,
    payload: Result<Payload, WireError>,
    object: PyOnceLock<Py<PyAny>>,
}

impl Value {
    fn new(what: String, payload: Result<Payload, WireError>) -> Arc<Self> {
        Arc::new(Self { what, payload, object: PyOnceLock::new() })
    }

    fn from_wire(what: String, any: Option<pb::Any>, buffer: Bytes) -> Arc<Self> {
        let buffer = (!buffer.is_empty()).then_some(buffer);
        Self::new(what, payload_from_wire(any.unwrap_or_default(), buffer))
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

    /// The error for a value that is stored, and cannot be read here. What is no error, such as a cancellation, stays as it is.
    fn unreadable(&self, py: Python<'_>, error: PyErr) -> PyErr {
        if !error.is_instance_of::<PyException>(py) {
            return error;
        }
        let told =
            SnakepitError::new_err(format!("the value of {} cannot be read: {}", self.what, error.value(py)));
        told.set_cause(py, Some(error));
        told
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.payload.fmt(f)
    }
}

/// A time, if the other side said one that Python can tell.
fn time(time: Option<impl TryInto<SystemTime>>) -> SystemTime {
    let time = time.and_then(|time| time.try_into().ok());
    time.unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH)
}

/// A variable as it was when the host told of it. Later writes do not change it.
#[pyclass(frozen, module = "snakepit_bridge")]
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    /// Its id, which begins with ``var_``. One that is deleted and registered anew has another.
    #[pyo3(get)]
    id: String,
    /// Its name.
    #[pyo3(get)]
    name: String,
    /// The name of its type, such as ``float``.
    #[pyo3(get, name = "type")]
    ty: String,
    /// How many times it was written since it was registered.
    #[pyo3(get)]
    version: i64,
    /// What its registration and the writes since then attached.
    #[pyo3(get)]
    metadata: BTreeMap<String, String>,
    /// Which side wrote the value: ``host`` or ``python``.
    #[pyo3(get)]
    source: &'static str,
    /// When the value was written.
    #[pyo3(get)]
    updated_at: SystemTime,
    constraints: String,
    value: Arc<Value>,
}

impl Variable {
    /// Its type; `None` for one of a host that knows more of them.
    pub(crate) fn kind(&self) -> Option<ValueType> {
        self.ty.parse().ok()
    }
}

#[pymethods]
impl Variable {
    /// Its value.
    #[getter]
    fn value(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.value.get(py)
    }

    /// What its values must keep to, by the names that ``register_variable`` takes.
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
            value: Value::from_wire(of(&variable.name), variable.value, variable.binary_value),
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
            value: Value::new(of(name.as_str()), Ok(value)),
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

/// A value that a variable has, or had.
#[pyclass(frozen, module = "snakepit_bridge")]
#[derive(Debug)]
pub(crate) struct VariableVersion {
    /// Its number: 0 for the value of the registration.
    #[pyo3(get)]
    version: i64,
    /// When it was written.
    #[pyo3(get)]
    updated_at: SystemTime,
    /// Who wrote it: a worker's id, or whatever the writer said of itself.
    #[pyo3(get)]
    changed_by: String,
    /// What the write attached.
    #[pyo3(get)]
    metadata: BTreeMap<String, String>,
    value: Arc<Value>,
}

#[pymethods]
impl VariableVersion {
    /// The value.
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
    /// A version of the variable of this name or id.
    pub(crate) fn from_wire(identifier: &str, entry: pb::VariableHistoryEntry) -> Self {
        Self {
            value: Value::from_wire(version_of(identifier, entry.version), entry.value, entry.binary_value),
            version: entry.version.into(),
            updated_at: time(entry.timestamp),
            changed_by: entry.changed_by,
            metadata: entry.metadata,
        }
    }

    /// The same of a session in this process.
    pub(crate) fn from_local(identifier: &str, entry: snakepit_session::VariableVersion) -> Self {
        Self {
            value: Value::new(version_of(identifier, entry.version), Ok(entry.value)),
            version: entry.version.into(),
            updated_at: entry.at,
            changed_by: entry.note.author().to_owned(),
            metadata: (&entry.note.metadata).into(),
        }
    }
}

fn of(name: &str) -> String {
    format!("variable `{name}`")
}

fn version_of(identifier: &str, version: impl fmt::Display) -> String {
    format!("version {version} of variable `{identifier}`")
}

/// Something that happened to a variable.
#[pyclass(frozen, module = "snakepit_bridge")]
#[derive(Debug)]
pub(crate) struct VariableUpdate {
    /// What happened: ``initial``, ``registered``, ``set``, ``rolled_back`` or ``deleted``; ``lost`` where updates are
    /// missing, because they came faster than they were taken.
    #[pyo3(get)]
    kind: String,
    /// The variable after it, or, once it is deleted, as it was last; ``None`` if ``kind`` is ``lost``.
    #[pyo3(get)]
    variable: Option<Variable>,
    /// How many updates are missing here; 0 unless ``kind`` is ``lost``.
    #[pyo3(get)]
    lost: u64,
    /// Which side did it, or who.
    #[pyo3(get)]
    source: String,
    /// What the write attached.
    #[pyo3(get)]
    metadata: BTreeMap<String, String>,
    /// When it happened.
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
