//! The native half of Python's `SessionContext`: the methods of [`Call`] for Python code.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use pyo3::{
    exceptions::PyRuntimeError,
    prelude::*,
    types::{PyBytes, PyDict},
};
use snakepit_proto::{launch, pb};
use snakepit_session::{Payload, ValueType};
use snakepit_wire::{payload_from_wire, payload_to_wire, payload_to_wire_inline};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    call::{Call, HostFuture, NOTHING},
    caller::Caller,
    completions::{Completions, Wait},
    errors::{DeadlockError, HostError, SnakepitError},
    executor::is_loop_thread,
    host::{Host, RequestKind},
    host_stream::HostToolStream,
    listing::describe_tool,
    nested_call,
    pending::CompletionHandle,
    stub_request,
    value::{self, Purpose},
    variables::Variables,
};

/// The advice of the host for a unary call to a tool that streams.
const STREAMS: &str = "; make a streaming call";

impl Call {
    /// Returns the session id of a request for programs. Empty for the host's own programs.
    fn program_owner(&self, is_global: bool) -> String {
        if is_global { String::new() } else { self.session_id.clone() }
    }

    /// Requests a program and converts it. If the program still has the time `known`, the host omits its data, and the flag for
    /// `convert` is `true`.
    fn request_program<V>(
        &self,
        py: Python<'_>,
        name: String,
        is_global: bool,
        known: Option<SystemTime>,
        convert: impl FnOnce(Python<'_>, pb::Program, bool) -> PyResult<V> + Send + 'static,
    ) -> PyResult<Py<PyAny>>
    where
        V: for<'py> IntoPyObject<'py>,
    {
        let request = pb::GetProgramRequest {
            session_id: self.program_owner(is_global),
            name,
            global: is_global,
            unless_updated_at: known.map(Into::into),
        };
        self.answer(py, RequestKind::Read, request, |py, response| {
            convert(py, response.program.unwrap_or_default(), response.unchanged)
        })
    }

    /// Starts a call to a tool. Completes the wait with this key when the answer arrives. `tool` names the tool in messages.
    fn start_call(
        &self,
        tool: String,
        answer: HostFuture<Payload>,
        completions: &Completions,
        key: u64,
    ) -> PyResult<PendingHostCall> {
        let outcome = Outcome::default();
        let shared_outcome = Arc::clone(&outcome);
        let wait = Wait::start(self.host()?.runtime(), completions, key, async move {
            let result = answer.await;
            *shared_outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        })?;
        Ok(PendingHostCall { tool, wait, outcome })
    }

    fn host_tool_answer(&self, request: pb::ExecuteElixirToolRequest) -> PyResult<HostFuture<Payload>> {
        let (host, caller) = (self.host()?.clone(), self.caller.clone());
        Ok(Box::pin(async move { execute(&host, &caller, request).await }))
    }

    fn tool_answer(&self, request: pb::ExecuteToolRequest) -> PyResult<HostFuture<Payload>> {
        let (host, caller) = (self.host()?.clone(), self.caller.clone());
        Ok(Box::pin(async move { nested_call::execute(&host, &caller, request).await }))
    }

    pub(crate) fn host_tool_request(
        &self,
        name: &str,
        arguments: &Bound<'_, PyDict>,
    ) -> PyResult<pb::ExecuteElixirToolRequest> {
        let (mut parameters, mut binary_parameters) = (BTreeMap::new(), BTreeMap::new());
        for (key, argument) in arguments {
            let key: String = key.extract()?;
            let description = format_args!("argument `{key}` of host tool `{name}`");
            let payload = value::from_python(&argument, Purpose::Argument, description)?;
            // Hosts of the original protocol read only `parameters`.
            if payload.nested_json().is_some() || (payload.binary().is_some() && is_host_of_this_project()) {
                let (value, buffers) = payload_to_wire(payload);
                binary_parameters.extend(buffers.map(|buffers| (key.clone(), buffers)));
                parameters.insert(key, value);
            } else {
                parameters.insert(key, payload_to_wire_inline(payload));
            }
        }
        Ok(pb::ExecuteElixirToolRequest {
            session_id: self.session_id.clone(),
            tool_name: name.to_owned(),
            parameters,
            metadata: BTreeMap::new(),
            binary_parameters,
        })
    }
}

#[pymethods]
impl Call {
    #[getter]
    fn session_id(&self) -> &str {
        &self.session_id
    }

