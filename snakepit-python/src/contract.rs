//! [`Contract`]: the type hints of a tool, as converters of arguments and results. Python creates the converters. A tool with
//! plain hints has no converter for arguments. Results of exactly the declared type skip the converter.

use std::fmt;

use pyo3::{
    prelude::*,
    types::{PyDict, PyType},
};
use snakepit_registry::Violation;

/// The converters of one tool. Mirrors `snakepit_bridge._contract.Contract`.
#[derive(Debug)]
pub(crate) struct Contract {
    /// Converts the arguments of a call. `None` if all hints are plain.
    read: Option<Py<PyAny>>,
    /// The rule for the value of a call. `None` if the tool may return any value.
    pub(crate) result: Option<ResultRule>,
    /// The rule for the items of a stream.
    pub(crate) item: Option<ResultRule>,
}

/// The rule for one kind of results. Mirrors `snakepit_bridge._contract.ResultRule`.
#[derive(Debug)]
pub(crate) struct ResultRule {
    /// Values of exactly these types are valid and stay unchanged.
    exact: Vec<Py<PyType>>,
    /// Checks and converts all others.
    write: Py<PyAny>,
}

impl Contract {
    /// Reads the contract that Python created.
    ///
    /// # Errors
    /// If an attribute is missing or of another type, which is a bug in the package.
    pub(crate) fn of(contract: &Bound<'_, PyAny>) -> PyResult<Self> {
        let rule = |name: &str| {
            let rule = contract.getattr(name)?;
            (!rule.is_none()).then(|| ResultRule::of(&rule)).transpose()
        };
        Ok(Self { read: contract.getattr("read")?.extract()?, result: rule("result")?, item: rule("item")? })
    }

    /// Whether arguments need a conversion.
    pub(crate) const fn has_reader(&self) -> bool {
        self.read.is_some()
    }

    /// Converts arguments in place. Returns their problems, or an empty list if all arguments are valid.
    ///
    /// # Errors
    /// An exception that a type of the adapter raises, other than `ValueError`, `TypeError` and `AssertionError`, which become
    /// problems.
    pub(crate) fn read(&self, arguments: &Bound<'_, PyDict>) -> PyResult<Vec<Violation>> {
        let Some(read) = &self.read else { return Ok(Vec::new()) };
        let problems: Option<Vec<(String, String)>> =
            read.bind(arguments.py()).call1((arguments,))?.extract()?;
        let problems = problems.unwrap_or_default().into_iter();
        Ok(problems.map(|(field, description)| Violation::new(field, description)).collect())
    }
}

impl ResultRule {
    fn of(rule: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self { exact: rule.getattr("exact")?.extract()?, write: rule.getattr("write")?.unbind() })
    }

    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        let exact = self.exact.iter().map(|exact| exact.clone_ref(py)).collect();
        Self { exact, write: self.write.clone_ref(py) }
    }

    /// Converts a result to its wire form.
    ///
    /// # Errors
    /// `TypeError` if the value contradicts the hint. The message begins with `description`.
    pub(crate) fn apply<'py>(
        &self,
        value: Bound<'py, PyAny>,
        description: fmt::Arguments<'_>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = value.py();
        let ty = value.get_type();
        if self.exact.iter().any(|exact| ty.is(exact.bind(py))) {
            return Ok(value);
        }
        self.write.bind(py).call1((value, description.to_string()))
    }
}
