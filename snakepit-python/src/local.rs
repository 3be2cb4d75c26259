//! [`LocalRunner`]: runs tools in the current process as a worker would, for tests of adapters.

mod concurrent;
mod control;
mod variables;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, mpsc},
    thread::JoinHandle,
};

use pyo3::{prelude::*, types::PyDict};
use snakepit_registry::{CallMode, Chunk, ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_session::SessionId;
use tokio::{runtime::Runtime, sync::oneshot, time::Instant};
use tokio_stream::StreamExt;

pub(crate) use self::{
    concurrent::ConcurrentLocalRunner,
    control::LocalControl,
    variables::{LocalSession, LocalVariables},
};
use crate::{
    call::Call,
    caller::Caller,
    errors::{
        CallCancelled, InvalidArgumentError, NotFoundError, SnakepitError, invalid_arguments, tool_failed,
    },
    executor::{CurrentCall, Executor, PendingAnswers},
    plan::Plan,
    state::CallState,
    tools::{Job, PythonTools, Reply},
    value::{self, Purpose},
};

/// Runs the tools of one adapter on the calling thread.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct LocalRunner {
    executor: Executor,
}

#[pymethods]
impl LocalRunner {
    #[new]
    fn new(plan: &Bound<'_, PyAny>, worker_id: &str) -> PyResult<Self> {
        // The control of a call interrupts it, so the receiver of interruptions is dropped.
        let (interrupter, _) = mpsc::channel();
        Ok(Self { executor: Self::executor(plan, worker_id, interrupter)? })
    }

    /// Returns a `Call` outside of any tool, for access to the session.
    fn session_call(&self, session_id: &str) -> Call {
        let state = Arc::new(CallState::unnamed(None));
        Call {
            caller: Caller::Tool { state, trace: None, worker_id: Arc::clone(&self.executor.worker_id) },
            host: None,
            session_id: session_id.to_owned(),
            worker_id: Arc::clone(&self.executor.worker_id),
            metadata: BTreeMap::new(),
            completion: None,
        }
    }

    /// Returns whether the running call was cancelled and may be interrupted.
    fn interrupt_due(&self) -> bool {
        let current = self.executor.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().is_some_and(|call| call.is_cancelled())
    }

    /// Runs a unary call. Converts arguments and result through their wire forms.
    #[pyo3(signature = (tool, arguments, session_id, control))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        tool: &str,
        arguments: &Bound<'py, PyDict>,
        session_id: &str,
        control: Option<&LocalControl>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut pending = PendingCall::new(tool, arguments, session_id, CallMode::Unary, control)?;
        self.executor.execute(py, pending.job()?, Instant::now(), &mut PendingAnswers::new(None));
        pending.value(py)
    }

    /// Runs a streaming call and passes each chunk to `receive` on another thread. The stream ends when `receive`
    /// returns `False`.
    #[pyo3(signature = (tool, arguments, session_id, receive, control))]
    fn stream<'py>(
        &self,
        py: Python<'py>,
        tool: &str,
        arguments: &Bound<'py, PyDict>,
        session_id: &str,
        receive: Py<PyAny>,
        control: Option<&LocalControl>,
    ) -> PyResult<()> {
        let mut pending = PendingCall::new(tool, arguments, session_id, CallMode::Streaming, control)?;
        let job = pending.job()?;
        let reader = std::thread::spawn(move || read_chunks(pending, &receive));
        self.executor.execute(py, job, Instant::now(), &mut PendingAnswers::new(None));
        Self::join(py, reader)
    }
}

impl LocalRunner {
    /// Creates an executor without a host. `interrupter` receives the running calls that are cancelled.
    fn executor(
        plan: &Bound<'_, PyAny>,
        worker_id: &str,
        interrupter: mpsc::Sender<Arc<CallState>>,
    ) -> PyResult<Executor> {
        Ok(Executor {
            tools: PythonTools::new(interrupter),
            plan: Plan::read(plan)?,
            io: None,
            host: None,
            worker_id: worker_id.into(),
            thread: None,
            current: CurrentCall::default(),
            progress: None,
            flags: Arc::default(),
            fitness: None,
            globals: None,
        })
    }