    /// The host's id of the call. Empty outside a call.
    #[getter]
    fn request_id(&self) -> String {
        self.caller.state().map_or_else(String::new, |state| state.request_id().to_string())
    }

    /// The name of the tool. Empty outside a call.
    #[getter]
    fn tool(&self) -> &str {
        self.caller.state().map_or("", |state| state.tool())
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
        self.caller.trace().map(|trace| trace.traceparent.as_str())
    }

    #[getter]
    fn tracestate(&self) -> Option<&str> {
        self.caller.trace()?.tracestate.as_deref()
    }

    #[getter]
    fn cancelled(&self) -> bool {
        self.caller.is_cancelled()
    }

    fn time_remaining(&self) -> Option<f64> {
        let deadline = self.caller.stream_deadline()?;
        Some(deadline.saturating_duration_since(Instant::now()).as_secs_f64())
    }

    /// Reports the progress of the call to its caller. Does nothing if the caller does not receive progress.
    #[pyo3(signature = (done, total, message))]
    fn report_progress(&self, py: Python<'_>, done: f64, total: Option<f64>, message: String) {
        if let Caller::Tool { state, .. } = &self.caller
            && let Some(reports) = state.reports().filter(|reports| reports.wants_progress())
        {
            // The write waits while the pipe is full.
            py.detach(|| reports.report(Arc::downgrade(state), state.request_id(), (done, total, message)));
        }
    }

    fn call_host_tool<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        arguments: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request = self.host_tool_request(name, arguments)?;
        let _block = self.caller.block_loop();
        let payload = self.wait(py, self.host_tool_answer(request)?)?;
        answer_to_python(py, payload, format_args!("host tool `{name}`"))
    }

    fn start_host_tool(
        &self,
        name: &str,
        arguments: &Bound<'_, PyDict>,
        completions: &Completions,
        key: u64,
    ) -> PyResult<PendingHostCall> {
        let request = self.host_tool_request(name, arguments)?;
        let answer = self.host_tool_answer(request)?;
        self.start_call(format!("host tool `{name}`"), answer, completions, key)
    }

