//! [`HostClient`]: a client of a host, for programs that are not workers. Its calls are frames on one stream, driven by
//! a background thread.

mod answer;
mod arguments;
mod call;
mod connection;
mod operations;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pyo3::{
    prelude::*,
    types::{PyDict, PyString, PyTuple},
};
use snakepit_proto::{headers::is_reserved, mux::STREAM_CREDIT, pb};
use snakepit_wire::value_to_wire;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

use self::{
    arguments::{MinTimeout, text, timeout},
    call::NewCall,
    connection::OpenError,
};
pub(crate) use self::{
    call::HostCall,
    connection::{Connection, add_to},
    operations::Operations,
};
use crate::{
    background::BackgroundRuntime,
    call::Call,
    caller::Caller,
    completions::Completions,
    errors::{HostError, InvalidArgumentError},
    host::Target,
    pending::{CompletionHandle, PendingRequest},
    runtime::RuntimeHandle,
    value::{self, Purpose},
};

/// A connection to a host.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct HostClient {
    connection: Arc<Connection>,
    exceptions: Option<Py<PyTuple>>,
}

#[pymethods]
impl HostClient {
    /// Creates a client of the host at `host:port`, `http://host:port` or `unix:/path`. The first request connects, within
    /// `connect_timeout` seconds. `exceptions` are the classes of tools' exceptions that calls may raise, or `None` for those
    /// of all imported modules. `headers` are those of each request.
    #[new]
    #[pyo3(signature = (address, connect_timeout, exceptions, headers))]
    fn new(
        address: &Bound<'_, PyAny>,
        connect_timeout: &Bound<'_, PyAny>,
        exceptions: Option<Py<PyTuple>>,
        headers: BTreeMap<String, String>,
    ) -> PyResult<Self> {
        let headers = read_headers(headers).map_err(InvalidArgumentError::new_err)?;
        let address = text("address", address)?;
        let bound = timeout("connect_timeout", connect_timeout, MinTimeout::Nanosecond)?;
        let target = Target::parse(address).map_err(InvalidArgumentError::new_err)?;
        let runtime = RuntimeHandle::Background(BackgroundRuntime::get()?);
        let connection = Connection::new(address, &target, bound, headers, runtime);
        Ok(Self { connection: Arc::new(connection), exceptions })
    }

    /// Connects, unless the client is connected. Waits for `timeout` seconds at most.
    #[pyo3(signature = (timeout=None))]
    fn connect(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let timeout = option_timeout(timeout)?;
        let runtime = self.connection.host.runtime();
        runtime.wait(py, Arc::clone(&self.connection).connect(timeout))??;
        Ok(())
    }

    /// Connects without blocking the thread. See `Call.in_background`.
    #[pyo3(signature = (timeout, completions, key))]
    fn start_connect(
        &self,
        timeout: Option<&Bound<'_, PyAny>>,
        completions: Py<Completions>,
        key: u64,
    ) -> PyResult<PendingRequest> {
        let timeout = option_timeout(timeout)?;
        let (runtime, completion) = (self.connection.host.runtime(), CompletionHandle { completions, key });
        let connect = Arc::clone(&self.connection).connect(timeout);
        PendingRequest::start(runtime, &completion, Box::pin(connect), Box::new(|py, ()| Ok(py.None())))
    }

    /// Returns a `Call` outside of any tool, for access to the session. `timeout` is in seconds and bounds each request
    /// and each watch. `retries` are those of requests that only read.
    #[pyo3(signature = (session_id, timeout, retries=0))]
    fn session_call(
        &self,
        session_id: String,
        timeout: Option<&Bound<'_, PyAny>>,
        retries: u32,
    ) -> PyResult<Call> {
        let timeout = option_timeout(timeout)?;
        Ok(Call {
            caller: Caller::Program { connection: Arc::clone(&self.connection), timeout, retries },
            host: Some(self.connection.host.clone()),
            session_id,
            // A program has no worker id. It may name itself in the metadata of its writes.
            worker_id: "".into(),
            metadata: BTreeMap::new(),
            completion: None,
        })
    }

