//! What Python told about the adapter, taken apart once so that a call need not look anything up by name.

use std::collections::HashMap;

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyString},
};
use snakepit_registry::{ParameterSpec, ToolFailure, ToolSpec};

use crate::value::{self, Conversions};

/// How a tool is written, as far as its definition shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolKind {
    /// `def` or `async def`: one value, unless what it returns is an iterator.
    Function,
    /// `def` or `async def` with `yield`: streams.
    Generator,
}

/// What becomes of the worker once a call was cut by an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterCancel {
    /// It is kept if only code of the adapter was cut, and no process is left behind.
    Auto,
    Keep,
    Replace,
}

impl AfterCancel {
    fn read(name: &Bound<'_, PyAny>) -> PyResult<Self> {
        match &*name.extract::<String>()? {
            "auto" => Ok(Self::Auto),
            "keep" => Ok(Self::Keep),
            "replace" => Ok(Self::Replace),
            other => Err(PyValueError::new_err(format!(
                "after_cancel is `{other}`; it takes auto, keep or replace"
            ))),
        }
    }
}

/// One tool of the adapter.
#[derive(Debug)]
pub(crate) struct Tool {
    /// The method's name.
    pub(crate) attribute: Py<PyString>,
    pub(crate) kind: ToolKind,
    pub(crate) after_cancel: AfterCancel,
    pub(crate) conversions: Conversions,
}

/// An adapter class and the Python helpers that run it. Mirrors `snakepit_bridge._plan.Plan`.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Makes an adapter object.
    pub(crate) factory: Py<PyAny>,
    pub(crate) tools: HashMap<String, Tool>,
    pub(crate) specs: Vec<ToolSpec>,
    pub(crate) has_context: bool,
    pub(crate) has_initialize: bool,
    pub(crate) has_cleanup: bool,
    /// Whether the adapter takes calls of tools that it did not declare.
    pub(crate) is_dynamic: bool,
    /// Makes a `SessionContext` from a native `Call`.
    pub(crate) context: Py<PyAny>,
    /// Runs an awaitable on the worker's event loop.
    pub(crate) run_async: Py<PyAny>,
    /// Pulls an async generator into a sink.
    pub(crate) drain_async: Py<PyAny>,
    /// Makes the context that calls begin with a copy of, and what is to run in each copy before.
    pub(crate) contexts: Py<PyAny>,
    /// Undoes what a call did to the event loop; `False` if a task of it does not end; `None` if that takes waiting, which it
    /// then may not.
    pub(crate) end_async: Py<PyAny>,
    /// Runs what is ready on the event loop, and tells after how many seconds there is more.
    pub(crate) turn_async: Py<PyAny>,
    /// The descriptor that is readable when the event loop has something to do.
    pub(crate) loop_fileno: Py<PyAny>,
    /// Undoes what a call did to the signals and standard streams of the worker.
    pub(crate) settle: Py<PyAny>,
    /// For tools that the adapter did not declare.
    pub(crate) after_cancel: AfterCancel,
    /// Takes an exception apart.
    pub(crate) describe: Py<PyAny>,
    /// The class of chunks with metadata.
    pub(crate) chunk: Py<PyAny>,
}

