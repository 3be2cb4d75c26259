//! [`Worker`]: the native runtime of a worker process, as the entry point in Python uses it.

use std::{
    ffi::OsString,
    io::{self, Write},
    os::fd::IntoRawFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use pyo3::{exceptions::PyRuntimeError, prelude::*};
use snakepit_proto::launch::{
    CONTROL_STDIN, CallLimits, ControlMessage, ENV_CONTROL, ENV_HOST_VERSION, ENV_PROGRESS, ENV_SOCKET,
    READY_PREFIX, VERSION,
    output::{Frame, FrameKind},
};

use crate::{
    call::Call,
    call_output::CallOutput,
    context,
    control::Control,
    dispositions::Dispositions,
    executor::{
        ConcurrentCalls, CurrentCall, Executor, ExecutorFlags, Globals, LoopSignal, PendingAnswers, Runner,
    },
    fork, interrupt,
    io::Io,
    output_frames::{self, OutputFrames},
    plan::Plan,
    progress::Progress,
    retire,
    serve::{self, Ready, ServeConfig},
    state::{CallState, Interruption},
    subprocess_output, telemetry,
    tools::PythonTools,
};

/// The native runtime of one worker process. Created before anything else, because it arms the lifeline.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct Worker {
    control: Option<Control>,
    current: CurrentCall,
    output: Option<CallOutput>,
    /// The file for the progress of calls, if the host reads it.
    page: Option<OsString>,
    flags: Arc<ExecutorFlags>,
    /// The signal dispositions to restore after calls. `None` until the worker serves.
    dispositions: Mutex<Option<Dispositions>>,
}

#[pymethods]
impl Worker {
    #[new]
    fn new() -> PyResult<Self> {
        fork::register_handler()?;
        telemetry::begin();
        retire::print_panics_briefly();
        let control = match std::env::var(ENV_CONTROL).as_deref() {
            Err(_) | Ok("") => None,
            Ok(CONTROL_STDIN) => {
                // Hosts that support tokens send one to each worker that they launch on a socket.
                let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
                Some(Control::take_stdin(is_set(ENV_SOCKET) && is_set(ENV_HOST_VERSION))?)
            }
            Ok(other) => {
                return Err(PyRuntimeError::new_err(format!(
                    "{ENV_CONTROL} is `{other}`; set it to `{CONTROL_STDIN}`, or unset it"
                )));
            }
        };
        OutputFrames::install();
        let page = std::env::var_os(ENV_PROGRESS).filter(|path| !path.is_empty());
        let output = page.as_ref().map(|path| CallOutput::open(path.as_ref())).transpose()?.flatten();
        // Read before the adapter is imported, which may change the environment.
        context::is_host_of_this_project();
        serve::stop_timeout();
        Ok(Self {
            control,
            current: CurrentCall::default(),
            output,
            page,
            flags: Arc::default(),
            dispositions: Mutex::default(),
        })
    }

    /// The number of the signal whose handler must call `interrupt_due`.
    #[getter]
    fn interrupt_signal(&self) -> i32 {
        interrupt::SIGNAL as i32
    }

    /// Returns whether the running call was cancelled and may be interrupted.
    fn interrupt_due(&self) -> bool {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().is_some_and(|call| call.is_cancelled())
    }

    /// Records output that the running call wrote.
    fn note_output(&self, data: &[u8]) {
        if let Some(output) = &self.output {
            output.append(data);
        }
    }

    /// Records output that a call wrote, in a worker that runs several.
    fn note_output_of(&self, call: u64, data: &[u8]) {
        if let Some(output) = &self.output {
            output.append_of(call, data);
        }
    }

    /// Whether the host attributes output to calls.
    #[getter]
    fn has_frames(&self) -> bool {
        OutputFrames::get().is_some()
    }

    /// Whether a call has left this worker unable to run further calls.
    #[getter]
    fn is_retired(&self) -> bool {
        self.flags.is_retired.load(Relaxed)
    }

