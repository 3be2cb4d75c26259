//! `snakepit_bridge._native`: the native runtime of the Python package.
//!
//! ```text
//!   IO (tokio, current-thread)                       Python's main thread
//!   serve -> service -> tools ──queue──────────────> executor -> the adapter's tool
//!                         ^ ────sink (chunks)─────── stream        |
//!   host  <───────────────────────────── variables, context <──────┘ calls back
//!   other threads: interrupt (ends cancelled calls), control (ends the process with its host)
//! ```
//!
//! Between brief calls Python's main thread drives the IO itself; while it runs a longer one, another thread does.
//! Only the executor, and threads that tools start themselves, ever hold the GIL. So health checks, cancellation and the
//! lifeline work whatever a tool does. This crate knows nothing of pools and of the server.
#![warn(missing_docs)]

mod background;
mod call_output;
mod caller;
mod client;
mod completions;
mod context;
mod control;
mod dispositions;
mod driver;
mod executor;
mod fork;
mod host;
mod interrupt;
mod io;
mod local;
mod multiplexed;
mod outflow;
mod plan;
mod progress;
mod retire;
mod serve;
mod service;
mod sink;
mod state;
mod tools;
mod value;
mod variables;
mod windows;
mod worker;

use pyo3::prelude::*;

/// The private native module of `snakepit_bridge`.
#[pymodule]
mod _native {
    use bytes::Bytes;
    use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};
    use snakepit_session::Payload;

    use crate::value;
    #[pymodule_export]
    use crate::{
        client::{HostCall, HostClient},
        completions::{Completions, Wait},
        context::{Call, PendingHostCall},
        executor::{ChunkSink, ChunkSpace},
        local::{LocalRunner, LocalSession, LocalVariables},
        variables::{Variable, VariableUpdate, VariableVersion, VariableWatch, Variables},
        worker::Worker,
    };

    /// The version of this package.
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the Python name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Writes a value as JSON, or raises `TypeError` naming what in `what` has no JSON form.
    #[pyfunction]
    fn to_json<'py>(py: Python<'py>, value: &Bound<'py, PyAny>, what: &str) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &value::python_to_json(value, format_args!("{what}"))?))
    }

    /// Parses JSON.
    #[pyfunction]
    fn from_json<'py>(py: Python<'py>, json: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        value::json_to_python(py, json)
    }

    /// Type name, JSON, raw buffer.
    type WireForm<'py> = (&'static str, Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

    /// Turns a value into its wire form: type name, JSON, and the raw buffer of bytes and arrays.
    #[pyfunction]
    fn encode<'py>(py: Python<'py>, value: &Bound<'py, PyAny>, what: &str) -> PyResult<WireForm<'py>> {
        let (ty, json, binary) = value::from_python(value, format_args!("{what}"))?.into_parts();
        Ok((ty.as_str(), PyBytes::new(py, &json), binary.map(|buffer| PyBytes::new(py, &buffer))))
    }

    /// Turns a wire form back into a value.
    #[pyfunction]
    #[pyo3(signature = (type_name, json, binary=None))]
    fn decode<'py>(
        py: Python<'py>,
        type_name: &str,
        json: &[u8],
        binary: Option<&[u8]>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ty = type_name.parse().map_err(|e| PyValueError::new_err(format!("{e}")))?;
        let json = Bytes::copy_from_slice(json);
        let payload = match binary {
            Some(buffer) => Payload::from_buffer(ty, json, Bytes::copy_from_slice(buffer)),
            None => Payload::from_json(ty, json),
        };
        value::to_python(py, payload)
    }
}