impl Plan {
    /// Reads the plan that Python made.
    ///
    /// # Errors
    /// When an attribute is missing or of another type, which would be a bug in the package.
    pub(crate) fn read(plan: &Bound<'_, PyAny>) -> PyResult<Self> {
        let object = |name: &str| plan.getattr(name).map(Bound::unbind);
        let flag = |name: &str| plan.getattr(name)?.extract::<bool>();
        let after_cancel = AfterCancel::read(&plan.getattr("after_cancel")?)?;
        let mut tools = HashMap::new();
        let mut specs = Vec::new();
        for tool in plan.getattr("tools")?.try_iter()? {
            let tool = tool?;
            let attribute = tool.getattr("attribute")?.cast_into::<PyString>()?.unbind();
            let kind =
                if tool.getattr("generates")?.extract()? { ToolKind::Generator } else { ToolKind::Function };
            let spec = read_spec(&tool.getattr("spec")?.cast_into::<PyDict>()?)?;
            let own = tool.getattr("after_cancel")?;
            let after_cancel = if own.is_none() { after_cancel } else { AfterCancel::read(&own)? };
            let conversions = Conversions::of(&spec);
            tools.insert(spec.name.clone(), Tool { attribute, kind, after_cancel, conversions });
            specs.push(spec);
        }
        for spec in plan.getattr("dynamic_specs")?.try_iter()? {
            specs.push(read_spec(&spec?.cast_into::<PyDict>()?)?);
        }
        Ok(Self {
            factory: object("factory")?,
            tools,
            specs,
            has_context: flag("has_context")?,
            has_initialize: flag("has_initialize")?,
            has_cleanup: flag("has_cleanup")?,
            is_dynamic: flag("is_dynamic")?,
            context: object("context")?,
            run_async: object("run_async")?,
            drain_async: object("drain_async")?,
            end_async: object("end_async")?,
            turn_async: object("turn_async")?,
            loop_fileno: object("loop_fileno")?,
            contexts: object("contexts")?,
            settle: object("settle")?,
            after_cancel,
            describe: object("describe")?,
            chunk: object("chunk")?,
        })
    }

    /// Takes an exception apart. `call` is what was called with which arguments, for the case that they did not fit.
    pub(crate) fn failure(
        &self,
        py: Python<'_>,
        error: &PyErr,
        call: Option<(&Bound<'_, PyAny>, &Bound<'_, PyDict>)>,
    ) -> ToolFailure {
        let (function, arguments) =
            call.map_or((None, None), |(function, arguments)| (Some(function), Some(arguments)));
        // Only the owned value surely has its traceback attached.
        let exception = error.clone_ref(py).into_value(py);
        let described = self
            .describe
            .call1(py, (&exception, function, arguments))
            .and_then(|parts| parts.extract::<(String, String, String)>(py));
        // An exception whose own methods raise still has a type.
        let (error_type, message, traceback) = described.unwrap_or_else(|problem| {
            let text = error.value(py).str().map(|text| text.to_string_lossy().into_owned());
            let message = text.unwrap_or_else(|_| format!("<it cannot be described: {problem}>"));
            (value::type_name(error.value(py)), message, String::new())
        });
        ToolFailure { error_type, message, traceback, ..ToolFailure::default() }
    }
}

/// Reads the spec of a tool from the dict that Python made of its signature.
///
/// # Errors
/// When an entry is missing or of another type, which would be a bug in the package.
pub(crate) fn read_spec(spec: &Bound<'_, PyDict>) -> PyResult<ToolSpec> {
    let mut parameters = Vec::new();
    for parameter in spec.as_any().get_item("parameters")?.try_iter()? {
        let parameter = parameter?;
        let required = parameter.get_item("required")?.extract()?;
        parameters.push(ParameterSpec {
            name: parameter.get_item("name")?.extract()?,
            type_name: parameter.get_item("type")?.extract()?,
            description: parameter.get_item("description")?.extract()?,
            required,
            // A default that has no wire form is left out: the tool itself still knows it.
            default: match required {
                true => None,
                false => parameter
                    .get_item("default")
                    .and_then(|value| value::from_python(&value, format_args!("default")))
                    .ok(),
            },
            validation_json: String::new(),
        });
    }
    let spec = spec.as_any();
    Ok(ToolSpec {
        name: spec.get_item("name")?.extract()?,
        description: spec.get_item("description")?.extract()?,
        parameters,
        metadata: spec.get_item("metadata")?.extract()?,
        supports_streaming: spec.get_item("supports_streaming")?.extract()?,
        closed: spec.get_item("closed")?.extract()?,
    })
}
