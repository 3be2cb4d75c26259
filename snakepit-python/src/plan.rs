//! [`Plan`]: the adapter's tools and the Python helpers that run them. Read once, so that calls need no lookup by name.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use foldhash::fast::RandomState;
use pyo3::{
    exceptions::PyValueError,
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyString},
};
use snakepit_proto::launch;
use snakepit_registry::{
    ADDITIONAL_ARGUMENTS_SCHEMA_KEY, Arguments, ITEM_SCHEMA_KEY, ParameterSpec, RESULT_SCHEMA_KEY,
    ToolFailure, ToolSpec, Violation, argument_violations,
};
use snakepit_wire::add_details;

use crate::{
    contract::Contract,
    errors,
    executor::ConcurrencyLimits,
    value::{self, Parameters, Purpose},
};

/// How a tool is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolKind {
    /// `def` or `async def`. Returns one value, unless the value is an iterator.
    Function,
    /// `def` or `async def` with `yield`. Streams its values.
    Generator,
}

/// Whether a worker continues after a call was interrupted by an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterCancel {
    /// Continues if the exception was raised in code of the adapter and the call left no processes behind.
    Auto,
    /// Always continues.
    Keep,
    /// Never continues.
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
    /// The name of the method.
    pub(crate) attribute: Py<PyString>,
    pub(crate) kind: ToolKind,
    pub(crate) after_cancel: AfterCancel,
    pub(crate) parameters: Parameters,
    pub(crate) contract: Contract,
    /// The spec to check arguments against. `None` if the host does so.
    checked_spec: Option<ToolSpec>,
    /// Whether the tool is a synchronous function, which occupies the thread on which it runs.
    is_plain: bool,
    /// The number of its calls that may run together, if the tool sets it.
    concurrency: Option<usize>,
}

impl Tool {
    /// Returns the problems of arguments that need no conversion to find: missing and unknown ones, and wrong types. Empty if the
    /// host has checked the arguments.
    pub(crate) fn violations(&self, arguments: &Arguments) -> Vec<Violation> {
        self.checked_spec.as_ref().map_or_else(Vec::new, |spec| argument_violations(spec, arguments))
    }

    /// Converts arguments in place. Returns all problems, including the `known` ones.
    ///
    /// # Errors
    /// As [`Contract::read`].
    pub(crate) fn convert(
        &self,
        arguments: &Bound<'_, PyDict>,
        known: Vec<Violation>,
    ) -> PyResult<Vec<Violation>> {
        let mut violations = self.contract.read(arguments)?;
        let converted = violations.len();
        for violation in known {
            let is_described = |other: &Violation| {
                let path = other.field.strip_prefix(&violation.field);
                path.is_some_and(|path| path.is_empty() || path.starts_with(['.', '[']))
            };
            if !violations[..converted].iter().any(is_described) {
                violations.push(violation);
            }
        }
        Ok(violations)
    }
}

/// An adapter and the Python helpers that run it. Mirrors `snakepit_bridge._plan.Plan`.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Creates an adapter object.
    pub(crate) factory: Py<PyAny>,
    pub(crate) tools: HashMap<String, Tool, RandomState>,
    pub(crate) specs: Vec<ToolSpec>,
    pub(crate) has_context: bool,
    pub(crate) has_initialize: bool,
    pub(crate) has_cleanup: bool,
    /// Whether the adapter accepts calls to undeclared tools.
    pub(crate) is_dynamic: bool,
    /// Whether calls of every name are for `execute_tool`.
    pub(crate) serves_any_tool: bool,
    /// Whether calls pass the parameters of `execute_tool` by name.
    pub(crate) executes_by_name: bool,
    context: SessionContextType,
    /// The contexts of running calls, by thread.
    pub(crate) running: Py<PyDict>,
    /// Runs an awaitable on the worker's event loop.
    pub(crate) run_async: Py<PyAny>,
    /// Pulls an async generator into a sink.
    pub(crate) drain_async: Py<PyAny>,
    /// Creates the base context whose copies calls run in, and a function to run first in each copy, or `None`.
    pub(crate) contexts: Py<PyAny>,
    /// Restores the event loop after a call. Returns `False` if one of the call's tasks does not end, and `None` if
    /// restoring requires waiting, which was not allowed.
    pub(crate) end_async: Py<PyAny>,
    /// Runs the ready callbacks of the event loop. Returns the seconds until its next timer.
    pub(crate) turn_async: Py<PyAny>,
    /// Returns the descriptor that is readable when the event loop has work.
    pub(crate) loop_fileno: Py<PyAny>,
    /// Restores the worker's signals, trace functions and standard streams after a call.
    pub(crate) restore: Py<PyAny>,
    /// Writes the output that the standard streams still hold. `None` outside a worker.
    pub(crate) flush_output: Py<PyAny>,
    /// The policy for undeclared tools.
    pub(crate) after_cancel: AfterCancel,
    /// Returns the type, message and traceback of an exception.
    pub(crate) describe: Py<PyAny>,
    /// Returns the code and the other parts of an exception, as JSON.
    pub(crate) details: Py<PyAny>,
    /// The `StreamChunk` class.
    pub(crate) chunk: Py<PyAny>,
    /// Runs calls concurrently, until their queue is closed.
    pub(crate) serve: Py<PyAny>,
    pub(crate) concurrency: Concurrency,
}

