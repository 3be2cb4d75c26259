//! [`HostToolStream`]: the results of a host tool or another tool that streams.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use pyo3::{prelude::*, types::PyDict};
use snakepit_proto::{pb, status::failure_of};
use tonic::Status;

use crate::{
    call::Call,
    caller::Caller,
    completions::{Completions, Wait},
    context::{prefix_with_host, without_default_type},
    errors::HostError,
    host::Items,
    nested_call,
    reader::Reader,
    value,
};

/// The results of a tool that streams. Ends after the last result, when it is closed, when its call ends, or with an error. The
/// end cancels the tool.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct HostToolStream {
    reader: Reader<Item>,
    caller: Caller,
    /// The tool, for messages: "host tool `prices`".
    tool: Arc<str>,
}

impl HostToolStream {
    /// Prepares a call to a host tool or a Python tool. The first read makes the call.
    ///
    /// # Errors
    /// The exception for an argument that cannot be sent, or without a host.
    pub(crate) fn of_tool(call: &Call, name: &str, arguments: &Bound<'_, PyDict>) -> PyResult<Self> {
        let request = nested_call::request(call, name, arguments)?;
        let (host, caller) = (call.host()?.clone(), call.caller.clone());
        let opening = async move { host.open_tool_stream(&caller, request).await };
        let to_error = |status| nested_call::error_of(status);
        let results = Results { to_error: Box::new(to_error), state: State::Opening(Box::pin(opening)) };
        let reader = Reader::new("stream", call.runtime()?, call.caller.clone(), results);
        Ok(Self { reader, caller: call.caller.clone(), tool: format!("tool `{name}`").into() })
    }

    /// Prepares a call to a host tool. The first read makes it.
    ///
    /// # Errors
    /// The exception for an argument that cannot be sent, or without a host.
    pub(crate) fn new(call: &Call, name: &str, arguments: &Bound<'_, PyDict>) -> PyResult<Self> {
        let request = call.host_tool_request(name, arguments)?;
        let (host, caller) = (call.host()?.clone(), call.caller.clone());
        let opening =
            async move { host.open_host_tool_stream(&caller, request).await.map_err(prefix_with_host) };
        let tool = name.to_owned();
        let to_error = move |status| stream_error(&tool, status);
        let results = Results { to_error: Box::new(to_error), state: State::Opening(Box::pin(opening)) };
        let reader = Reader::new("stream", call.runtime()?, call.caller.clone(), results);
        Ok(Self { reader, caller: call.caller.clone(), tool: format!("host tool `{name}`").into() })
    }

    /// Converts a result. Python receives a tuple of one, because a result may be `None`.
    fn to_python<'py>(
        &self,
        py: Python<'py>,
        result: Option<Item>,
    ) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
        let Some((json, buffers)) = result else { return Ok(None) };
        let value = value::item_to_python(py, json, buffers);
        let value = value::name_read_error(value, py, format_args!("a result of {}", self.tool))?;
        Ok(Some((value,)))
    }
}

#[pymethods]
impl HostToolStream {
    /// Releases the GIL and waits for the next result. Returns `None` at the end.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
        let _block = self.caller.block_loop();
        let result = self.reader.next(py)?;
        self.to_python(py, result)
    }

    /// Finishes the wait of this key when `take` can return.
    fn ready(&self, completions: &Completions, key: u64) -> PyResult<Wait> {
        self.reader.ready(completions, key)
    }

    /// Takes the result that has arrived. Returns `None` at the end.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
        let result = self.reader.take()?;
        self.to_python(py, result)
    }

    /// Cancels the call and ends every wait for its next result.
    fn close(&self) {
        self.reader.close();
    }
}

/// The JSON of a result, and its buffers.
type Item = (Bytes, Option<Bytes>);

struct Results {
    /// Converts the status that ended the stream.
    to_error: Box<dyn Fn(Status) -> HostError + Send>,
    state: State,
}

type Opening = Pin<Box<dyn Future<Output = Result<Items<pb::ToolChunk>, HostError>> + Send>>;

enum State {
    Opening(Opening),
    Open(Items<pb::ToolChunk>),
    Ended,
}

impl Stream for Results {
    type Item = Result<Item, HostError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let State::Opening(opening) = &mut this.state {
            match ready!(opening.as_mut().poll(cx)) {
                Ok(chunks) => this.state = State::Open(chunks),
                Err(error) => {
                    this.state = State::Ended;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        let State::Open(chunks) = &mut this.state else { return Poll::Ready(None) };
        let end = match ready!(chunks.as_mut().poll_next(cx)) {
            Some(Ok(pb::ToolChunk { is_final: false, data, binary, .. })) => {
                return Poll::Ready(Some(Ok((data, binary))));
            }
            Some(Ok(_)) => None,
            Some(Err(status)) => Some(Err((this.to_error)(status))),
            None => Some(Err(HostError::ConnectionLost("the stream has no end".to_owned()))),
        };
        this.state = State::Ended;
        Poll::Ready(end)
    }
}

/// Converts the status that ended a stream.
fn stream_error(tool: &str, status: Status) -> HostError {
    let Some(failure) = failure_of(&status) else { return prefix_with_host(HostError::from(status)) };
    let text = format!("{}: {}", failure.r#type, failure.message);
    let message = without_default_type(&text).to_owned();
    HostError::ToolFailed { tool: tool.to_owned(), message, failure: Some(Box::new(failure)) }
}
