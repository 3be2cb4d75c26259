//! [`VariableWatch`]: a stream of variable updates.

use futures_core::Stream;
use pyo3::prelude::*;
use tokio_stream::StreamExt;

use super::VariableUpdate;
use crate::{
    caller::Caller,
    completions::{Completions, Wait},
    errors::HostError,
    reader::Reader,
    runtime::RuntimeHandle,
};

/// A stream of updates. Ends when the watch is closed, when its call or client ends, or with an error.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct VariableWatch(Reader<VariableUpdate>);

impl VariableWatch {
    pub(crate) fn new(
        runtime: RuntimeHandle,
        caller: Caller,
        updates: impl Stream<Item = Result<VariableUpdate, HostError>> + Send + 'static,
    ) -> Self {
        // A host ends an open watch only when it shuts down.
        let updates = updates.chain(tokio_stream::iter([Err(HostError::WatchEnded)]));
        Self(Reader::new("watch", runtime, caller, updates))
    }
}

#[pymethods]
impl VariableWatch {
    /// Releases the GIL and waits for the next update. Returns `None` at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<VariableUpdate>> {
        self.0.next(py)
    }

    /// Finishes the wait of this key when `take` can return.
    fn ready(&self, completions: &Completions, key: u64) -> PyResult<Wait> {
        self.0.ready(completions, key)
    }

    /// Takes the update that has arrived. Returns `None` at the end.
    fn take(&self) -> PyResult<Option<VariableUpdate>> {
        self.0.take()
    }

    /// Ends the watch and every wait for its next update.
    fn close(&self) {
        self.0.close();
    }
}
