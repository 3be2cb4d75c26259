//! [`Fitness`]: whether the interpreter can still run calls after what a tool did to it.

use pyo3::{
    intern,
    prelude::*,
    types::{PyDict, PyString},
};

/// What the interpreter was like before the first call.
#[derive(Debug)]
pub(crate) struct Fitness {
    builtins: Py<PyDict>,
    builtin_count: usize,
    /// The dict of `sys`.
    sys: Py<PyDict>,
    modules: Py<PyDict>,
    module_count: usize,
    /// Says what is in the way of further calls, or `None`.
    examine: Py<PyAny>,
}

impl Fitness {
    /// Looks at the interpreter as it is now.
    ///
    /// # Errors
    /// When it is broken already.
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let builtins = py.import("builtins")?.dict();
        let sys = py.import("sys")?.dict();
        let modules = sys.as_any().get_item(intern!(py, "modules"))?.cast_into::<PyDict>()?;
        Ok(Self {
            builtin_count: builtins.len(),
            builtins: builtins.unbind(),
            module_count: modules.len(),
            modules: modules.unbind(),
            sys: sys.unbind(),
            examine: py
                .import("snakepit_bridge._fitness")?
                .getattr("Fitness")?
                .call0()?
                .getattr("problem")?
                .unbind(),
        })
    }

    /// What shows at a glance, after any call: this costs some ten nanoseconds.
    pub(super) fn glance(&self, py: Python<'_>) -> Option<&'static str> {
        if self.builtins.bind(py).len() < self.builtin_count {
            return Some("a tool removed builtins");
        }
        let modules = self.sys.bind(py).get_item(intern!(py, "modules")).ok().flatten();
        let modules = modules.filter(|modules| modules.is(&self.modules));
        // Some may be removed to be imported anew.
        let is_broken = modules.is_none() || self.modules.bind(py).len() < self.module_count / 2;
        is_broken.then_some("a tool replaced or cleared sys.modules")
    }

    /// All that is in the way of further calls; for calls that failed, perhaps because of it.
    pub(super) fn problem(&self, py: Python<'_>) -> Option<String> {
        if let Some(problem) = self.glance(py) {
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
