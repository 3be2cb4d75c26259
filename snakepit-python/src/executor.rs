//! [`Executor`]: runs one call at a time on Python's main thread.
//!
//! It holds the GIL between calls, and releases it only to wait for [the IO](crate::io). All code of tools and adapters
//! runs inside [`Executor::invoke`]. Even if that code fails, the call ends and the next one starts in a clean state.

mod answer;
mod call_context;
mod chunk_sender;
mod concurrent;
mod fitness;
mod globals;
mod guarded_entry;
mod pending_answers;
mod retirement;
mod runner;
mod stream;
mod task_watchdog;

pub(crate) use self::{
    concurrent::{
        ConcurrencyLimits, ConcurrentCall, ConcurrentCalls, LoopSignal, LoopWatchdog, ThreadCall,
        is_concurrent, is_loop_thread,
    },
    globals::Globals,
    pending_answers::PendingAnswers,
    runner::Runner,
    stream::{ChunkSink, ChunkSpace},
};

use std::{
    fmt,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use pyo3::{exceptions::PyException, intern, prelude::*, types::PyDict};
use snakepit_registry::{CallMode, ToolCall, ToolError, Violation};
use snakepit_session::Payload;
use tokio::time::Instant;

use self::{
    answer::Answer,
    chunk_sender::ChunkSender,
    fitness::Fitness,
    stream::{is_plain, is_stream},
};
use crate::{
    call::Call,
    call_output,
    caller::Caller,
    errors::{BrokenRuntimeError, CallCancelled},
    fork,
    host::Host,
    io::Io,
    plan::{Plan, Tool, ToolKind},
    progress::Progress,
    state::CallState,
    tools::{Job, PythonTools, stopping_error},
    value::{self, Purpose},
};

/// The call that may be interrupted now, if there is one.
pub(crate) type CurrentCall = Arc<Mutex<Option<Arc<CallState>>>>;

/// Flags by which Python code and calls notify the executor.
#[derive(Debug, Default)]
pub(crate) struct ExecutorFlags {
    /// Whether the event loop has tasks that outlive calls.
    pub(crate) loop_has_tasks: AtomicBool,
    /// Whether the running call used the event loop.
    has_used_loop: AtomicBool,
    /// Whether the running call changed signals, trace functions or standard streams.
    pub(crate) needs_restore: AtomicBool,
    /// Whether a call made this worker unfit for further calls.
    pub(crate) is_retired: AtomicBool,
}

/// Runs calls on the thread that owns it.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) tools: PythonTools,
    pub(crate) plan: Plan,
    /// The IO, driven by this thread between calls. `None` outside a worker, where another thread fills the queue.
    pub(crate) io: Option<Io>,
    pub(crate) host: Option<Host>,
    pub(crate) worker_id: Arc<str>,
    /// The ident of the thread that runs all calls. `None` outside a worker, where each call runs on the thread of its caller.
    pub(crate) thread: Option<Py<PyAny>>,
    pub(crate) current: CurrentCall,
    /// Records which calls have begun.
    pub(crate) progress: Option<Progress>,
    pub(crate) flags: Arc<ExecutorFlags>,
    /// Checks the process after calls. `None` outside a worker.
    pub(crate) fitness: Option<Fitness>,
    /// Restores global state after calls. `None` outside a worker.
    pub(crate) globals: Option<Globals>,
}

/// The reason why a call failed.
enum Failure {
    /// The runtime reports this error. No code of the tool raised it.
    Reported(ToolError),
    /// The tool or its adapter raised an exception.
    Raised(PyErr),
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Raised(error)
    }
}

/// Objects that must be cleaned up at the end of the call.
#[derive(Default)]
struct CallObjects<'py> {
    adapter: Option<Bound<'py, PyAny>>,
    /// An iterator that was not exhausted.
    iterator: Option<Bound<'py, PyAny>>,
    /// The bound method of the tool, to explain arguments that do not match its signature.
    function: Option<Bound<'py, PyAny>>,
    /// The problems of the arguments that were found before they were converted.
    violations: Vec<Violation>,
}

