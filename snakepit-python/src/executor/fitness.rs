//! [`Fitness`]: checks whether the interpreter can still run calls after a tool changed or broke it.

use pyo3::{
    prelude::*,
    types::{PyDict, PyString},
};

use super::guarded_entry::GuardedEntry;

/// The state of the interpreter before the first call.
#[derive(Debug)]
pub(crate) struct Fitness {
    builtins: Py<PyDict>,
    builtin_count: usize,
    /// `sys.modules` as an attribute of `sys`.
    modules_entry: GuardedEntry,
    modules: Py<PyDict>,
    module_count: usize,
    /// The Python function that returns a description of the problem, or `None`.
    examine: Py<PyAny>,
}

impl Fitness {
    /// Records the current state of the interpreter.
    ///
    /// # Errors
    /// If the interpreter is broken already.
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let builtins = py.import("builtins")?.dict();
        let sys = py.import("sys")?.dict();
        let modules_entry = GuardedEntry::new(&sys, "modules")?;
        let modules = modules_entry.original().bind(py).cast::<PyDict>()?.clone();
        Ok(Self {
            builtin_count: builtins.len(),
            builtins: builtins.unbind(),
            module_count: modules.len(),
            modules: modules.unbind(),
            modules_entry,
            examine: py
                .import("snakepit_bridge._fitness")?
                .getattr("Fitness")?
                .call0()?
                .getattr("problem")?
                .unbind(),
        })
    }

    /// Runs the cheap checks, which follow every call. Costs about ten nanoseconds.
    pub(super) fn quick_check(&self, py: Python<'_>) -> Option<&'static str> {
        if self.builtins.bind(py).len() < self.builtin_count {
            return Some("a tool removed builtins");
        }
        // Tools may remove some modules to import them again.
        let is_broken =
            !self.modules_entry.is_unchanged(py) || self.modules.bind(py).len() < self.module_count / 2;
        is_broken.then_some("a tool replaced or cleared sys.modules")
    }

    /// Runs all checks. Used after a call failed, perhaps because of a broken interpreter.
    pub(super) fn problem(&self, py: Python<'_>) -> Option<String> {
        if let Some(problem) = self.quick_check(py) {
            return Some(problem.to_owned());
        }
        match self.examine.bind(py).call0() {
            Ok(problem) if problem.is_none() => None,
            Ok(problem) => {
                Some(problem.cast::<PyString>().map_or_else(|_| "?".to_owned(), ToString::to_string))
            }
            Err(error) => Some(format!("it cannot be examined: {error}")),
        }
    }
}
