//! [`ThreadCall`]: a plain function that runs on another thread than the event loop, and can be interrupted there.

use std::{ffi::c_long, ptr, sync::Mutex};

use pyo3::{ffi, prelude::*, sync::MutexExt};

/// Runs one function on a thread, and raises exceptions in it.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug, Default)]
pub(crate) struct ThreadCall {
    /// The thread that runs the function, while it does.
    thread: Mutex<Option<c_long>>,
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
        self.set(py, Some(thread));
        let result = function.call0();
        self.set(py, None);
        result
    }

    /// The thread that runs the function, while it does.
    #[getter]
    fn thread(&self, py: Python<'_>) -> Option<c_long> {
        *self.thread.lock_py_attached(py).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Raises an exception of this class in the function, as soon as its thread runs Python code. Returns `false` if the function
    /// does not run.
    #[allow(unsafe_code)]
    fn interrupt(&self, py: Python<'_>, exception: &Bound<'_, PyAny>) -> bool {
        let thread = self.thread.lock_py_attached(py).unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(thread) = *thread else { return false };
        // SAFETY: this thread is attached to the interpreter. The function finds the thread by its id and takes a reference to
        // the exception.
        unsafe { ffi::PyThreadState_SetAsyncExc(thread, exception.as_ptr()) != 0 }
    }
}

impl ThreadCall {
    #[allow(unsafe_code)]
    fn set(&self, py: Python<'_>, thread: Option<c_long>) {
        let mut current = self.thread.lock_py_attached(py).unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (Some(ended), None) = (*current, thread) {
            // An exception that was not raised yet must not reach the next function of this thread. No Python code runs
            // between the end of the function and this point.
            // SAFETY: as above. Null removes a pending exception.
            unsafe { ffi::PyThreadState_SetAsyncExc(ended, ptr::null_mut()) };
        }
        *current = thread;
    }
}
