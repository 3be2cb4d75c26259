//! [`PendingRequest`]: a request to the host whose answer a coroutine waits for.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use pyo3::{exceptions::PyRuntimeError, prelude::*};

use crate::{
    call::HostFuture,
    completions::{Completions, Wait},
    runtime::RuntimeHandle,
};

/// Identifies the wait of an event loop that the end of a request completes.
#[derive(Debug)]
pub(crate) struct CompletionHandle {
    pub(crate) completions: Py<Completions>,
    pub(crate) key: u64,
}

/// Converts the answer of a request.
pub(crate) type Convert<T> = Box<dyn FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send>;
/// Converts the answer of a request that has ended.
type Finish = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

/// A request to the host. Dropping it ends the request.
#[pyclass(frozen, module = "snakepit_bridge._native")]
pub(crate) struct PendingRequest {
    wait: Wait,
    /// `None` once Python has taken the answer.
    finish: Mutex<Option<Finish>>,
}

impl PendingRequest {
    /// Starts a request. Finishes the wait when its answer arrives.
    ///
    /// # Errors
    /// In a forked process.
    pub(crate) fn start<T: Send + 'static>(
        runtime: RuntimeHandle,
        completion: &CompletionHandle,
        request: HostFuture<T>,
        convert: Convert<T>,
    ) -> PyResult<Self> {
        let outcome = Arc::new(Mutex::new(None));
        let shared_outcome = Arc::clone(&outcome);
        let wait = Wait::start(runtime, completion.completions.get(), completion.key, async move {
            let answer = request.await;
            *shared_outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        })?;
        let finish: Finish = Box::new(move |py| {
            let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
            match outcome {
                Some(answer) => convert(py, answer?),
                None => Err(PyRuntimeError::new_err("the host has not answered yet")),
            }
        });
        Ok(Self { wait, finish: Mutex::new(Some(finish)) })
    }
}

#[pymethods]
impl PendingRequest {
    /// Returns the answer, once. Raises `RuntimeError` before the wait has finished.
    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let finish = self.finish.lock().unwrap_or_else(PoisonError::into_inner).take();
        match finish {
            Some(finish) => finish(py),
            None => Err(PyRuntimeError::new_err("the answer has already been taken")),
        }
    }
}

impl fmt::Debug for PendingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingRequest").field("wait", &self.wait).finish_non_exhaustive()
    }
}