    /// Waits for the thread that reads the chunks of a call.
    fn join(py: Python<'_>, reader: JoinHandle<PyResult<()>>) -> PyResult<()> {
        py.detach(|| reader.join()).unwrap_or_else(|_| Err(SnakepitError::new_err("the reader panicked")))
    }
}

impl PendingCall {
    fn new(
        tool: &str,
        arguments: &Bound<'_, PyDict>,
        session_id: &str,
        mode: CallMode,
        control: Option<&LocalControl>,
    ) -> PyResult<Self> {
        let state = match control {
            Some(control) => Arc::clone(&control.state),
            None => Arc::new(CallState::unnamed(None)),
        };
        state.set_tool(tool);
        let mut call = ToolCall::new(tool);
        call.id = state.id;
        call.deadline = state.deadline;
        call.mode = mode;
        call.session = match session_id {
            "" => None,
            id => Some(self::session_id(id)?),
        };
        for (name, argument) in arguments {
            let name: String = name.extract()?;
            let description = format_args!("argument `{name}` of tool `{tool}`");
            let payload = value::from_python(&argument, Purpose::Argument, description)?;
            call.arguments.insert(name, payload);
        }
        let (reply, answer) = oneshot::channel();
        Ok(Self { job: Some(Job { call, state, reply: Reply::Task(reply) }), answer })
    }
}

fn session_id(id: &str) -> PyResult<SessionId> {
    SessionId::try_new(id).map_err(|error| InvalidArgumentError::new_err(error.to_string()))
}

/// A call before it runs, and the receiver of its reply.
struct PendingCall {
    job: Option<Job>,
    answer: oneshot::Receiver<Result<ToolReply, ToolError>>,
}

impl PendingCall {
    fn job(&mut self) -> PyResult<Job> {
        self.job.take().ok_or_else(|| SnakepitError::new_err("the call has already run"))
    }

    /// Returns the value that answered the call, which has ended.
    fn value(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        match self.reply()? {
            ToolReply { body: ReplyBody::Value(payload), .. } => value::to_python(py, payload),
            ToolReply { body: ReplyBody::Stream(_), .. } => {
                Err(SnakepitError::new_err("the call was answered with a stream"))
            }
        }
    }

    fn reply(mut self) -> PyResult<ToolReply> {
        match self.answer.try_recv() {
            Ok(reply) => reply.map_err(to_exception),
            Err(_) => Err(CallCancelled::new_err("the call was cancelled")),
        }
    }
}

/// Reads the chunks while the tool runs. Without a reader, the queue would fill and block the tool.
fn read_chunks(pending: PendingCall, receive: &Py<PyAny>) -> PyResult<()> {
    let Ok(reply) = pending.answer.blocking_recv() else {
        return Err(CallCancelled::new_err("the call was cancelled"));
    };
    let ReplyBody::Stream(mut chunks) = reply.map_err(to_exception)?.body else {
        return Err(SnakepitError::new_err("the call was answered with a value"));
    };
    let runtime = new_runtime()?;
    while let Some(chunk) = runtime.block_on(chunks.next()) {
        if !Python::attach(|py| deliver(py, receive, chunk.map_err(to_exception)?))? {
            break;
        }
    }
    Ok(())
}

fn new_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_time().build()
}

fn deliver(py: Python<'_>, receive: &Py<PyAny>, chunk: Chunk) -> PyResult<bool> {
    let Chunk { data, metadata, binary } = chunk;
    let metadata: BTreeMap<String, String> = metadata;
    let answer = receive.call1(py, (value::item_to_python(py, data, binary)?, metadata))?;
    Ok(answer.is_none(py) || answer.is_truthy(py)?)
}

fn to_exception(error: ToolError) -> PyErr {
    let message = error.to_string();
    match error {
        ToolError::Failed(failure) => Python::attach(|py| tool_failed(py, &failure, None)),
        ToolError::NotFound { .. } => NotFoundError::new_err(message),
        ToolError::InvalidArguments { violations, .. } => {
            let violations = violations.iter();
            invalid_arguments(
                message,
                violations.map(|violation| (&*violation.field, &*violation.description)),
            )
        }
        ToolError::Cancelled { .. } => CallCancelled::new_err(message),
        _ => SnakepitError::new_err(message),
    }
}
