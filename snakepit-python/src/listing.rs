//! The tools of a host as Python dicts.

use pyo3::{
    prelude::*,
    types::{PyDict, PyList},
};
use serde_json::Value;
use snakepit_proto::pb;
use snakepit_wire::spec_from_wire;

use crate::value;

/// Describes a host tool: its name, description and parameters, and whether it streams.
pub(crate) fn describe_tool<'py>(py: Python<'py>, spec: &pb::ToolSpec) -> PyResult<Bound<'py, PyDict>> {
    let parameters = PyList::empty(py);
    for parameter in &spec.parameters {
        let entry = PyDict::new(py);
        entry.set_item("name", &parameter.name)?;
        entry.set_item("type", &parameter.r#type)?;
        entry.set_item("description", &parameter.description)?;
        entry.set_item("required", parameter.required)?;
        parameters.append(entry)?;
    }
    let tool = PyDict::new(py);
    tool.set_item("name", &spec.name)?;
    tool.set_item("description", &spec.description)?;
    tool.set_item("parameters", parameters)?;
    tool.set_item("supports_streaming", spec.supports_streaming)?;
    Ok(tool)
}

/// Describes any tool: as [`describe_tool`], with its provider and its JSON Schemas.
pub(crate) fn describe_listed<'py>(py: Python<'py>, tool: pb::ToolInfo) -> PyResult<Bound<'py, PyDict>> {
    let pb::ToolInfo { spec, provider } = tool;
    let spec = spec.unwrap_or_default();
    let entry = describe_tool(py, &spec)?;
    entry.set_item("provider", provider)?;
    let spec = spec_from_wire(spec);
    let to_python = |schema: Value| value::json_to_python(py, schema.to_string().as_bytes());
    entry.set_item("input_schema", to_python(spec.input_schema())?)?;
    entry.set_item("result_schema", spec.result_schema().map(to_python).transpose()?)?;
    entry.set_item("item_schema", spec.item_schema().map(to_python).transpose()?)?;
    Ok(entry)
}