    /// Calls a tool of the host or of its workers.
    fn call_tool<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        arguments: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if is_loop_thread() {
            return Err(DeadlockError::new_err(format!(
                "`call_tool` of `{name}` would block the event loop, on which the called tool may have to run; use `await \
                 call_tool_async(..)` in a coroutine, or set `threads` for synchronous functions"
            )));
        }
        let request = nested_call::request(self, name, arguments)?;
        let payload = self.wait(py, self.tool_answer(request)?)?;
        answer_to_python(py, payload, format_args!("tool `{name}`"))
    }

    fn start_tool(
        &self,
        name: &str,
        arguments: &Bound<'_, PyDict>,
        completions: &Completions,
        key: u64,
    ) -> PyResult<PendingHostCall> {
        let request = nested_call::request(self, name, arguments)?;
        let answer = self.tool_answer(request)?;
        self.start_call(format!("tool `{name}`"), answer, completions, key)
    }

    /// Prepares a call to a tool that streams. The first read makes it.
    fn stream_tool(&self, name: &str, arguments: &Bound<'_, PyDict>) -> PyResult<HostToolStream> {
        HostToolStream::of_tool(self, name, arguments)
    }

    /// Prepares a call to a host tool that streams. The first read makes it.
    fn stream_host_tool(&self, name: &str, arguments: &Bound<'_, PyDict>) -> PyResult<HostToolStream> {
        HostToolStream::new(self, name, arguments)
    }

    fn host_tools<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let request = pb::GetExposedElixirToolsRequest { session_id: self.session_id.clone() };
        let response = self.request(py, RequestKind::Read, request)?;
        let tools = PyDict::new(py);
        for spec in response.tools {
            let tool = describe_tool(py, &spec)?;
            tools.set_item(spec.name, tool)?;
        }
        Ok(tools)
    }

    /// The variables of the session.
    fn variables(slf: Py<Self>) -> Variables {
        Variables { call: slf }
    }

    #[pyo3(signature = (name, data, content_type, metadata, *, is_global, ttl_seconds))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
    fn put_program(
        &self,
        py: Python<'_>,
        name: String,
        data: &Bound<'_, PyAny>,
        content_type: String,
        metadata: BTreeMap<String, String>,
        is_global: bool,
        ttl_seconds: Option<i64>,
    ) -> PyResult<Py<PyAny>> {
        let data = value::raw_bytes(data)?.unwrap_or_default();
        let program = pb::Program {
            name,
            data,
            content_type,
            metadata,
            ttl_seconds: ttl_seconds.unwrap_or_default(),
            ..pb::Program::default()
        };
        let request = pb::PutProgramRequest {
            session_id: self.program_owner(is_global),
            program: Some(program),
            global: is_global,
        };
        self.answer(py, RequestKind::Write, request, |_, response| Ok(response.created))
    }

    /// Returns the data and the content type of a program.
    fn get_program(&self, py: Python<'_>, name: String, is_global: bool) -> PyResult<Py<PyAny>> {
        self.request_program(py, name, is_global, None, |py, program, _| {
            Ok((PyBytes::new(py, &program.data).unbind(), program.content_type))
        })
    }

    /// Returns the data, the content type and the version of a program. Returns `None` if it still has the known version.
    fn get_changed_program(
        &self,
        py: Python<'_>,
        name: String,
        is_global: bool,
        known: Option<ProgramVersion>,
    ) -> PyResult<Py<PyAny>> {
        let known_time = known.and_then(|(seconds, nanos)| {
            UNIX_EPOCH.checked_add(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?))
        });
        self.request_program(py, name, is_global, known_time, |py, program, is_unchanged| {
            let version: ProgramVersion =
                program.updated_at.map_or((0, 0), |time| (time.seconds, time.nanos));
            // Older hosts always send the data.
            let data = || (PyBytes::new(py, &program.data).unbind(), program.content_type, version);
            Ok((!is_unchanged).then(data))
        })
    }

    /// Sends a unary request of the bridge service that Python code has encoded. Returns the encoded answer.
    fn request_encoded<'py>(
        &self,
        py: Python<'py>,
        rpc: &str,
        request: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let request = stub_request::request(rpc, request).map_err(HostError::from)?;
        let answer = self.wait(py, self.send(request)?)?;
        Ok(PyBytes::new(py, &answer))
    }

    fn list_programs(&self, py: Python<'_>, is_global: bool) -> PyResult<Py<PyAny>> {
        let request =
            pb::ListProgramsRequest { session_id: self.program_owner(is_global), global: is_global };
        self.answer(py, RequestKind::Read, request, |_, response| {
            Ok(response.programs.into_iter().map(|program| program.name).collect::<Vec<_>>())
        })
    }

    fn delete_program(&self, py: Python<'_>, name: String, is_global: bool) -> PyResult<Py<PyAny>> {
        let request =
            pb::DeleteProgramRequest { session_id: self.program_owner(is_global), name, global: is_global };
        self.answer(py, RequestKind::Write, request, |_, _| Ok(NOTHING))
    }

    fn cleanup_session(&self, py: Python<'_>, force: bool) -> PyResult<Py<PyAny>> {
        let request = pb::CleanupSessionRequest { session_id: self.session_id.clone(), force };
        self.answer(py, RequestKind::Write, request, |_, response| Ok(response.success))
    }

    /// Returns this call for the next request of a coroutine. The request returns a `PendingRequest`, and finishes the wait of
    /// this key when its answer arrives.
    fn in_background(&self, completions: Py<Completions>, key: u64) -> Self {
        let Self { caller, host, session_id, worker_id, metadata, completion: _ } = self;
        Self {
            caller: caller.clone(),
            host: host.clone(),
            session_id: session_id.clone(),
            worker_id: Arc::clone(worker_id),
            metadata: metadata.clone(),
            completion: Some(CompletionHandle { completions, key }),
        }
    }
}

