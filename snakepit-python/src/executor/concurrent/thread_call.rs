//! [`ThreadCall`]: a synchronous function that runs outside of the event loop thread, and can be interrupted there.

use std::{
    ffi::c_long,
    sync::{Mutex, MutexGuard, PoisonError},
};

use pyo3::{ffi, prelude::*, sync::MutexExt};

use crate::fork;

/// Runs one function on a thread, and raises exceptions in it.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug, Default)]
pub(crate) struct ThreadCall {
    /// The function, while it runs.
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    thread: c_long,
    /// Whether an exception was raised in it, which may be pending.
    is_interrupted: bool,
}

#[pymethods]
impl ThreadCall {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Calls a function. `thread` is `threading.get_ident()` of this thread.
    fn run<'py>(
        &self,
        py: Python<'py>,
        thread: c_long,
        function: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        *self.running(py) = Some(Running { thread, is_interrupted: false });
        let result = function.call0();
        // A fork of the worker must not answer the call.
        fork::exit_if_fork_of_function(py, &result);
        let ended = self.running(py).take();
        if ended.is_some_and(|call| call.is_interrupted) {
            // A pending exception must not reach the next function of this thread, so any Python code raises it here. Removing
            // it with a null exception would leave CPython 3.11 with a flag that only an exception clears, and with that flag,
            // code that a debugger or a coverage tool traces never continues.
            let _ = py.eval(c"None", None, None);
        }
        result
    }

    /// The thread that runs the function, while it does.
    #[getter]
    fn thread(&self, py: Python<'_>) -> Option<c_long> {
        self.running(py).as_ref().map(|call| call.thread)
    }

    /// Raises an exception of this class in the function, as soon as its thread runs Python code. Returns `false` if the function
    /// does not run.
    #[allow(unsafe_code)]
    fn interrupt(&self, py: Python<'_>, exception: &Bound<'_, PyAny>) -> bool {
        let mut running = self.running(py);
        let Some(call) = &mut *running else { return false };
        call.is_interrupted = true;
        // SAFETY: this thread is attached to the interpreter. The function finds the thread by its id and takes a reference to
        // the exception.
        unsafe { ffi::PyThreadState_SetAsyncExc(call.thread, exception.as_ptr()) != 0 }
    }
}

impl ThreadCall {
    fn running(&self, py: Python<'_>) -> MutexGuard<'_, Option<Running>> {
        self.running.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}