impl Executor {
    /// Runs one call and answers it. Returns the next queued call, if there is one, and the current time.
    pub(crate) fn execute(
        &self,
        py: Python<'_>,
        job: Job,
        now: Instant,
        pending: &mut PendingAnswers,
    ) -> (Option<Job>, Instant) {
        let Job { call, state, reply } = job;
        if !state.start() {
            // The write waits while the pipes are full.
            py.detach(|| state.end_reports());
            let next = self.tools.finish(&state);
            let cancelled = Err(ToolError::cancelled(call.tool.to_string()));
            let answered = reply.queue(cancelled, pending.answers.as_mut());
            pending.record(answered, self.io);
            return (next, now);
        }
        call_output::begin(state.id);
        if let Some(progress) = self.progress {
            progress.begin(state.id);
        }
        let tool = Arc::clone(&call.tool);
        let mut answer = Answer::new(reply, &self.tools, Arc::clone(&state));
        // A panic means that this crate has a bug or a tool broke the interpreter. The call fails, and the host replaces
        // the worker.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.invoke(py, call, &state, &mut answer)));
        // A fork must not use the connections of the worker from here on.
        fork::exit_if_fork_of_tool(outcome.as_ref().ok());
        let outcome = outcome.unwrap_or_else(|_| {
            self.set_current(None);
            state.set_async(false);
            self.retire_with_reason(&tool, "its runtime panicked");
            Err(ToolError::internal(format!("the runtime panicked while it ran tool `{tool}`")))
        });
        let ended_at = *answer.ended_at.get_or_insert_with(Instant::now);
        self.end_reports(py, &state);
        let (is_cancelled, has_failed) = (state.is_cancelled(), outcome.is_err());
        // A tool may notice its deadline, and stop half-way with a value or an exception. The call ends as if the
        // interruption had come first, because which one comes first is a matter of chance.
        let is_answer_of_tool = matches!(outcome, Ok(_) | Err(ToolError::Failed(_)));
        let outcome = if is_cancelled || (is_answer_of_tool && state.is_overdue(ended_at)) {
            Err(ToolError::cancelled(tool.to_string()))
        } else {
            outcome
        };
        let mut unanswered = Some((answer, outcome));
        let used_loop = self.flags.has_used_loop.load(Relaxed);
        if used_loop && !self.end_async(py, &tool, false) {
            // Callers do not wait for tasks that the call left behind, unless they cancelled it.
            if !is_cancelled && let Some((answer, outcome)) = unanswered.take() {
                let answered = answer.finish(outcome, now, pending.answers.as_mut());
                pending.record(answered, self.io);
                if let Some(io) = self.io {
                    pending.flush(py, io);
                }
                if task_watchdog::watch(&tool, &state, &self.tools, &self.flags).is_err() {
                    self.retire();
                }
            }
            self.end_async(py, &tool, true);
        }
        self.restore_process(py);
        self.retire_if_broken(py, &tool, has_failed);
        if is_cancelled {
            self.retire_if_interrupted(&tool, &state, now);
        }
        let next = self.tools.finish(&state);
        if let Some((answer, outcome)) = unanswered {
            let answered = answer.finish(outcome, now, pending.answers.as_mut());
            pending.record(answered, self.io);
        }
        // Both may take a long time after the end of the tool, so the time is read again.
        let needs_new_time = used_loop || self.plan.has_cleanup;
        (next, if needs_new_time { Instant::now() } else { ended_at })
    }

    /// Runs one call from its arguments to the adapter's cleanup.
    fn invoke(
        &self,
        py: Python<'_>,
        call: ToolCall,
        state: &Arc<CallState>,
        answer: &mut Answer<'_>,
    ) -> Result<Option<Payload>, ToolError> {
        let tool = Arc::clone(&call.tool);
        let declared = self.check(&call)?;
        let violations = declared.map_or_else(Vec::new, |tool| tool.violations(&call.arguments));
        let ToolCall { session, arguments, metadata, mode, trace, .. } = call;
        let session_id = session.map_or_else(String::new, |id| id.as_str().to_owned());
        let kwargs = match self.arguments(py, &tool, arguments) {
            Ok(kwargs) => kwargs,
            Err(error) => {
                let Some(problem) = self.fitness_problem(py) else { return Err(error) };
                self.retire_with_reason(&tool, &problem);
                // No code of the tool ran, so the host may run the call elsewhere.
                return Err(stopping_error());
            }
        };
        let context = Call {
            caller: Caller::Tool { state: Arc::clone(state), trace, worker_id: Arc::clone(&self.worker_id) },
            host: self.host.clone(),
            session_id,
            worker_id: Arc::clone(&self.worker_id),
            metadata,
            completion: None,
        };
        let mut objects = CallObjects { violations, ..CallObjects::default() };
        // An interruption must not break the import. If it fails, so does the next one, which reports the error.
        let _ = self.plan.context(py);
        self.set_current(Some(Arc::clone(state)));
        let outcome = self.call_tool(py, &tool, mode, context, &kwargs, state, answer, &mut objects);
        answer.ended_at = Some(Instant::now());
        // From here on, the call is not interrupted, so cleanup can finish.
        self.set_current(None);
        state.set_async(false);
        let outcome = outcome.map_err(|failure| match failure {
            Failure::Reported(error) => error,
            Failure::Raised(error) if error.is_instance_of::<BrokenRuntimeError>(py) => {
                let problem = error.value(py).to_string();
                self.retire_with_reason(&tool, &problem);
                ToolError::internal(format!("tool `{tool}` did not run to its end: {problem}"))
            }
            Failure::Raised(error) => self.failure(py, &tool, &error, objects.function.as_ref(), &kwargs),
        });
        self.clean_up(py, &objects);
        self.leave_context(py);
        outcome
    }