/// Converts the answer of a tool. An error names the tool.
fn answer_to_python<'py>(
    py: Python<'py>,
    answer: Payload,
    tool: fmt::Arguments<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    value::name_read_error(value::to_python(py, answer), py, format_args!("the result of {tool}"))
}

/// Calls a host tool and decodes its answer.
async fn execute(
    host: &Host,
    caller: &Caller,
    request: pb::ExecuteElixirToolRequest,
) -> Result<Payload, HostError> {
    let tool = request.tool_name.clone();
    let response = host.request(caller, RequestKind::Write, request).await.map_err(prefix_with_host)?;
    let pb::ExecuteElixirToolResponse { success, result, error_message, binary_result, failure, .. } =
        response;
    if !success {
        let message = without_default_type(&error_message).to_owned();
        return Err(HostError::ToolFailed { tool, message, failure: failure.map(Box::new) });
    }
    read_result(result.unwrap_or_default(), binary_result).map_err(|error| HostError::ToolFailed {
        message: format!("the answer of host tool `{tool}` cannot be read: {error}"),
        tool,
        failure: None,
    })
}

/// The text of a host tool's error without the type that the host writes for an error without one, because the exception class
/// shows it.
pub(crate) fn without_default_type(text: &str) -> &str {
    text.strip_prefix("HostToolError: ").unwrap_or(text)
}

/// Adds "host" before "tool" in an error of the host, because in Python code "tool" means a tool of the adapter. Names the method
/// for a tool that streams.
pub(crate) fn prefix_with_host(error: HostError) -> HostError {
    match error {
        HostError::Status(status)
            if status.code() == Code::Unimplemented && status.message().contains(STREAMS) =>
        {
            let message = status.message().replace(STREAMS, "; read them with `stream_host_tool`");
            HostError::Status(Status::unimplemented(format!("host {message}")))
        }
        HostError::Status(status)
            if status.code() == Code::NotFound && status.message().starts_with("tool ") =>
        {
            HostError::Status(Status::not_found(format!("host {}", status.message())))
        }
        other => other,
    }
}

/// Decodes the result of a host tool. For clients of the original Snakepit, the host also sends an array's buffer inside
/// the `Any`. This function uses the copy in the separate field.
fn read_result(result: pb::Any, buffer: Bytes) -> Result<Payload, snakepit_wire::WireError> {
    let separate_buffer = (!buffer.is_empty()).then_some(buffer);
    let payload = payload_from_wire(result, separate_buffer.clone())?;
    let is_array = matches!(payload.ty(), ValueType::Tensor | ValueType::Embedding);
    Ok(match (payload.binary().is_none() && is_array, separate_buffer) {
        (true, Some(buffer)) => {
            let (ty, metadata, _) = payload.into_parts();
            Payload::from_buffer(ty, metadata, buffer)
        }
        _ => payload,
    })
}

/// The time at which a program was stored: seconds since the Unix epoch, and nanoseconds.
type ProgramVersion = (i64, i32);

/// Whether a host of this project launched the process. Hosts of the original protocol have no version.
pub(crate) fn is_host_of_this_project() -> bool {
    static IS_OURS: OnceLock<bool> = OnceLock::new();
    *IS_OURS.get_or_init(|| std::env::var_os(launch::ENV_HOST_VERSION).is_some())
}

type Outcome = Arc<Mutex<Option<Result<Payload, HostError>>>>;

/// A pending call to a tool. Dropping it cancels the call.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct PendingHostCall {
    /// The tool, for messages.
    tool: String,
    wait: Wait,
    outcome: Outcome,
}

#[pymethods]
impl PendingHostCall {
    /// Returns the answer. Raises `RuntimeError` before the wait has finished.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        match outcome {
            Some(outcome) => answer_to_python(py, outcome?, format_args!("{}", self.tool)),
            None if self.wait.is_finished() => Err(SnakepitError::new_err("the worker is stopping")),
            None => Err(PyRuntimeError::new_err("the host has not answered yet")),
        }
    }
}
