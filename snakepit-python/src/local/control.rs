//! [`LocalControl`]: the deadline and the cancellation of one local call.

use std::{sync::Arc, time::Duration};

use pyo3::prelude::*;
use tokio::time::Instant;

use crate::{
    errors::InvalidArgumentError,
    state::{CallState, Stage},
};

/// The deadline and the cancellation of one call. Usable from any thread.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct LocalControl {
    pub(super) state: Arc<CallState>,
}

#[pymethods]
impl LocalControl {
    /// Creates the control of a call that must end within this many seconds. `None` for no limit.
    #[new]
    #[pyo3(signature = (timeout))]
    fn new(timeout: Option<f64>) -> PyResult<Self> {
        let timeout = timeout.map(Duration::try_from_secs_f64).transpose();
        let timeout =
            timeout.map_err(|error| InvalidArgumentError::new_err(format!("`timeout`: {error}")))?;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok(Self { state: Arc::new(CallState::unnamed(deadline)) })
    }

    /// Cancels the call, unless it has ended. Returns whether it is running, and so has to be interrupted.
    fn cancel(&self) -> bool {
        self.state.cancel() == Stage::Running
    }

    /// The id of the call in this process.
    #[getter]
    fn id(&self) -> u64 {
        self.state.id.as_u64()
    }

    /// Whether the call was cancelled before it ended.
    #[getter]
    fn is_cancelled(&self) -> bool {
        self.state.is_cancelled()
    }

    /// Whether the deadline has passed.
    #[getter]
    fn is_overdue(&self) -> bool {
        self.state.is_overdue(Instant::now())
    }
}
