//! [`HostClient`]: a client of a host, for programs that are not workers. Its calls are frames on one stream, driven by
//! a background thread.

mod answer;
mod arguments;
mod call;
mod connection;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pyo3::{
    prelude::*,
    types::{PyDict, PyString, PyTuple},
};
use snakepit_proto::{mux::STREAM_CREDIT, pb};
use snakepit_wire::value_to_wire;
use tokio::time::Instant;

pub(crate) use self::call::HostCall;
use self::{
    arguments::{MinTimeout, text, timeout},
    call::NewCall,
    connection::{Connection, OpenError},
};
use crate::{
    background::BackgroundRuntime,
    call::Call,
    caller::Caller,
    errors::{HostError, InvalidArgumentError},
    host::{RequestKind, Target},
    listing::describe_listed,
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
    /// Connects to `host:port`, `http://host:port` or `unix:/path` within `connect_timeout` seconds. `exceptions` are the classes of
    /// tools' exceptions that calls may raise, or `None` for those of all imported modules.
    #[new]
    #[pyo3(signature = (address, connect_timeout, exceptions))]
    fn new(
        py: Python<'_>,
        address: &Bound<'_, PyAny>,
        connect_timeout: &Bound<'_, PyAny>,
        exceptions: Option<Py<PyTuple>>,
    ) -> PyResult<Self> {
        let address = text("address", address)?;
        let bound = timeout("connect_timeout", connect_timeout, MinTimeout::Nanosecond)?;
        let target = Target::parse(address).map_err(InvalidArgumentError::new_err)?;
        let runtime = RuntimeHandle::Background(BackgroundRuntime::get()?);
        let connection =
            runtime.wait(py, Connection::open(address, &target, bound, runtime))?.map_err(HostError::from)?;
        Ok(Self { connection: Arc::new(connection), exceptions })
    }

    /// Creates the session if it does not exist.
    #[pyo3(signature = (session_id, timeout))]
    fn open_session(
        &self,
        py: Python<'_>,
        session_id: String,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let request = pb::InitializeSessionRequest { session_id, ..Default::default() };
        let call = self.session_call(String::new(), timeout)?;
        // Initializing an existing session changes nothing, so the request may be repeated.
        let opened = call.request(py, RequestKind::Read, request, |mut client, request| async move {
            client.initialize_session(request).await
        });
        opened.map(drop)
    }

    /// Returns a `Call` outside of any tool, for access to the session. `timeout` is in seconds and bounds each request
    /// and each watch.
    #[pyo3(signature = (session_id, timeout))]
    fn session_call(&self, session_id: String, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Call> {
        let timeout = option_timeout(timeout)?;
        Ok(Call {
            caller: Caller::Program { close_signals: self.connection.close_signals.clone(), timeout },
            host: Some(self.connection.host.clone()),
            session_id,
            // A program has no worker id. It may name itself in the metadata of its writes.
            worker_id: "".into(),
            metadata: BTreeMap::new(),
        })
    }

    /// Lists the tools of the host by name.
    #[pyo3(signature = (timeout))]
    fn tools<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let call = self.session_call(String::new(), timeout)?;
        let request = pb::ListToolsRequest {};
        let listed = call.request(py, RequestKind::Read, request, |mut client, request| async move {
            client.list_tools(request).await
        })?;
        let tools = PyDict::new(py);
        for tool in listed.tools {
            let entry = describe_listed(py, tool)?;
            tools.set_item(entry.as_any().get_item("name")?, entry)?;
        }
        Ok(tools)
    }

    /// Starts a call.
    #[pyo3(signature = (tool, arguments, *, session_id, timeout, idempotent, stream, progress=false, logs=false))]
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
            metadata: BTreeMap::new(),
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
        let bound =
            timeout.map(|value| arguments::timeout("timeout", value, MinTimeout::Zero)).transpose()?;
        let runtime = self.connection.host.runtime();
        if runtime.is_forked() {
            // The connection belongs to the parent.
            return Ok(());
        }
        self.connection.close();
        let Some(bound) = bound else { return Ok(()) };
        let limit = Instant::now().checked_add(bound);
        if runtime.wait_until(py, limit, self.connection.drained())?.is_none() {
            self.connection.close_signals.abort.cancel();
        }
        Ok(())
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

/// Reads the timeout of the option `timeout`.
fn option_timeout(value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Duration>> {
    value.map(|value| timeout("timeout", value, MinTimeout::Nanosecond)).transpose()
}
