//! [`ConcurrentCall`]: one of several running calls, for the task that runs it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use pyo3::{exceptions::PyException, prelude::*, types::PyDict};
use snakepit_registry::{CallMode, ToolCall, ToolError};
use snakepit_session::{Payload, SessionId};
use tokio::time::Instant;

use super::{
    super::{
        answer::Answer,
        stream::{ChunkSink, is_stream},
        unary_unsupported,
    },
    ConcurrentRunner,
};
use crate::{
    call::Call,
    caller::Caller,
    errors::BrokenRuntimeError,
    fork,
    frames::AnswerState,
    plan::AfterCancel,
    sink::Sink,
    state::{CallState, Interruption},
    tools::{Job, Reply, stopping_error},
    value::{self, Purpose},
};

type Outcome = Result<Option<Payload>, ToolError>;

/// A call that runs concurrently with others. The task that runs it calls `begin`, `prepare`, one of the methods that set the
/// outcome, `answer` and `finish`.
#[pyclass(frozen, module = "snakepit_bridge._native")]
pub(crate) struct ConcurrentCall {
    runner: Arc<ConcurrentRunner>,
    state: Arc<CallState>,
    tool: Arc<str>,
    mode: CallMode,
    began_at: Instant,
    was_alone: bool,
    /// The number of calls that had begun, including this one.
    begun_count: u32,
    parts: Mutex<Parts>,
}

/// The parts that change hands while the call runs.
#[derive(Default)]
struct Parts {
    call: Option<ToolCall>,
    reply: Option<Reply>,
    sink: Option<Sink>,
    outcome: Option<Outcome>,
    ended_at: Option<Instant>,
    has_failed: bool,
}

impl ConcurrentCall {
    pub(super) fn new(runner: Arc<ConcurrentRunner>, job: Job, was_alone: bool) -> Self {
        let Job { call, state, reply } = job;
        let begun_count = runner.begun.load(Relaxed);
        let (tool, mode) = (Arc::clone(&call.tool), call.mode);
        let parts = Parts { call: Some(call), reply: Some(reply), ..Parts::default() };
        let (began_at, parts) = (Instant::now(), Mutex::new(parts));
        Self { runner, state, tool, mode, began_at, was_alone, begun_count, parts }
    }

    /// Code under this lock neither panics nor runs Python code.
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_outcome(&self, outcome: Outcome) {
        let mut parts = self.parts();
        parts.has_failed = outcome.is_err();
        parts.outcome = Some(outcome);
        parts.ended_at = Some(Instant::now());
    }

    /// Creates the arguments and the context of the call.
    fn inputs<'py>(
        &self,
        py: Python<'py>,
        call: ToolCall,
    ) -> Result<(Bound<'py, PyDict>, Bound<'py, PyAny>), ToolError> {
        let executor = &self.runner.executor;
        let declared = executor.check(&call)?;
        let known = declared.map_or_else(Vec::new, |tool| tool.violations(&call.arguments));
        let ToolCall { session, arguments, metadata, trace, .. } = call;
        let kwargs = executor.arguments(py, &self.tool, arguments).map_err(|error| {
            let Some(problem) = executor.fitness_problem(py) else { return error };
            executor.retire_with_reason(&self.tool, &problem);
            // No code of the tool ran, so the host may run the call elsewhere.
            stopping_error()
        })?;
        if let Some(declared) = executor.plan.tools.get(&*self.tool) {
            let violations = declared
                .convert(&kwargs, known)
                .map_err(|error| self.failure_of(py, &error, None, &kwargs))?;
            if !violations.is_empty() {
                return Err(ToolError::invalid_arguments(&*self.tool, violations));
            }
        }
        let worker_id = &executor.worker_id;
        let context = Call {
            caller: Caller::Tool { state: Arc::clone(&self.state), trace, worker_id: Arc::clone(worker_id) },
            host: executor.host.clone(),
            session_id: session.as_ref().map_or_else(String::new, |id: &SessionId| id.as_str().to_owned()),
            worker_id: Arc::clone(worker_id),
            metadata,
            completion: None,
        };
        let context =
            executor.plan.context(py).and_then(|create| create.call1((context,))).map_err(|error| {
                if !error.is_instance_of::<PyException>(py) {
                    return self.failure_of(py, &error, None, &kwargs);
                }
                let problem = format!("its session context cannot be created: {error}");
                executor.retire_with_reason(&self.tool, &problem);
                stopping_error()
            })?;
        Ok((kwargs, context))
    }

    fn failure_of(
        &self,
        py: Python<'_>,
        error: &PyErr,
        function: Option<&Bound<'_, PyAny>>,
        kwargs: &Bound<'_, PyDict>,
    ) -> ToolError {
        let executor = &self.runner.executor;
        if error.is_instance_of::<BrokenRuntimeError>(py) {
            let problem = error.value(py).to_string();
            executor.retire_with_reason(&self.tool, &problem);
            return ToolError::internal(format!("tool `{}` did not run to its end: {problem}", self.tool));
        }
        executor.failure(py, &self.tool, error, function, kwargs)
    }

    /// Retires the worker if the cancelled call may have broken state that further calls need. If other calls ran at the same time,
    /// a process that was left behind may be theirs, so it does not count.
    fn retire_if_interrupted(&self) {
        let executor = &self.runner.executor;
        let tool = executor.plan.tools.get(&*self.tool);
        let policy = tool.map_or(executor.plan.after_cancel, |tool| tool.after_cancel);
        let is_decided = matches!(
            (policy, self.state.interruption()),
            (AfterCancel::Auto, Interruption::Library)
                | (AfterCancel::Replace, Interruption::Own | Interruption::Library)
        );
        let was_alone = self.was_alone && self.runner.begun.load(Relaxed) == self.begun_count;
        if was_alone || is_decided {
            executor.retire_if_interrupted(&self.tool, &self.state, self.began_at);
        }
    }
}

