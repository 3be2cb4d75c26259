//! The native half of Python's `SessionContext`: what a tool may know about its call, and its calls back to the host.

use std::{
    collections::BTreeMap,
    future::Future,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use pyo3::{
    exceptions::PyRuntimeError,
    prelude::*,
    types::{PyBytes, PyDict, PyList},
};
use snakepit_proto::pb;
use snakepit_session::{Payload, ValueType};
use snakepit_worker::wire::{payload_from_wire, payload_to_wire_inline};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    host::{Caller, Host, HostError, HostUnavailableError, SnakepitError},
    value,
};

/// What native code knows about the call that a tool serves.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) host: Option<Host>,
    pub(crate) session_id: String,
    pub(crate) worker_id: Arc<str>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Call {
    fn host(&self) -> PyResult<&Host> {
        let host = self.host.as_ref();
        let host =
            host.ok_or_else(|| HostUnavailableError::new_err("this worker was started without a host"))?;
        if host.io().is_forked() {
            return Err(HostUnavailableError::new_err(
                "this process is a fork of a worker; call the host from the worker itself",
            ));
        }
        Ok(host)
    }

    /// Runs a call to the host while other Python threads go on.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        call: impl Future<Output = Result<T, HostError>> + Send,
    ) -> PyResult<T> {
        let io = self.host()?.io();
        Ok(py.detach(|| io.block_on(call))?)
    }

    fn request(&self, name: &str, arguments: &Bound<'_, PyDict>) -> PyResult<pb::ExecuteElixirToolRequest> {
        let mut parameters = BTreeMap::new();
        for (key, argument) in arguments {
            let key: String = key.extract()?;
            let payload =
                value::from_python(&argument, format_args!("argument `{key}` of host tool `{name}`"))?;
            parameters.insert(key, payload_to_wire_inline(payload));
        }
        Ok(pb::ExecuteElixirToolRequest {
            session_id: self.session_id.clone(),
            tool_name: name.to_owned(),
            parameters,
            metadata: BTreeMap::new(),
        })
    }
}

#[pymethods]
impl Call {
    #[getter]
    fn session_id(&self) -> &str {
        &self.session_id
    }

    #[getter]
    fn worker_id(&self) -> &str {
        &self.worker_id
    }

    #[getter]
    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }

    #[getter]
    fn traceparent(&self) -> Option<&str> {
        self.caller.trace.as_ref().map(|trace| trace.traceparent.as_str())
    }

    #[getter]
    fn cancelled(&self) -> bool {
        let state = &self.caller.state;
        state.is_cancelled() || state.is_overdue(Instant::now())
    }

    fn time_remaining(&self) -> Option<f64> {
        let deadline = self.caller.state.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()).as_secs_f64())
    }

    fn call_host_tool<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        arguments: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request = self.request(name, arguments)?;
        let payload = self.wait(py, execute(self.host()?, &self.caller, request))?;
        value::to_python(py, payload)
    }

    fn start_host_tool(&self, name: &str, arguments: &Bound<'_, PyDict>) -> PyResult<PendingHostCall> {
        let request = self.request(name, arguments)?;
        let (host, caller) = (self.host()?.clone(), self.caller.clone());
        PendingHostCall::spawn(host, caller, request)
    }

    fn host_tools<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let request = pb::GetExposedElixirToolsRequest { session_id: self.session_id.clone() };
        let call = self.host()?.call(&self.caller, request, |mut client, request| async move {
            client.get_exposed_elixir_tools(request).await
        });
        let tools = PyDict::new(py);
        for spec in self.wait(py, call)?.tools {
            let parameters = PyList::empty(py);
            for parameter in spec.parameters {
                let entry = PyDict::new(py);
                entry.set_item("name", parameter.name)?;
                entry.set_item("type", parameter.r#type)?;
                entry.set_item("description", parameter.description)?;
                entry.set_item("required", parameter.required)?;
                parameters.append(entry)?;
            }
            let tool = PyDict::new(py);
            tool.set_item("name", &spec.name)?;
            tool.set_item("description", spec.description)?;
            tool.set_item("parameters", parameters)?;
            tools.set_item(spec.name, tool)?;
        }
        Ok(tools)
    }

    fn put_program(
        &self,
        py: Python<'_>,
        name: String,
        data: &Bound<'_, PyAny>,
        content_type: String,
        metadata: BTreeMap<String, String>,
    ) -> PyResult<bool> {
        let data = value::raw_bytes(data)?.unwrap_or_default();
        let program = pb::Program { name, data, content_type, metadata, ..pb::Program::default() };
        let request = pb::PutProgramRequest {
            session_id: self.session_id.clone(),
            program: Some(program),
            global: false,
        };
        let call = self.host()?.call(&self.caller, request, |mut client, request| async move {
            client.put_program(request).await
        });
        Ok(self.wait(py, call)?.created)
    }

    /// The program's data and its content type.
    fn get_program<'py>(&self, py: Python<'py>, name: String) -> PyResult<(Bound<'py, PyBytes>, String)> {
        let request = pb::GetProgramRequest { session_id: self.session_id.clone(), name, global: false };
        let call = self.host()?.call(&self.caller, request, |mut client, request| async move {
            client.get_program(request).await
        });
        let program = self.wait(py, call)?.program.unwrap_or_default();
        Ok((PyBytes::new(py, &program.data), program.content_type))
    }

    fn list_programs(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let request = pb::ListProgramsRequest { session_id: self.session_id.clone(), global: false };
        let call = self.host()?.call(&self.caller, request, |mut client, request| async move {
            client.list_programs(request).await
        });
        Ok(self.wait(py, call)?.programs.into_iter().map(|program| program.name).collect())
    }

    fn delete_program(&self, py: Python<'_>, name: String) -> PyResult<()> {
        let request = pb::DeleteProgramRequest { session_id: self.session_id.clone(), name, global: false };
        let call = self.host()?.call(&self.caller, request, |mut client, request| async move {
            client.delete_program(request).await
        });
        self.wait(py, call).map(drop)
    }

    fn cleanup_session(&self, py: Python<'_>, force: bool) -> PyResult<bool> {
        let request = pb::CleanupSessionRequest { session_id: self.session_id.clone(), force };
        let call = self.host()?.call(&self.caller, request, |mut client, request| async move {
            client.cleanup_session(request).await
        });
        Ok(self.wait(py, call)?.success)
    }
}

