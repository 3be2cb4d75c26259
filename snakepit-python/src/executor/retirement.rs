//! Retires the worker after calls that left it unable to run others.

use std::sync::atomic::Ordering::Relaxed;

use pyo3::Python;
use tokio::time::Instant;

use super::{Executor, warn};
use crate::{retire, state::CallState};

impl Executor {
    /// Returns the problem that prevents further calls, if there is one.
    pub(super) fn fitness_problem(&self, py: Python<'_>) -> Option<String> {
        self.fitness.as_ref().and_then(|fitness| fitness.problem(py))
    }

    /// Retires this worker if a call left it unable to run others.
    pub(super) fn retire_if_broken(&self, py: Python<'_>, tool: &str, has_failed: bool) {
        let Some(fitness) = &self.fitness else { return };
        if !has_failed {
            if let Some(problem) = fitness.quick_check(py) {
                self.retire_with_reason(tool, problem);
            }
        } else if let Some(problem) = fitness.problem(py) {
            self.retire_with_reason(tool, &problem);
        }
    }

    /// Retires this worker because of damage by one of its calls, and logs the reason.
    pub(super) fn retire_with_reason(&self, tool: &str, reason: &str) {
        if !self.flags.is_retired.load(Relaxed) {
            warn(format_args!("the worker is replaced after a call of tool `{tool}`: {reason}"));
            self.retire();
        }
    }

    /// Retires this worker if a cancelled call may have broken state that further calls need.
    pub(super) fn retire_if_interrupted(&self, tool: &str, state: &CallState, began_at: Instant) {
        let policy = self.plan.tools.get(tool).map_or(self.plan.after_cancel, |tool| tool.after_cancel);
        if let Some(reason) = retire::retire_reason(policy, state, began_at) {
            self.retire_with_reason(tool, reason);
        }
    }

    /// Retires this worker because its event loop runs but does not notice calls.
    pub(super) fn retire_unresponsive(&self) {
        if !self.flags.is_retired.load(Relaxed) {
            warn(format_args!(
                "the worker is replaced: its event loop does not notice calls; a tool may have closed a descriptor of the loop"
            ));
            self.retire();
        }
    }

    /// Rejects all further calls, so that the host runs them elsewhere, and makes the worker exit after this one.
    pub(super) fn retire(&self) {
        self.flags.is_retired.store(true, Relaxed);
        // No other worker replaces the process of a test.
        if self.io.is_some() {
            self.tools.close();
        }
    }
}
