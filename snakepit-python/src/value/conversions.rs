//! [`Conversions`]: conversion of arguments to the types of their parameters: 5 for a float, 5.0 for an int, lists for
//! an array.

use pyo3::{
    exceptions::PyValueError,
    intern,
    prelude::*,
    types::{PyDict, PyList},
};
use snakepit_registry::ToolSpec;
use snakepit_session::{Payload, ValueType};

use super::{array, read, to_python};

/// The parameters of one tool whose arguments may be converted.
#[derive(Debug, Default)]
pub(crate) struct Conversions {
    floats: Vec<String>,
    integers: Vec<String>,
    arrays: Vec<String>,
}

/// The target of a conversion.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Conversion {
    Float,
    Integer,
    Array,
}

impl Conversions {
    pub(crate) fn of(spec: &ToolSpec) -> Self {
        let of = |ty: &str| {
            let parameters = spec.parameters.iter().filter(|parameter| parameter.type_name == ty);
            parameters.map(|parameter| parameter.name.clone()).collect()
        };
        Self { floats: of("float"), integers: of("integer"), arrays: of("tensor") }
    }

    /// Returns the conversion for an argument of type `ty`, or `None` if it is passed as it is.
    pub(crate) fn find(&self, name: &str, ty: ValueType) -> Option<Conversion> {
        let (parameters, conversion) = match ty {
            ValueType::Integer => (&self.floats, Conversion::Float),
            ValueType::Float => (&self.integers, Conversion::Integer),
            ValueType::List | ValueType::Tensor | ValueType::Embedding => (&self.arrays, Conversion::Array),
            _ => return None,
        };
        parameters.iter().any(|parameter| parameter == name).then_some(conversion)
    }
}

impl Conversion {
    /// Converts an argument.
    ///
    /// # Errors
    /// `ValueError` if the value has no equivalent of the target type.
    pub(crate) fn apply(self, py: Python<'_>, payload: Payload) -> PyResult<Bound<'_, PyAny>> {
        let value = to_python(py, payload)?;
        match self {
            Self::Float => value.call_method0(intern!(py, "__float__")).map_err(|_| {
                PyValueError::new_err("it is an integer too large for a float; send one below 1.8e308")
            }),
            Self::Integer => read::to_integer(&value)?
                .ok_or_else(|| PyValueError::new_err(format!("it is {value}, expected an integer"))),
            Self::Array if value.is_instance_of::<PyList>() => array::from_lists(&value),
            Self::Array => {
                let described = value.cast::<PyDict>().map_or(Ok(None), array::from_described)?;
                match described {
                    Some(array) => Ok(array),
                    None if array::is_array(&value)? => Ok(value),
                    None => Err(PyValueError::new_err(format!(
                        "it is {}, which makes no array; send lists of numbers that are equally long, or an array",
                        read::describe_type(&value)
                    ))),
                }
            }
        }
    }
}
