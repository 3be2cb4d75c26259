//! [`Globals`]: restores global state of the interpreter that a call changed, where a check after each call is cheap.

use pyo3::{ffi, prelude::*, types::PyList};

use super::guarded_entry::GuardedEntry;

/// Attributes of `sys`.
const NAMES: [&str; 4] = ["stdin", "stdout", "stderr", "argv"];

/// The state before the first call.
#[derive(Debug)]
pub(crate) struct Globals {
    /// Attributes of `sys`.
    attributes: [GuardedEntry; NAMES.len()],
    argv: Py<PyList>,
    arguments: Vec<Py<PyAny>>,
    is_gc_enabled: bool,
    recursion_limit: i32,
}

impl Globals {
    /// Records the current state.
    ///
    /// # Errors
    /// If an attribute of `sys` is missing or of another type.
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let sys = py.import("sys")?.dict();
        let [stdin, stdout, stderr, argv] = NAMES.map(|name| GuardedEntry::new(&sys, name));
        let attributes = [stdin?, stdout?, stderr?, argv?];
        let [.., argv] = &attributes;
        let argv = argv.original().bind(py).cast::<PyList>()?.clone();
        Ok(Self {
            attributes,
            arguments: argv.iter().map(Bound::unbind).collect(),
            argv: argv.unbind(),
            is_gc_enabled: is_gc_enabled(),
            recursion_limit: recursion_limit(),
        })
    }

    /// Restores the state if a call changed it. Otherwise compares a few pointers.
    ///
    /// # Errors
    /// If memory is exhausted.
    pub(super) fn restore(&self, py: Python<'_>) -> PyResult<()> {
        // Restored first, because the other steps may call Python code, which a low limit could break.
        if recursion_limit() != self.recursion_limit {
            set_recursion_limit(self.recursion_limit);
        }
        for attribute in &self.attributes {
            if !attribute.is_unchanged(py) {
                attribute.restore(py)?;
            }
        }
        let argv = self.argv.bind(py);
        if argv.len() != self.arguments.len()
            || argv.iter().zip(&self.arguments).any(|(now, was)| !now.is(was))
        {
            argv.set_slice(0, argv.len(), PyList::new(py, &self.arguments)?.as_any())?;
        }
        if is_gc_enabled() != self.is_gc_enabled {
            set_gc_enabled(self.is_gc_enabled);
        }
        Ok(())
    }
}

/// Returns whether the garbage collector is enabled.
#[allow(unsafe_code)]
fn is_gc_enabled() -> bool {
    // SAFETY: reads a flag of the interpreter. The GIL is held wherever calls run.
    unsafe { ffi::PyGC_IsEnabled() != 0 }
}

#[allow(unsafe_code)]
fn set_gc_enabled(is_enabled: bool) {
    // SAFETY: sets a flag of the interpreter. The GIL is held wherever calls run.
    unsafe {
        if is_enabled {
            ffi::PyGC_Enable();
        } else {
            ffi::PyGC_Disable();
        }
    }
}

#[allow(unsafe_code)]
fn recursion_limit() -> i32 {
    // SAFETY: reads a number of the interpreter. The GIL is held wherever calls run.
    unsafe { ffi::Py_GetRecursionLimit() }
}

#[allow(unsafe_code)]
fn set_recursion_limit(limit: i32) {
    // SAFETY: sets a number of the interpreter. The GIL is held wherever calls run.
    unsafe { ffi::Py_SetRecursionLimit(limit) }
}
