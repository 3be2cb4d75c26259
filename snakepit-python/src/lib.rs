//! `snakepit_bridge._native`: the native runtime of the Python package.
//!
//! ```text
//!   IO (tokio, current-thread)                       Python's main thread
//!   serve -> service -> tools ──queue──────────────> executor -> the adapter's tool
//!                         ^ ────sink (chunks)─────── stream        |
//!   host  <───────────────────────────── variables, context <──────┘ calls back
//!   other threads: interrupt (cancels calls), control (ends the process with its host)
//! ```
//!
//! Python's main thread drives the IO between calls. A second thread drives it while a longer call runs, as
//! [`io`](crate::io) describes. Only the executor, and threads that tools start, hold the GIL. So health checks,
//! cancellation and the lifeline work regardless of the running tool. This crate does not depend on the pool or the
//! server.
#![warn(missing_docs)]

mod background;
mod backpressure;
mod call;
mod call_output;
mod caller;
mod client;
mod completions;
mod context;
mod contract;
mod control;
mod dispositions;
mod errors;
mod executor;
mod exit;
mod fork;
mod frames;
mod host;
mod host_stream;
mod http2;
mod interrupt;
mod io;
mod listing;
mod local;
mod multiplexed;
mod nested_call;
mod open_streams;
mod output_frames;
mod pending;
mod plan;
mod progress;
mod reader;
mod reports;
mod retire;
mod retries;
mod rpc;
mod runtime;
mod serve;
mod service;
mod sink;
mod state;
mod status;
mod stub_request;
mod subprocess_output;
mod telemetry;
mod tools;
mod value;
mod variables;
mod worker;

use pyo3::prelude::*;

/// The private native module of `snakepit_bridge`.
#[pymodule]
mod _native {
    use bytes::Bytes;
    use pyo3::{
        PyTypeInfo,
        exceptions::PyValueError,
        prelude::*,
        types::{PyBytes, PyType},
    };
    use snakepit_session::Payload;

    #[pymodule_export]
    use crate::{
        call::Call,
        client::{HostCall, HostClient, Operations},
        completions::{Completions, Wait},
        context::PendingHostCall,
        executor::{ChunkSink, ChunkSpace, ConcurrentCall, ConcurrentCalls, ThreadCall},
        host_stream::HostToolStream,
        local::{ConcurrentLocalRunner, LocalControl, LocalRunner, LocalSession, LocalVariables},
        pending::PendingRequest,
        telemetry::{dropped_events, emit_event},
        variables::{Variable, VariableUpdate, VariableVersion, VariableWatch, Variables},
        worker::Worker,
    };
    use crate::{
        errors::CallCancelled,
        value::{self, Purpose},
    };

    /// The version of this package.
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "the Python name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// The revision of the protocol. The Python files of the package compare it with theirs.
    #[pymodule_export]
    const PROTOCOL: u32 = snakepit_proto::launch::PROTOCOL;

    /// Returns the class `CallCancelled`, even if a tool has removed its module.
    #[pyfunction]
    fn call_cancelled(py: Python<'_>) -> Bound<'_, PyType> {
        CallCancelled::type_object(py)
    }

    /// Converts the value of a program to its data and content type. Raises `InvalidTypeError` with the path of a nested value
    /// that has no wire form.
    #[pyfunction]
    fn to_program<'py>(
        py: Python<'py>,
        value: &Bound<'py, PyAny>,
        description: &str,
    ) -> PyResult<(Bound<'py, PyBytes>, &'static str)> {
        let chunk = value::to_chunk(value, Purpose::Variable, format_args!("{description}"))?;
        let (data, content_type) = value::program_data(&chunk);
        Ok((PyBytes::new(py, &data), content_type))
    }

    /// Converts the data of a program to its value.
    #[pyfunction]
    fn from_program<'py>(
        py: Python<'py>,
        data: &Bound<'py, PyBytes>,
        content_type: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        value::read_program(py, data, content_type)
    }

    /// The type name, the JSON and the raw buffer of a value.
    type WireForm<'py> = (&'static str, Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

    /// Converts an argument or a result to its wire form. `bytes` and arrays have a raw buffer.
    #[pyfunction]
    #[pyo3(signature = (value, description, *, is_argument=false))]
    fn encode<'py>(
        py: Python<'py>,
        value: &Bound<'py, PyAny>,
        description: &str,
        is_argument: bool,
    ) -> PyResult<WireForm<'py>> {
        let purpose = if is_argument { Purpose::Argument } else { Purpose::Result };
        let (ty, json, binary) =
            value::from_python(value, purpose, format_args!("{description}"))?.into_parts();
        Ok((ty.as_str(), PyBytes::new(py, &json), binary.map(|buffer| PyBytes::new(py, &buffer))))
    }

    /// Converts a wire form to a value.
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
            Some(buffer) => {
                let buffer = Bytes::copy_from_slice(buffer);
                let checked = Payload::check_buffers(&json, Some(&buffer));
                checked.map_err(|error| PyValueError::new_err(error.to_string()))?;
                Payload::from_buffer(ty, json, buffer)
            }
            None => Payload::from_json(ty, json),
        };
        value::to_python(py, payload)
    }
}
