//! [`Parameters`]: the parameters of a tool, prepared for the arguments of its calls. Arguments are converted to the types
//! of their parameters: 5 to a float, 5.0 to an int, and lists to an array.

use pyo3::{
    exceptions::PyValueError,
    intern,
    prelude::*,
    types::{PyDict, PyList, PyString},
};
use snakepit_registry::ToolSpec;
use snakepit_session::{Payload, ValueType};

use super::{array, read, to_python};

/// The declared parameters of one tool.
#[derive(Debug)]
pub(crate) struct Parameters(Vec<Parameter>);

/// One declared parameter.
#[derive(Debug)]
pub(crate) struct Parameter {
    name: String,
    /// The name as the compiler interned it in the tool's code, so that Python matches the argument by pointer.
    interned: Py<PyString>,
    conversion: Option<Conversion>,
}

/// The target of a conversion.
#[derive(Debug, Clone, Copy)]
enum Conversion {
    Float,
    Integer,
    Array,
}

impl Parameters {
    pub(crate) fn of(py: Python<'_>, spec: &ToolSpec) -> Self {
        let parameters = spec.parameters.iter().map(|parameter| Parameter {
            name: parameter.name.clone(),
            interned: PyString::intern(py, &parameter.name).unbind(),
            conversion: match &*parameter.type_name {
                "float" => Some(Conversion::Float),
                "integer" => Some(Conversion::Integer),
                "tensor" => Some(Conversion::Array),
                _ => None,
            },
        });
        Self(parameters.collect())
    }

    /// Returns the parameter of this name, or `None` if the tool declares none.
    pub(crate) fn find(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|parameter| parameter.name == name)
    }
}

impl Parameter {
    /// The name as a Python string.
    pub(crate) const fn name(&self) -> &Py<PyString> {
        &self.interned
    }

    /// Reads an argument as a value of this parameter.
    ///
    /// # Errors
    /// `ValueError` if the argument has no equivalent of the parameter's type.
    pub(crate) fn read<'py>(&self, py: Python<'py>, payload: Payload) -> PyResult<Bound<'py, PyAny>> {
        match self.conversion {
            Some(conversion) if conversion.applies_to(payload.ty()) => conversion.apply(py, payload),
            _ => to_python(py, payload),
        }
    }
}

impl Conversion {
    /// Returns whether values of this type differ from the target type and may have an equivalent in it.
    const fn applies_to(self, ty: ValueType) -> bool {
        match self {
            Self::Float => matches!(ty, ValueType::Integer),
            Self::Integer => matches!(ty, ValueType::Float),
            Self::Array => matches!(ty, ValueType::List | ValueType::Tensor | ValueType::Embedding),
        }
    }

    /// Converts an argument.
    ///
    /// # Errors
    /// `ValueError` if the value has no equivalent of the target type.
    fn apply(self, py: Python<'_>, payload: Payload) -> PyResult<Bound<'_, PyAny>> {
        let value = to_python(py, payload)?;
        match self {
            Self::Float => value.call_method0(intern!(py, "__float__")).map_err(|_| {
                PyValueError::new_err(
                    "it is an integer that is too large for a float; send one below 1.8e308",
                )
            }),
            Self::Integer => read::to_integer(&value)?
                .ok_or_else(|| PyValueError::new_err(format!("it is {value}, expected an integer"))),
            Self::Array if value.is_instance_of::<PyList>() => array::from_lists(&value),
            Self::Array => {
                let array = value.cast::<PyDict>().map_or(Ok(None), array::from_map)?;
                match array {
                    Some(array) => Ok(array),
                    None if array::is_array(&value)? => Ok(value),
                    None => Err(PyValueError::new_err(format!(
                        "it is {}, which cannot be converted to an array; send lists of numbers of equal length, or an array",
                        read::describe_type(&value)
                    ))),
                }
            }
        }
    }
}