    /// Writes output of a call, or of the worker. `stream` is 0 for standard output, and 1 for standard error. Returns `False` if that
    /// stream does not lead to the host.
    fn write_output(
        &self,
        py: Python<'_>,
        stream: usize,
        call: Option<&Call>,
        level: i32,
        logger: &str,
        data: &[u8],
    ) -> bool {
        let Some(frames) = OutputFrames::get().filter(|frames| frames.is_connected(stream)) else {
            return false;
        };
        let frame = Frame { level, logger, body: data, ..frame_of(FrameKind::Text, call) };
        py.detach(|| {
            subprocess_output::forward_for_call(frame.request_id);
            frames.write(stream, &frame);
        });
        true
    }

    /// Opens a pipe for the output of a program that a call starts, and returns the descriptor for the program, which the caller
    /// closes. Returns `None` if the program must inherit the stream of the worker.
    fn open_program_pipe(&self, stream: usize, call: &Call) -> Option<i32> {
        let descriptor = subprocess_output::open(stream, &frame_of(FrameKind::Text, Some(call)))?;
        Some(descriptor.into_raw_fd())
    }

    /// Forwards the output that programs have written until now. Called before this process exits.
    fn forward_programs(&self, py: Python<'_>) {
        py.detach(subprocess_output::forward_all);
    }

    /// Records that output of programs and native code belongs to a call from here on.
    fn begin_output(&self, py: Python<'_>, call: &Call) {
        if let Some(frames) = OutputFrames::get() {
            let frame = frame_of(FrameKind::Begin, Some(call));
            py.detach(|| frames.write_to_both(&frame));
        }
    }

    /// Records that no further output of a call follows.
    fn end_output(&self, py: Python<'_>, call: &Call) {
        if let Some(frames) = OutputFrames::get() {
            let frame = frame_of(FrameKind::End, Some(call));
            py.detach(|| {
                subprocess_output::forward_for_call(frame.request_id);
                frames.write_to_both(&frame);
            });
        }
    }

    /// Makes native code write its standard output line by line, so that it reaches the host before the call ends.
    #[staticmethod]
    fn buffer_native_lines() {
        output_frames::buffer_native_lines();
    }

    /// Returns a descriptor for Python's fault handler, so that the error of a crashed call contains the stacks.
    /// Returns `None` if the host does not keep them.
    fn open_stacks(&self) -> PyResult<Option<i32>> {
        Ok(self.output.as_ref().map(CallOutput::open_stacks).transpose()?)
    }