    /// Starts a call.
    #[pyo3(signature = (
        tool, arguments, *, session_id, timeout, idempotent, stream, metadata=None, progress=false, logs=false
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
    fn start(
        &self,
        py: Python<'_>,
        tool: &Bound<'_, PyAny>,
        arguments: &Bound<'_, PyDict>,
        session_id: String,
        timeout: Option<&Bound<'_, PyAny>>,
        idempotent: bool,
        stream: bool,
        metadata: Option<BTreeMap<String, String>>,
        progress: bool,
        logs: bool,
    ) -> PyResult<HostCall> {
        let tool_name = text("name", tool)?.to_owned();
        let mut values = Vec::with_capacity(arguments.len());
        for (name, argument) in arguments {
            let name = text("name of an argument", &name)?.to_owned();
            let description = format_args!("argument `{name}` of tool `{tool_name}`");
            let payload = value::from_python(&argument, Purpose::Argument, description)?;
            values.push(pb::CallArgument { name, value: Some(value_to_wire(payload)) });
        }
        let start = pb::CallStart {
            tool_name,
            session_id,
            arguments: values,
            metadata: metadata.unwrap_or_default(),
            stream,
            idempotent,
            credit: if stream { STREAM_CREDIT } else { 0 },
            reports: (progress || logs).then_some(pb::CallReports { progress, logs }),
            ..pb::CallStart::default()
        };
        let timeout = option_timeout(timeout)?;
        let tool = tool.cast::<PyString>()?.clone().unbind();
        let exceptions = self.exceptions.as_ref().map(|classes| classes.clone_ref(py));
        HostCall::start(&self.connection, NewCall { tool, exceptions, start, timeout })
    }

    /// Rejects further calls and ends watches. Running calls continue, with `timeout` for at most that many seconds.
    #[pyo3(signature = (timeout))]
    fn close(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let bound = close_timeout(timeout)?;
        let runtime = self.connection.host.runtime();
        if runtime.is_forked() {
            // The connection belongs to the parent.
            return Ok(());
        }
        self.connection.close();
        match bound {
            Some(bound) => runtime.wait(py, Arc::clone(&self.connection).drain(bound)),
            None => Ok(()),
        }
    }

    /// Closes the client, and waits for running calls without blocking the thread. See `Call.in_background`.
    #[pyo3(signature = (timeout, completions, key))]
    fn start_close(
        &self,
        timeout: Option<&Bound<'_, PyAny>>,
        completions: Py<Completions>,
        key: u64,
    ) -> PyResult<PendingRequest> {
        let bound = close_timeout(timeout)?.unwrap_or_default();
        let (runtime, completion) = (self.connection.host.runtime(), CompletionHandle { completions, key });
        runtime.check_not_forked()?;
        self.connection.close();
        let connection = Arc::clone(&self.connection);
        let drain = async move {
            connection.drain(bound).await;
            Ok(())
        };
        PendingRequest::start(runtime, &completion, Box::pin(drain), Box::new(|py, ()| Ok(py.None())))
    }
}

impl From<OpenError> for HostError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Timeout(problem) => Self::ConnectTimeout(problem),
            OpenError::Unreachable(problem) => Self::Unreachable(problem),
            OpenError::Rejected(status) => Self::StreamRejected(status),
        }
    }
}

/// Checks the headers of a client. Errors show no values, which may be secrets.
fn read_headers(headers: BTreeMap<String, String>) -> Result<MetadataMap, String> {
    let mut read = MetadataMap::with_capacity(headers.len());
    for (name, value) in headers {
        let key = AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
            .ok()
            .filter(|key| !is_reserved(key.as_str()))
            .ok_or_else(|| {
                format!("`headers` has the key `{name}`, which is invalid or reserved for the client")
            })?;
        let mut value = AsciiMetadataValue::try_from(value).map_err(|_| {
            format!("the value of the header `{name}` has characters that a header cannot contain")
        })?;
        value.set_sensitive(true);
        read.insert(key, value);
    }
    Ok(read)
}

/// Reads the timeout of the option `timeout`.
fn option_timeout(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Duration>> {
    value.map(|value| timeout("timeout", value, MinTimeout::Nanosecond)).transpose()
}

/// Reads the timeout of `close`.
fn close_timeout(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Duration>> {
    value.map(|value| timeout("timeout", value, MinTimeout::Zero)).transpose()
}