    /// Cleans up the event loop after a call. Returns `false` if that requires waiting and `may_wait` is `false`.
    fn end_async(&self, py: Python<'_>, tool: &str, may_wait: bool) -> bool {
        let ended = self.plan.end_async.bind(py).call1((may_wait,));
        match ended.and_then(|ended| ended.extract::<Option<bool>>()) {
            Ok(Some(true)) => {}
            Ok(None) => return false,
            // The event loop has logged the reason.
            Ok(Some(false)) => self.retire(),
            Err(error) => {
                error.write_unraisable(py, None);
                self.retire();
                warn(format_args!("the event loop cannot be cleaned up after a call of tool `{tool}`"));
            }
        }
        self.flags.has_used_loop.store(false, Relaxed);
        true
    }

    /// Restores the other global state that a call changed.
    fn restore_process(&self, py: Python<'_>) {
        let restore = self.plan.restore.bind(py);
        if self.flags.needs_restore.load(Relaxed) && !restore.is_none() {
            self.flags.needs_restore.store(false, Relaxed);
            if let Err(error) = restore.call0() {
                error.write_unraisable(py, Some(restore));
                self.retire();
            }
        }
        if let Some(globals) = &self.globals
            && let Err(error) = globals.restore(py)
        {
            error.write_unraisable(py, None);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one call, used once")]
    fn call_tool<'py>(
        &self,
        py: Python<'py>,
        tool: &Arc<str>,
        mode: CallMode,
        context: Call,
        kwargs: &Bound<'py, PyDict>,
        state: &Arc<CallState>,
        answer: &mut Answer<'_>,
        objects: &mut CallObjects<'py>,
    ) -> Result<Option<Payload>, Failure> {
        let declared = self.plan.tools.get(&**tool);
        if let Some(declared) = declared {
            let violations = declared.convert(kwargs, std::mem::take(&mut objects.violations))?;
            if !violations.is_empty() {
                return Err(Failure::Reported(ToolError::invalid_arguments(&**tool, violations)));
            }
        }
        let context = self.plan.context(py).and_then(|create| create.call1((context,))).map_err(|error| {
            if !error.is_instance_of::<PyException>(py) {
                return Failure::Raised(error);
            }
            self.retire_with_reason(tool, &format!("its session context cannot be created: {error}"));
            Failure::Reported(stopping_error())
        })?;
        self.enter_context(py, &context, state)?;
        let adapter = &*objects.adapter.insert(self.plan.factory.bind(py).call0()?);
        if self.plan.has_context {
            adapter.call_method1(intern!(py, "set_session_context"), (&context,))?;
        }
        if self.plan.has_initialize {
            self.resolve(adapter.call_method0(intern!(py, "initialize"))?, Some(state))?;
        }
        let result = match declared {
            Some(declared) => {
                let function = &*objects.function.insert(adapter.getattr(declared.attribute.bind(py))?);
                function.call((), Some(kwargs))?
            }
            None => self.plan.execute(adapter, tool, kwargs, &context)?,
        };
        match mode {
            CallMode::Unary => {
                let result = self.resolve(result, Some(state))?;
                if is_stream(&result)? {
                    objects.iterator = Some(result);
                    return Err(Failure::Reported(unary_unsupported(tool, true)));
                }
                let description = format_args!("the result of tool `{tool}`");
                let result = match declared.and_then(|declared| declared.contract.result.as_ref()) {
                    Some(rule) => rule.apply(result, description)?,
                    None => result,
                };
                Ok(Some(value::from_python(&result, Purpose::Result, description)?))
            }
            CallMode::Streaming => self.stream(py, tool, result, state, answer, objects).map(|()| None),
        }
    }

    /// Rejects calls that cannot succeed, without running code of the tool. Returns the tool, if the adapter declares it.
    fn check(&self, call: &ToolCall) -> Result<Option<&Tool>, ToolError> {
        match self.plan.tools.get(&*call.tool) {
            None if self.plan.is_dynamic => Ok(None),
            None => Err(ToolError::not_found(call.tool.to_string())),
            Some(tool) if tool.kind == ToolKind::Generator && call.mode == CallMode::Unary => {
                Err(unary_unsupported(&call.tool, false))
            }
            Some(tool) => Ok(Some(tool)),
        }
    }

    fn arguments<'py>(
        &self,
        py: Python<'py>,
        tool: &str,
        arguments: snakepit_registry::Arguments,
    ) -> Result<Bound<'py, PyDict>, ToolError> {
        let kwargs = PyDict::new(py);
        let parameters = self.plan.tools.get(tool).map(|tool| &tool.parameters);
        for (name, payload) in arguments {
            let set = match parameters.and_then(|parameters| parameters.find(&name)) {
                Some(parameter) => {
                    parameter.read(py, payload).and_then(|value| kwargs.set_item(parameter.name(), value))
                }
                None => value::to_python(py, payload).and_then(|value| kwargs.set_item(&name, value)),
            };
            set.map_err(|error| {
                ToolError::invalid_argument(tool, name, format!("cannot be read: {}", error.value(py)))
            })?;
        }
        Ok(kwargs)
    }

    /// Awaits an awaitable on the event loop. Returns any other value unchanged.
    fn resolve<'py>(
        &self,
        result: Bound<'py, PyAny>,
        state: Option<&Arc<CallState>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if is_plain(&result) || !result.get_type().hasattr(intern!(result.py(), "__await__"))? {
            return Ok(result);
        }
        if let Some(state) = state {
            state.set_async(true);
        }
        self.flags.has_used_loop.store(true, Relaxed);
        let value = self.plan.run_async.bind(result.py()).call1((result,));
        if let Some(state) = state {
            state.set_async(false);
        }
        value
    }

    fn failure<'py>(
        &self,
        py: Python<'py>,
        tool: &Arc<str>,
        error: &PyErr,
        function: Option<&Bound<'py, PyAny>>,
        kwargs: &Bound<'py, PyDict>,
    ) -> ToolError {
        if error.is_instance_of::<CallCancelled>(py) {
            return ToolError::cancelled(tool.to_string());
        }
        if let Some((size, limit)) = value::numbers_of(py, error) {
            return ToolError::answer_too_large(size, limit);
        }
        let mut failure = self.plan.failure(py, error, function.map(|function| (function, kwargs)));
        failure.tool = tool.to_string();
        failure.worker = self.worker_id.to_string();
        ToolError::Failed(Box::new(failure))
    }

    /// Closes open iterators and runs the adapter's cleanup. Errors go to stderr, because the outcome of the call is
    /// already known.
    fn clean_up(&self, py: Python<'_>, objects: &CallObjects<'_>) {
        if let Some(iterator) = &objects.iterator
            && let Err(error) = self.close(iterator)
        {
            error.write_unraisable(py, Some(iterator));
        }
        if let Some(adapter) = objects.adapter.as_ref().filter(|_| self.plan.has_cleanup) {
            let cleaned =
                adapter.call_method0(intern!(py, "cleanup")).and_then(|result| self.resolve(result, None));
            if let Err(error) = cleaned {
                error.write_unraisable(py, Some(adapter));
            }
        }
    }

    fn close(&self, iterator: &Bound<'_, PyAny>) -> PyResult<()> {
        for method in ["aclose", "close"] {
            if iterator.hasattr(method)? {
                return self.resolve(iterator.call_method0(method)?, None).map(drop);
            }
        }
        Ok(())
    }

    fn set_current(&self, call: Option<Arc<CallState>>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = call;
    }
}

/// Writes a message to stderr, which the host logs. Ignores a closed stderr.
fn warn(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "snakepit: {message}");
}

fn unary_unsupported(tool: &str, may_have_run: bool) -> ToolError {
    ToolError::unsupported(tool, "streams its results; call it as a stream").with_may_have_run(may_have_run)
}