/// The class of session contexts.
struct SessionContextType {
    /// Imports the class.
    load: Py<PyAny>,
    loaded: PyOnceLock<Py<PyAny>>,
}

impl fmt::Debug for SessionContextType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionContextType").finish_non_exhaustive()
    }
}

/// The numbers of calls that may run together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Concurrency {
    /// All calls. With 1, the worker does not use an event loop for synchronous functions.
    pub(crate) calls: usize,
    /// Coroutines of tools that set no number.
    shared: usize,
    /// The threads for synchronous functions. With 0, they run on the main thread, one at a time.
    threads: usize,
    /// Whether undeclared tools are synchronous functions.
    are_dynamic_plain: bool,
}

impl Plan {
    /// Reads the plan that Python created.
    ///
    /// # Errors
    /// If an attribute is missing or of another type, which is a bug in the package.
    pub(crate) fn read(plan: &Bound<'_, PyAny>) -> PyResult<Self> {
        let object = |name: &str| plan.getattr(name).map(Bound::unbind);
        let flag = |name: &str| plan.getattr(name)?.extract::<bool>();
        let after_cancel = AfterCancel::read(&plan.getattr("after_cancel")?)?;
        let mut tools = HashMap::default();
        let mut specs = Vec::new();
        for tool in plan.getattr("tools")?.try_iter()? {
            let tool = tool?;
            let attribute = tool.getattr("attribute")?.cast_into::<PyString>()?.unbind();
            let kind = if tool.getattr("is_generator")?.extract()? {
                ToolKind::Generator
            } else {
                ToolKind::Function
            };
            let spec = read_spec(&tool.getattr("spec")?.cast_into::<PyDict>()?)?;
            let tool_policy = tool.getattr("after_cancel")?;
            let after_cancel =
                if tool_policy.is_none() { after_cancel } else { AfterCancel::read(&tool_policy)? };
            let parameters = Parameters::of(plan.py(), &spec);
            let contract = Contract::of(&tool.getattr("contract")?)?;
            let is_plain = tool.getattr("is_plain")?.extract()?;
            let concurrency = tool.getattr("concurrency")?.extract()?;
            let checked_spec = contract.has_reader().then(|| spec.clone());
            let tool = Tool {
                attribute,
                kind,
                after_cancel,
                parameters,
                contract,
                checked_spec,
                is_plain,
                concurrency,
            };
            tools.insert(spec.name.clone(), tool);
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
            serves_any_tool: flag("serves_any_tool")?,
            executes_by_name: flag("executes_by_name")?,
            context: SessionContextType { load: object("load_context")?, loaded: PyOnceLock::new() },
            running: plan.getattr("running")?.cast_into::<PyDict>()?.unbind(),
            run_async: object("run_async")?,
            drain_async: object("drain_async")?,
            end_async: object("end_async")?,
            turn_async: object("turn_async")?,
            loop_fileno: object("loop_fileno")?,
            contexts: object("contexts")?,
            restore: object("restore")?,
            flush_output: object("flush_output")?,
            after_cancel,
            describe: object("describe")?,
            details: object("details")?,
            chunk: object("chunk")?,
            serve: object("serve")?,
            concurrency: Concurrency {
                calls: plan.getattr("calls")?.extract()?,
                shared: plan.getattr("concurrency")?.extract()?,
                threads: plan.getattr("threads")?.extract()?,
                are_dynamic_plain: flag("are_dynamic_plain")?,
            },
        })
    }

    /// Returns the class that creates a `SessionContext` from a native `Call`.
    ///
    /// Imports it at the first use, with the modules that only calls need, because these take a quarter of the imports of a
    /// worker, and workers start in parallel. Tools run only afterwards, so they cannot disturb the import.
    ///
    /// # Errors
    /// The exception of the import.
    pub(crate) fn context<'a, 'py>(&'a self, py: Python<'py>) -> PyResult<&'a Bound<'py, PyAny>> {
        let SessionContextType { load, loaded } = &self.context;
        let context = loaded.get_or_try_init(py, || {
            errors::preload(py);
            load.call0(py)
        })?;
        Ok(context.bind(py))
    }

    /// Creates the limits of a worker that runs calls concurrently.
    pub(crate) fn concurrency_limits(&self) -> ConcurrencyLimits {
        let Concurrency { calls, shared, threads, are_dynamic_plain } = self.concurrency;
        let mut limits = ConcurrencyLimits::new(calls, shared, threads, are_dynamic_plain);
        for (name, tool) in &self.tools {
            limits.add(name, tool.is_plain, tool.concurrency);
        }
        limits
    }

    /// Describes the limits for the host. `None` for a worker that runs one call at a time.
    pub(crate) fn call_limits(&self) -> Option<launch::CallLimits> {
        (self.concurrency.calls > 1).then(|| self.concurrency_limits().describe())
    }

    /// Calls `execute_tool` of an adapter.
    ///
    /// # Errors
    /// The exception that it raises.
    pub(crate) fn execute<'py>(
        &self,
        adapter: &Bound<'py, PyAny>,
        tool: &str,
        arguments: &Bound<'py, PyDict>,
        context: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, method) = (adapter.py(), intern!(adapter.py(), "execute_tool"));
        if !self.executes_by_name {
            return adapter.call_method1(method, (tool, arguments, context));
        }
        let named = PyDict::new(py);
        named.set_item(intern!(py, "tool_name"), tool)?;
        named.set_item(intern!(py, "arguments"), arguments)?;
        named.set_item(intern!(py, "context"), context)?;
        adapter.call_method(method, (), Some(&named))
    }

    /// Converts an exception to a `ToolFailure`. `call` contains the called function and its arguments, so that the
    /// message can explain arguments that do not match the signature.
    pub(crate) fn failure(
        &self,
        py: Python<'_>,
        error: &PyErr,
        call: Option<(&Bound<'_, PyAny>, &Bound<'_, PyDict>)>,
    ) -> ToolFailure {
        let (function, arguments) =
            call.map_or((None, None), |(function, arguments)| (Some(function), Some(arguments)));
        // Only `into_value` guarantees that the exception has its traceback.
        let exception = error.clone_ref(py).into_value(py);
        let described = self
            .describe
            .call1(py, (&exception, function, arguments))
            .and_then(|parts| parts.extract::<(String, String, String)>(py));
        // The type is still available if the exception's own methods raise.
        let (error_type, message, traceback) = described.unwrap_or_else(|problem| {
            let text = error.value(py).str().map(|text| text.to_string_lossy().into_owned());
            let message = text.unwrap_or_else(|_| format!("<it cannot be described: {problem}>"));
            (value::type_name(error.value(py)), message, String::new())
        });
        let mut failure = ToolFailure::new(error_type, message).with_traceback(traceback);
        // Without details, the failure is still complete.
        let details = self.details.call1(py, (&exception,));
        if let Ok((code, json)) = details.and_then(|details| details.extract::<(String, Vec<u8>)>(py)) {
            failure.code = code;
            add_details(&mut failure, &json);
        }
        failure
    }
}