/// Calls a tool of the host and takes its answer apart.
async fn execute(
    host: &Host,
    caller: &Caller,
    request: pb::ExecuteElixirToolRequest,
) -> Result<Payload, HostError> {
    let tool = request.tool_name.clone();
    let answer = host
        .call(caller, request, |mut client, request| async move { client.execute_elixir_tool(request).await })
        .await?;
    let pb::ExecuteElixirToolResponse { success, result, error_message, binary_result, .. } = answer;
    if !success {
        return Err(HostError::ToolFailed { tool, message: error_message });
    }
    read_result(result.unwrap_or_default(), binary_result).map_err(|error| HostError::ToolFailed {
        message: format!("the answer of host tool `{tool}` cannot be read: {error}"),
        tool,
    })
}

/// A host sends an array's buffer twice, inside the `Any` for clients of the original and beside it: take the latter.
fn read_result(result: pb::Any, buffer: Bytes) -> Result<Payload, snakepit_worker::wire::WireError> {
    let beside = (!buffer.is_empty()).then_some(buffer);
    let payload = payload_from_wire(result, beside.clone())?;
    let is_array = matches!(payload.ty(), ValueType::Tensor | ValueType::Embedding);
    Ok(match (payload.binary().is_none() && is_array, beside) {
        (true, Some(buffer)) => {
            let (ty, metadata, _) = payload.into_parts();
            Payload::from_buffer(ty, metadata, buffer)
        }
        _ => payload,
    })
}

type Outcome = Arc<Mutex<Option<Result<Payload, HostError>>>>;

/// A call to the host on its way: a file descriptor becomes readable when it is done, so an event loop can wait for it
/// without a thread. Dropping it gives the call up.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct PendingHostCall {
    readable: UnixStream,
    outcome: Outcome,
    task: JoinHandle<()>,
}

impl PendingHostCall {
    fn spawn(host: Host, caller: Caller, request: pb::ExecuteElixirToolRequest) -> PyResult<Self> {
        let (readable, done) = UnixStream::pair()?;
        let outcome = Outcome::default();
        let slot = Arc::clone(&outcome);
        let io = host.io();
        let task = io.runtime().spawn(async move {
            let result = execute(&host, &caller, request).await;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            // Closing this end makes the other one readable.
            drop(done);
        });
        // The executor, whose event loop is to wait for it, does not drive the IO meanwhile.
        io.hand_over();
        Ok(Self { readable, outcome, task })
    }
}

#[pymethods]
impl PendingHostCall {
    fn fileno(&self) -> i32 {
        self.readable.as_raw_fd()
    }

    /// The answer, once the descriptor is readable.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        match outcome {
            Some(outcome) => value::to_python(py, outcome?),
            None if self.task.is_finished() => Err(SnakepitError::new_err("the worker is stopping")),
            None => Err(PyRuntimeError::new_err("the host has not answered yet")),
        }
    }

    /// Gives the call up.
    fn cancel(&self) {
        self.task.abort();
    }
}

impl Drop for PendingHostCall {
    fn drop(&mut self) {
        self.task.abort();
    }
}
