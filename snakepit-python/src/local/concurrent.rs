//! [`ConcurrentLocalRunner`]: runs tool calls concurrently in the current process, for tests of adapters.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use pyo3::{prelude::*, types::PyDict};
use snakepit_registry::CallMode;
use tokio::{runtime::Runtime, time::timeout};

use super::{LocalControl, LocalRunner, PendingCall, new_runtime, read_chunks};
use crate::{
    call::Call,
    executor::{ConcurrentCalls, LoopSignal},
    state::CallState,
    tools::PythonTools,
};

/// The interval at which a waiting thread handles signals, such as that of Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the tools of one adapter on the event loop of one thread, for calls of any thread.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct ConcurrentLocalRunner {
    calls: ConcurrentCalls,
    /// Makes calls outside of tools.
    caller: LocalRunner,
    tools: PythonTools,
}

#[pymethods]
impl ConcurrentLocalRunner {
    #[new]
    fn new(plan: &Bound<'_, PyAny>, worker_id: &str) -> PyResult<Self> {
        let signal = LoopSignal::new()?;
        let (interrupter, cancelled) = mpsc::channel::<Arc<CallState>>();
        let cancelling = Arc::clone(&signal);
        // Ends with the sender, which the queue of calls owns.
        std::thread::Builder::new().name("snakepit-cancel".to_owned()).spawn(move || {
            for call in cancelled {
                cancelling.cancel(call.id);
            }
        })?;
        let executor = LocalRunner::executor(plan, worker_id, interrupter)?;
        let tools = executor.tools.clone();
        let calls = ConcurrentCalls::new(executor, None, None, &signal);
        Ok(Self { calls, caller: LocalRunner::new(plan, worker_id)?, tools })
    }

    fn session_call(&self, session_id: &str) -> Call {
        self.caller.session_call(session_id)
    }

    /// Runs calls on the event loop of this thread, until the runner is closed and all of them have ended.
    fn serve(&self, py: Python<'_>) -> PyResult<()> {
        self.calls.serve(py)
    }

    /// Rejects queued and later calls.
    fn close(&self) {
        self.tools.close();
    }

    /// Cancels a call, unless it has ended. Its code has not ended when this returns.
    fn cancel(&self, control: &LocalControl) {
        self.tools.abandon_call(control.state.id);
    }

    /// Makes a unary call and waits for its end. Converts arguments and result through their wire forms.
    fn call<'py>(
        &self,
        py: Python<'py>,
        tool: &str,
        arguments: &Bound<'py, PyDict>,
        session_id: &str,
        control: &LocalControl,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut pending = PendingCall::new(tool, arguments, session_id, CallMode::Unary, Some(control))?;
        self.tools.admit_all([pending.job()?]);
        self.wait_until_ended(py, control, &new_runtime()?)?;
        pending.value(py)
    }

    /// Makes a streaming call, passes each chunk to `receive`, and waits for the end of the call. The stream ends when `receive`
    /// returns `False`.
    fn stream(
        &self,
        py: Python<'_>,
        tool: &str,
        arguments: &Bound<'_, PyDict>,
        session_id: &str,
        receive: Py<PyAny>,
        control: &LocalControl,
    ) -> PyResult<()> {
        let mut pending = PendingCall::new(tool, arguments, session_id, CallMode::Streaming, Some(control))?;
        self.tools.admit_all([pending.job()?]);
        let reader = std::thread::spawn(move || read_chunks(pending, &receive));
        self.wait_until_ended(py, control, &new_runtime()?)?;
        LocalRunner::join(py, reader)
    }
}

impl ConcurrentLocalRunner {
    /// Waits until the code of the call has ended, and handles Python signals while it waits. An exception of a signal handler cancels
    /// the call.
    fn wait_until_ended(&self, py: Python<'_>, control: &LocalControl, runtime: &Runtime) -> PyResult<()> {
        while py
            .detach(|| runtime.block_on(async { timeout(SIGNAL_INTERVAL, control.state.ended()).await }))
            .is_err()
        {
            if let Err(error) = py.check_signals() {
                self.cancel(control);
                return Err(error);
            }
        }
        Ok(())
    }
}
