//! [`GuardedEntry`]: detects and undoes a change to one dict entry, such as `sys.stdout`, after a call.

use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

use pyo3::{
    ffi,
    prelude::*,
    sync::critical_section::with_critical_section,
    types::{PyDict, PyString},
};

/// A key of a dict, and the object that was its value at startup.
///
/// A comparison reads the entry at its last known position, which costs a fraction of a lookup. The position rarely changes.
#[derive(Debug)]
pub(super) struct GuardedEntry {
    dict: Py<PyDict>,
    /// The key, as it is interned in the dict.
    name: Py<PyString>,
    original: Py<PyAny>,
    /// The position at which the key was found last.
    position: AtomicIsize,
}

impl GuardedEntry {
    /// Records the current value of a key.
    ///
    /// # Errors
    /// `KeyError` if the dict has no such key.
    pub(super) fn new(dict: &Bound<'_, PyDict>, name: &str) -> PyResult<Self> {
        let name = PyString::intern(dict.py(), name);
        Ok(Self {
            dict: dict.clone().unbind(),
            original: dict.as_any().get_item(&name)?.unbind(),
            name: name.unbind(),
            position: AtomicIsize::new(0),
        })
    }

    /// The original value.
    pub(super) const fn original(&self) -> &Py<PyAny> {
        &self.original
    }

    /// Returns whether the dict still maps the key to the original value.
    pub(super) fn is_unchanged(&self, py: Python<'_>) -> bool {
        match self.entry_at(py, self.position.load(Relaxed)) {
            Some((key, value, _)) if key == self.name.as_ptr() => value == self.original.as_ptr(),
            _ => self.find(py),
        }
    }

    /// Restores the original value.
    ///
    /// # Errors
    /// If memory is exhausted.
    pub(super) fn restore(&self, py: Python<'_>) -> PyResult<()> {
        self.dict.bind(py).set_item(&self.name, &self.original)
    }

    /// Finds the key at another position. Returns whether its value is the original one.
    #[cold]
    fn find(&self, py: Python<'_>) -> bool {
        let mut position = 0;
        while let Some((key, _, next)) = self.entry_at(py, position) {
            if key == self.name.as_ptr() {
                self.position.store(position, Relaxed);
                break;
            }
            position = next;
        }
        // The scan compares pointers, so it does not find an equal key that is another object. The lookup does.
        let value = self.dict.bind(py).get_item(&self.name).ok().flatten();
        value.is_some_and(|value| value.is(&self.original))
    }

    /// Returns the first entry at this position or after it: key, value, and the position of the next entry. The pointers
    /// are only valid for comparisons.
    #[allow(unsafe_code)]
    fn entry_at(
        &self,
        py: Python<'_>,
        position: isize,
    ) -> Option<(*mut ffi::PyObject, *mut ffi::PyObject, isize)> {
        let (mut next, mut key, mut value) = (position, std::ptr::null_mut(), std::ptr::null_mut());
        let dict = self.dict.bind(py);
        // Without the GIL, the section keeps other threads from changing the dict. Otherwise it costs nothing.
        let found = with_critical_section(dict.as_any(), || {
            // SAFETY: `py` proves that this thread is attached to the interpreter. The dict is alive, and Python checks the
            // position against its size. The pointers are written if there is an entry, and are not dereferenced.
            unsafe { ffi::PyDict_Next(dict.as_ptr(), &mut next, &mut key, &mut value) }
        });
        (found != 0).then_some((key, value, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_value_is_noticed_and_restored_wherever_its_key_is() {
        Python::initialize();
        Python::attach(|py| {
            let dict = PyDict::new(py);
            for name in ["a", "b", "c"] {
                dict.set_item(PyString::intern(py, name), name).unwrap();
            }
            let entry = GuardedEntry::new(&dict, "b").unwrap();
            let assert_unchanged = |expected: bool| {
                // Twice, because the first comparison may update the position.
                assert_eq!([entry.is_unchanged(py), entry.is_unchanged(py)], [expected; 2]);
            };
            assert_unchanged(true);
            dict.set_item("b", "other").unwrap();
            assert_unchanged(false);
            entry.restore(py).unwrap();
            assert_unchanged(true);
            dict.del_item("a").unwrap();
            assert_unchanged(true);
            dict.del_item("b").unwrap();
            assert_unchanged(false);
            // At the end of the dict.
            entry.restore(py).unwrap();
            assert_unchanged(true);
            for number in 0..1000 {
                dict.set_item(number, number).unwrap();
            }
            assert_unchanged(true);
            // The dict is rebuilt, and the position lies beyond its end.
            dict.clear();
            assert_unchanged(false);
            // An equal key that is another object.
            let foreign = PyString::new(py, "x").call_method1("replace", ("x", "b")).unwrap();
            dict.set_item(foreign, entry.original()).unwrap();
            assert_unchanged(true);
            dict.set_item("b", py.None()).unwrap();
            assert_unchanged(false);
        });
    }
}