/// Reads the spec of a tool from the dict that Python created from its signature.
///
/// # Errors
/// If an entry is missing or of another type, which is a bug in the package.
pub(crate) fn read_spec(spec: &Bound<'_, PyDict>) -> PyResult<ToolSpec> {
    let mut parameters = Vec::new();
    for parameter in spec.as_any().get_item("parameters")?.try_iter()? {
        let parameter = parameter?;
        let required = parameter.get_item("required")?.extract()?;
        let (name, ty): (String, String) =
            (parameter.get_item("name")?.extract()?, parameter.get_item("type")?.extract()?);
        let mut spec = ParameterSpec::new(name, ty);
        spec.description = parameter.get_item("description")?.extract()?;
        spec.required = required;
        // A default without a wire form is omitted. The tool itself still has it.
        spec.default = match required {
            true => None,
            false => parameter
                .get_item("default")
                .and_then(|value| value::from_python(&value, Purpose::Result, format_args!("default")))
                .ok(),
        };
        if let Ok(schema) = parameter.get_item("schema") {
            spec.validation_json = json_text(&schema)?;
        }
        parameters.push(spec);
    }
    let mut metadata: BTreeMap<String, String> = spec.as_any().get_item("metadata")?.extract()?;
    let schemas = [
        ("others_schema", ADDITIONAL_ARGUMENTS_SCHEMA_KEY),
        ("result_schema", RESULT_SCHEMA_KEY),
        ("item_schema", ITEM_SCHEMA_KEY),
    ];
    for (name, key) in schemas {
        if let Some(schema) = spec.get_item(name)? {
            metadata.insert(key.to_owned(), json_text(&schema)?);
        }
    }
    let spec = spec.as_any();
    let mut tool = ToolSpec::new(spec.get_item("name")?.extract::<String>()?);
    tool.description = spec.get_item("description")?.extract()?;
    tool.parameters = parameters;
    tool.metadata = metadata;
    tool.supports_streaming = spec.get_item("supports_streaming")?.extract()?;
    tool.closed = spec.get_item("closed")?.extract()?;
    Ok(tool)
}

/// Converts a JSON Schema to text.
fn json_text(schema: &Bound<'_, PyAny>) -> PyResult<String> {
    let json = value::python_to_json(schema, Purpose::Result, format_args!("a schema"))?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}
