//! [`Globals`]: what calls share of the interpreter and find as the worker had it, because a glance after each call costs little.

use pyo3::{
    ffi,
    prelude::*,
    types::{PyDict, PyList, PyString},
};

/// Names in `sys`.
const NAMES: [&str; 3] = ["stdin", "stdout", "stderr"];

/// As it was before the first call.
#[derive(Debug)]
pub(crate) struct Globals {
    /// The dict of `sys`.
    sys: Py<PyDict>,
    values: Vec<(Py<PyString>, Py<PyAny>)>,
    argv_name: Py<PyString>,
    argv: Py<PyList>,
    arguments: Vec<Py<PyAny>>,
    collects: bool,
    recursion_limit: i32,
}

impl Globals {
    /// As it is now.
    ///
    /// # Errors
    /// When `sys` is not what it has to be.
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let sys = py.import("sys")?.dict();
        let values = NAMES.into_iter().map(|name| {
            let name = PyString::intern(py, name);
            Ok((name.clone().unbind(), sys.as_any().get_item(&name)?.unbind()))
        });
        let argv = sys.as_any().get_item("argv")?.cast_into::<PyList>()?;
        Ok(Self {
            values: values.collect::<PyResult<_>>()?,
            argv_name: PyString::intern(py, "argv").unbind(),
            arguments: argv.iter().map(Bound::unbind).collect(),
            argv: argv.unbind(),
            collects: collects(),
            recursion_limit: recursion_limit(),
            sys: sys.unbind(),
        })
    }

    /// Makes it so again, if a call changed it. Compares a few pointers.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn restore(&self, py: Python<'_>) -> PyResult<()> {
        // First, because the rest may call Python.
        if recursion_limit() != self.recursion_limit {
            set_recursion_limit(self.recursion_limit);
        }
        let sys = self.sys.bind(py);
        for (name, value) in &self.values {
            if !sys.get_item(name)?.is_some_and(|now| now.is(value)) {
                sys.set_item(name, value)?;
            }
        }
        let argv = self.argv.bind(py);
        if !sys.get_item(&self.argv_name)?.is_some_and(|now| now.is(argv)) {
            sys.set_item(&self.argv_name, argv)?;
        }
        if argv.len() != self.arguments.len()
            || argv.iter().zip(&self.arguments).any(|(now, was)| !now.is(was))
        {
            argv.set_slice(0, argv.len(), PyList::new(py, &self.arguments)?.as_any())?;
        }
        if collects() != self.collects {
            set_collects(self.collects);
        }
        Ok(())
    }
}

/// Whether the garbage collector is switched on.
#[allow(unsafe_code)]
fn collects() -> bool {
    // SAFETY: it reads a flag of the interpreter, whose lock is held wherever calls run.
    unsafe { ffi::PyGC_IsEnabled() != 0 }
}

#[allow(unsafe_code)]
fn set_collects(on: bool) {
    // SAFETY: it sets a flag of the interpreter, whose lock is held wherever calls run.
    unsafe {
        if on {
            ffi::PyGC_Enable();
        } else {
            ffi::PyGC_Disable();
        }
    }
}

#[allow(unsafe_code)]
fn recursion_limit() -> i32 {
    // SAFETY: it reads a number of the interpreter, whose lock is held wherever calls run.
    unsafe { ffi::Py_GetRecursionLimit() }
}

#[allow(unsafe_code)]
fn set_recursion_limit(limit: i32) {
    // SAFETY: it sets a number of the interpreter, whose lock is held wherever calls run.
    unsafe { ffi::Py_SetRecursionLimit(limit) }
}