    /// Defers the due interruption. It is repeated soon.
    fn defer_interrupt(&self) {
        if let Some(call) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner) {
            call.defer();
        }
    }

    /// Records that an exception is about to be raised in the running call: in code of the adapter if `is_own`,
    /// otherwise in code of a library.
    fn note_interruption(&self, is_own: bool) {
        if let Some(call) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner) {
            call.note_interruption(if is_own { Interruption::Own } else { Interruption::Library });
        }
    }

    /// Makes the executor call the plan's `restore` when the running call ends.
    fn request_restore(&self) {
        self.flags.needs_restore.store(true, Relaxed);
    }

    /// Makes the executor run the event loop between calls, because it has tasks that outlive calls.
    fn keep_loop_running(&self) {
        self.flags.loop_has_tasks.store(true, Relaxed);
    }

    /// Records the current disposition of this signal as the one to restore after calls.
    fn remember_signal(&self, number: i32) {
        if let Some(dispositions) = &mut *self.dispositions.lock().unwrap_or_else(PoisonError::into_inner) {
            dispositions.remember(number);
        }
    }

    /// Restores the recorded disposition of this signal.
    fn restore_signal(&self, number: i32) -> PyResult<()> {
        let dispositions = self.dispositions.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(dispositions.as_ref().map_or(Ok(()), |dispositions| dispositions.restore(number))?)
    }

    /// Reports to the host that this worker cannot start. Returns `False` without a control channel.
    #[pyo3(signature = (error, traceback=None))]
    fn fail(&self, error: String, traceback: Option<String>) -> PyResult<bool> {
        match &self.control {
            Some(control) => {
                control.send(&ControlMessage::Failed { error, traceback })?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Connects, registers, and runs calls on this thread until SIGTERM. Returns the seconds since SIGTERM, or `None` if the
    /// worker stopped for another reason. Raises `RuntimeError` with a sentence if the worker cannot start.
    #[pyo3(signature = (plan, *, host, socket, port, worker_id, ready_file))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
    fn run(
        &self,
        py: Python<'_>,
        plan: &Bound<'_, PyAny>,
        host: Option<String>,
        socket: Option<PathBuf>,
        port: u16,
        worker_id: String,
        ready_file: Option<PathBuf>,
    ) -> PyResult<Option<f64>> {
        let plan = Plan::read(plan)?;
        let token = self.control.as_ref().and_then(|control| control.token().map(str::to_owned));
        if self.control.is_some() && socket.is_some() && host.is_some() && token.is_none() {
            return Err(PyRuntimeError::new_err(format!(
                "the host that started this worker is older than snakepit_bridge {VERSION}, and sends no version; install the \
                 same version of both"
            )));
        }
        let progress = self.page.as_ref().map(|path| Progress::open(path.as_ref())).transpose()?;
        let (progress, answers) = progress.unzip();
        let (calls, call_limits) = (plan.concurrency.calls, plan.call_limits());
        let loop_signal = (calls > 1).then(LoopSignal::new).transpose()?;
        let tools = PythonTools::new(match &loop_signal {
            Some(signal) => interrupt::spawn_concurrent(Arc::clone(signal))?,
            None => interrupt::spawn()?,
        });
        let config = ServeConfig {
            host,
            socket,
            port,
            worker_id: worker_id.clone(),
            token,
            specs: plan.specs.clone(),
            serves_any_tool: plan.serves_any_tool,
        };
        let io = Io::start()?;
        let served = tools.clone();
        let Ready { host, address, port, executor_done, serving, terminated_at } =
            py.detach(|| io.drive(serve::start(config, served, io))).map_err(PyRuntimeError::new_err)?;
        telemetry::serve();
        // The worker has installed its SIGTERM handler by now.
        *self.dispositions.lock().unwrap_or_else(PoisonError::into_inner) = Some(Dispositions::current());
        self.report_ready(address, port, ready_file, calls, call_limits)?;
        let executor = Executor {
            tools,
            plan,
            io: Some(io),
            host,
            worker_id: worker_id.into(),
            thread: Some(py.import("_thread")?.call_method0("get_ident")?.unbind()),
            current: Arc::clone(&self.current),
            progress,
            flags: Arc::clone(&self.flags),
            fitness: None,
            globals: Some(Globals::new(py)?),
        };
        let ended = match &loop_signal {
            Some(signal) => ConcurrentCalls::run(py, executor, io, answers, signal),
            None => Runner::run(py, executor, io, PendingAnswers::new(answers)),
        };
        if let Err(error) = ended {
            retire::print_and_exit(py, &error);
        }
        if self.flags.is_retired.load(Relaxed) {
            retire::stop_serving()?;
        }
        // An error means that the server has already ended.
        let _ = executor_done.send(());
        py.detach(|| io.drive(serving))
            .map_err(|_| PyRuntimeError::new_err("the task that serves calls panicked"))?;
        Ok(terminated_at.get().map(|at| at.elapsed().as_secs_f64()))
    }
}

/// A frame of a call without content.
pub(crate) fn frame_of(kind: FrameKind, call: Option<&Call>) -> Frame<'_> {
    let state = call.and_then(|call| call.caller.state());
    Frame {
        kind,
        request_id: state.map_or(0, CallState::request_id),
        level: 0,
        writer: 0,
        session: call.map_or("", |call| &call.session_id),
        tool: state.map_or("", CallState::tool),
        logger: "",
        body: b"",
    }
}

impl Worker {
    fn report_ready(
        &self,
        address: String,
        port: u16,
        ready_file: Option<PathBuf>,
        calls: usize,
        call_limits: Option<CallLimits>,
    ) -> io::Result<()> {
        if let Some(control) = &self.control {
            let concurrency = (calls > 1).then_some(calls);
            return control.send(&ControlMessage::Ready { address, concurrency, call_limits });
        }
        if let Some(path) = ready_file {
            // The rename makes the complete file appear atomically.
            let unfinished = path.with_extension("tmp");
            std::fs::write(&unfinished, port.to_string())?;
            return std::fs::rename(unfinished, path);
        }
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{READY_PREFIX}{port}")?;
        stdout.flush()
    }
}