#[pymethods]
impl ConcurrentCall {
    /// The id of the call in this process.
    #[getter]
    fn id(&self) -> u64 {
        self.state.id.as_u64()
    }

    #[getter]
    fn tool(&self) -> &str {
        &self.tool
    }

    /// Whether the caller expects a stream.
    #[getter]
    fn is_streaming(&self) -> bool {
        self.mode == CallMode::Streaming
    }

    #[getter]
    fn cancelled(&self) -> bool {
        self.state.is_cancelled()
    }

    /// Marks the call as running. Returns `False` if it was cancelled before.
    fn begin(&self) -> bool {
        if !self.state.start() {
            self.set_outcome(Err(ToolError::cancelled(self.tool.to_string())));
            return false;
        }
        if let Some(progress) = self.runner.executor.progress {
            progress.begin(self.state.id);
        }
        true
    }

    /// Returns the arguments and the context of the call. Returns `None` if the call is rejected, which sets the outcome.
    fn prepare<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyDict>, Bound<'py, PyAny>)> {
        let call = self.parts().call.take()?;
        match self.inputs(py, call) {
            Ok(inputs) => Some(inputs),
            Err(error) => {
                self.set_outcome(Err(error));
                None
            }
        }
    }

    /// Sets the value that answers a unary call. Returns `False` if it is a stream, which cannot answer a unary call. Raises
    /// the exception of a value that does not match the contract of the tool or cannot be sent.
    fn set_result(&self, result: Bound<'_, PyAny>) -> PyResult<bool> {
        if is_stream(&result)? {
            self.set_outcome(Err(unary_unsupported(&self.tool, true)));
            return Ok(false);
        }
        let tool = self.runner.executor.plan.tools.get(&*self.tool);
        let description = format_args!("the result of tool `{}`", self.tool);
        let result = match tool.and_then(|tool| tool.contract.result.as_ref()) {
            Some(rule) => rule.apply(result, description)?,
            None => result,
        };
        let payload = value::from_python(&result, Purpose::Result, description)?;
        self.set_outcome(Ok(Some(payload)));
        Ok(true)
    }

    /// Sets the exception that ended the call. `function` and `kwargs` explain arguments that do not match the signature.
    #[pyo3(signature = (error, function=None, kwargs=None))]
    fn set_failure(
        &self,
        py: Python<'_>,
        error: Bound<'_, PyAny>,
        function: Option<&Bound<'_, PyAny>>,
        kwargs: Option<Bound<'_, PyDict>>,
    ) {
        let error = PyErr::from_value(error);
        let kwargs = kwargs.unwrap_or_else(|| PyDict::new(py));
        let failure = self.failure_of(py, &error, function, &kwargs);
        self.set_outcome(Err(failure));
    }

    /// Answers with a stream. Returns the sink for its chunks, or `None` if the caller no longer waits.
    fn open_stream(&self, py: Python<'_>) -> Option<ChunkSink> {
        let reply = self.parts().reply.take()?;
        let executor = &self.runner.executor;
        let sink = Answer::new(reply, &executor.tools, Arc::clone(&self.state)).open_stream()?;
        self.parts().sink = Some(sink.clone());
        Some(ChunkSink::new(py, &executor.plan, &self.tool, sink, self.runner.io))
    }

    /// Answers a streaming call with one value. Returns `False` if the caller no longer waits.
    fn put_result(&self, py: Python<'_>, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        let executor = &self.runner.executor;
        // The value is converted before the stream opens, so a value without a JSON form fails the call and not the stream.
        let chunk = ChunkSink::single(py, &executor.plan, &self.tool, result)?;
        let Some(reply) = self.parts().reply.take() else { return Ok(false) };
        let opened = Answer::new(reply, &executor.tools, Arc::clone(&self.state)).open_stream();
        let Some(sink) = opened else { return Ok(false) };
        sink.put(chunk);
        self.parts().sink = Some(sink);
        self.set_outcome(Ok(None));
        Ok(true)
    }

    /// Ends the stream successfully.
    fn set_complete(&self) {
        self.set_outcome(Ok(None));
    }

    /// Answers the call. Later calls to this method do nothing.
    fn answer(&self, py: Python<'_>) {
        // A fork must not use the connections of the worker.
        fork::exit_if_fork();
        self.runner.executor.end_reports(py, &self.state);
        let Parts { reply, sink, outcome, ended_at, .. } = {
            let mut parts = self.parts();
            let (reply, sink, outcome) = (parts.reply.take(), parts.sink.take(), parts.outcome.take());
            Parts { reply, sink, outcome, ended_at: parts.ended_at, ..Parts::default() }
        };
        let ended_at = ended_at.unwrap_or_else(Instant::now);
        let outcome =
            outcome.unwrap_or_else(|| Err(ToolError::internal("the call ended without an outcome")));
        // A tool may notice its deadline, and stop half-way with a value or an exception. The call ends as if the interruption had
        // come first.
        let is_answer_of_tool = matches!(outcome, Ok(_) | Err(ToolError::Failed(_)));
        let is_late = is_answer_of_tool && self.state.is_overdue(ended_at);
        let outcome = match self.state.is_cancelled() || is_late {
            true => Err(ToolError::cancelled(self.tool.to_string())),
            false => outcome,
        };
        if let Some(sink) = sink {
            if let Some(reader) = sink.finish(outcome.map(drop)) {
                reader.wake();
            }
            return self.runner.send_before_next_call(None);
        }
        let Some(reply) = reply else { return };
        let mut answers = self.runner.answers();
        let mut answer = Answer::new(reply, &self.runner.executor.tools, Arc::clone(&self.state));
        answer.ended_at = Some(ended_at);
        let queued = answer.finish(outcome, self.began_at, answers.as_mut());
        drop(answers);
        if let Some(waker) = queued.waker {
            waker.wake();
        }
        if let AnswerState::Pending(replies) = queued.state {
            self.runner.send_before_next_call(replies);
        }
    }

    /// Ends the call, and answers it if necessary. If no other call runs, restores the global state that calls changed.
    fn finish(&self, py: Python<'_>) {
        self.answer(py);
        let executor = &self.runner.executor;
        let has_failed = self.parts().has_failed;
        let is_last = {
            let mut limits = self.runner.limits();
            limits.end(&self.tool);
            limits.running() == 0
        };
        if is_last {
            executor.restore_process(py);
        }
        executor.retire_if_broken(py, &self.tool, has_failed);
        if self.state.is_cancelled() {
            self.retire_if_interrupted();
        }
        executor.tools.end(&self.state);
    }

    /// Records that an exception is about to be raised in the call: in code of the adapter if `is_own`, otherwise in code of a library.
    fn note_interruption(&self, is_own: bool) {
        self.state.note_interruption(if is_own { Interruption::Own } else { Interruption::Library });
    }

    /// Rejects further calls and makes the worker exit after the running ones.
    fn retire(&self, reason: &str) {
        self.runner.executor.retire_with_reason(&self.tool, reason);
    }
}

impl fmt::Debug for ConcurrentCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrentCall").field("tool", &self.tool).finish_non_exhaustive()
    }
}
