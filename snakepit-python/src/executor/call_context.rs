//! The context of the running call as Python code finds it, and the reports to the caller.

use std::sync::Arc;

use pyo3::{intern, prelude::*};
use snakepit_proto::launch::output::FrameKind;

use super::Executor;
use crate::{call::Call, output_frames::OutputFrames, reports::Reports, state::CallState, worker::frame_of};

impl Executor {
    /// The ident of the thread that runs calls.
    fn thread_ident<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.thread {
            Some(thread) => Ok(thread.bind(py).clone()),
            None => py.import(intern!(py, "_thread"))?.call_method0(intern!(py, "get_ident")),
        }
    }

    /// Makes the context of a call the current one of this thread. If the caller receives output, the output of programs and
    /// native code belongs to the call from here on.
    pub(super) fn enter_context(
        &self,
        py: Python<'_>,
        context: &Bound<'_, PyAny>,
        state: &Arc<CallState>,
    ) -> PyResult<()> {
        self.plan.running.bind(py).set_item(self.thread_ident(py)?, context)?;
        if state.reports().is_some_and(Reports::wants_logs)
            && let Some(frames) = OutputFrames::get()
        {
            let call = context.getattr(intern!(py, "_call"))?;
            if let Ok(call) = call.cast::<Call>() {
                let frame = frame_of(FrameKind::Begin, Some(call.get()));
                // The write waits while the pipes are full.
                py.detach(|| frames.write_to_both(&frame));
            }
        }
        Ok(())
    }

    /// Removes the current context of this thread.
    pub(super) fn leave_context(&self, py: Python<'_>) {
        // Fails only without memory. The next call replaces the entry.
        let _ =
            self.thread_ident(py).and_then(|thread| self.plan.running.bind(py).set_item(thread, py.None()));
    }

    /// Sends the last reports of a call to its caller, if it receives any.
    pub(super) fn end_reports(&self, py: Python<'_>, state: &CallState) {
        if state.reports().is_none() {
            return;
        }
        let flush = self.plan.flush_output.bind(py);
        if !flush.is_none()
            && let Err(error) = flush.call0()
        {
            error.write_unraisable(py, Some(flush));
        }
        // The write waits while the pipes are full.
        py.detach(|| state.end_reports());
    }
}
