//! Converts a [`ToolFailure`] to a Python exception. Python code creates the exception, because it may have the class of the original
//! one.

use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};
use snakepit_registry::ToolFailure;

use super::ToolFailed;
use crate::value;

/// Returns the exception for a failed tool. `classes` lists the exception classes that the client may raise. `None` allows the classes
/// of all imported modules.
pub(crate) fn tool_failed(py: Python<'_>, failure: &ToolFailure, classes: Option<&Py<PyTuple>>) -> PyErr {
    let create = || -> PyResult<PyErr> {
        let create = py.import("snakepit_bridge._remote_errors")?.getattr("create")?;
        Ok(PyErr::from_value(create.call1((fields(py, failure)?, classes))?))
    };
    create().unwrap_or_else(|_| {
        ToolFailed::new_err((failure.error_type.clone(), failure.message.clone(), failure.traceback.clone()))
    })
}

/// Returns the fields of a failure as a dict. Omits fields that Python cannot read.
fn fields<'py>(py: Python<'py>, failure: &ToolFailure) -> PyResult<Bound<'py, PyDict>> {
    let ToolFailure {
        error_type,
        message,
        traceback,
        code,
        data,
        args,
        attributes,
        omitted,
        notes,
        cause,
        context,
        exceptions,
        ..
    } = failure;
    let fields = PyDict::new(py);
    for (name, text) in [("type", error_type), ("message", message), ("traceback", traceback), ("code", code)]
    {
        fields.set_item(name, text)?;
    }
    fields.set_item("omitted", omitted)?;
    fields.set_item("notes", notes)?;
    let json = [
        ("data", serde_json::to_vec(data)),
        ("args", serde_json::to_vec(args)),
        ("attributes", serde_json::to_vec(attributes)),
        ("cause", serde_json::to_vec(cause)),
        ("context", serde_json::to_vec(context)),
        ("exceptions", serde_json::to_vec(exceptions)),
    ];
    for (name, json) in json {
        if let Some(value) = json.ok().and_then(|json| value::json_to_python(py, &json).ok()) {
            fields.set_item(name, value)?;
        }
    }
    Ok(fields)
}
