//! Streaming calls: pulls generators, async generators and other iterators into the sink.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use pyo3::{
    exceptions::{PyRuntimeError, PyTypeError},
    intern,
    prelude::*,
    types::{PyDict, PyFloat, PyInt, PyIterator, PyList, PyString},
};
use snakepit_registry::{Chunk, ToolError};

use super::{Answer, CallObjects, ChunkSender, Executor, Failure};
use crate::{
    completions::{Completions, Wait},
    contract::ResultRule,
    fork,
    io::Io,
    plan::Plan,
    runtime::RuntimeHandle,
    sink::{Put, Sink},
    state::CallState,
    value::{self, Purpose},
};

impl Executor {
    /// Sends the result of a streaming call, chunk by chunk.
    pub(super) fn stream<'py>(
        &self,
        py: Python<'py>,
        tool: &Arc<str>,
        result: Bound<'py, PyAny>,
        state: &Arc<CallState>,
        answer: &mut Answer<'_>,
        objects: &mut CallObjects<'py>,
    ) -> Result<(), Failure> {
        // A coroutine may return a generator.
        let result = if is_stream(&result)? { result } else { self.resolve(result, Some(state))? };
        let cancelled = || Failure::Reported(ToolError::cancelled(tool.to_string()));
        if !is_stream(&result)? {
            // The value is converted before the stream opens, so a value without a JSON form fails the call and not the
            // stream.
            let chunk = ChunkSink::single(py, &self.plan, tool, &result)?;
            let sink = answer.open_stream().ok_or_else(cancelled)?;
            sink.put(chunk);
            return Ok(());
        }
        objects.iterator = Some(result.clone());
        let sink = answer.open_stream().ok_or_else(cancelled)?;
        let mut chunks = ChunkWriter::new(py, &self.plan, tool, sink);
        if result.get_type().hasattr(intern!(py, "__anext__"))? {
            // The IO must send chunks while the event loop waits for the next ones.
            if let Some(io) = self.io {
                io.hand_over();
            }
            let sink = Bound::new(py, ChunkSink { chunks, io: None })?;
            state.set_async(true);
            self.flags.has_used_loop.store(true, Relaxed);
            let pulling = self.plan.drain_async.bind(py).call1((&result, sink))?;
            self.plan.run_async.bind(py).call1((pulling,))?;
            return Ok(());
        }
        let mut sender = self.io.map(ChunkSender::new);
        for item in result.cast::<PyIterator>().map_err(PyErr::from)?.clone() {
            let put = match &mut sender {
                Some(sender) => chunks.put_and_send(&item?, sender)?,
                None => chunks.put(&item?)?,
            };
            match put {
                Put::Queued => {}
                Put::Full if chunks.wait_for_space(py, sender.as_mut()) => {}
                Put::Full => return Err(cancelled()),
                // The tool marked the chunk as final, or the reader has closed the stream. In the second case, the state
                // of the call is "cancelled".
                Put::Closed => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Returns whether a result is a stream of values.
pub(super) fn is_stream(result: &Bound<'_, PyAny>) -> PyResult<bool> {
    let (py, ty) = (result.py(), result.get_type());
    Ok(!is_plain(result) && (ty.hasattr(intern!(py, "__next__"))? || ty.hasattr(intern!(py, "__anext__"))?))
}

/// Returns whether a result is of a common type that is neither awaitable nor an iterator.
pub(super) fn is_plain(result: &Bound<'_, PyAny>) -> bool {
    result.is_none()
        || result.is_instance_of::<PyString>()
        || result.is_instance_of::<PyInt>()
        || result.is_instance_of::<PyFloat>()
        || result.is_instance_of::<PyDict>()
        || result.is_instance_of::<PyList>()
}

/// Returns whether an item is a chunk object of the adapter, as in the original Snakepit: it has `data` and `is_final`.
fn is_own_chunk(item: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = item.py();
    Ok(!is_plain(item) && item.hasattr(intern!(py, "is_final"))? && item.hasattr(intern!(py, "data"))?)
}

/// A yielded value, converted for the wire.
struct Item {
    chunk: Chunk,
    /// Whether the tool marked it as the last item.
    is_final: bool,
}

impl Item {
    fn read(
        item: &Bound<'_, PyAny>,
        chunk_type: &Bound<'_, PyAny>,
        rule: Option<&ResultRule>,
        description: fmt::Arguments<'_>,
    ) -> PyResult<Self> {
        let py = item.py();
        let to_chunk = |data: Bound<'_, PyAny>| {
            let data = match rule {
                Some(rule) => rule.apply(data, description)?,
                None => data,
            };
            value::to_chunk(&data, Purpose::Result, description)
        };
        if !item.is_instance(chunk_type)? && !is_own_chunk(item)? {
            return Ok(Self { chunk: to_chunk(item.clone())?, is_final: false });
        }
        let chunk = to_chunk(item.getattr(intern!(py, "data"))?)?;
        let mut metadata = BTreeMap::new();
        let entries = item.getattr_opt(intern!(py, "metadata"))?;
        if let Some(Ok(entries)) = entries.as_ref().map(|entries| entries.cast::<PyDict>()) {
            for (key, entry) in entries {
                let name = key.str()?.to_string();
                let text = text_of(&entry, description)?;
                if metadata.insert(name.clone(), text).is_some() {
                    return Err(PyTypeError::new_err(format!(
                        "the metadata of {description} has two keys that are both `{name}`; make them different strings"
                    )));
                }
            }
        }
        let is_final = item.getattr(intern!(py, "is_final"))?.is_truthy()?;
        Ok(Self { chunk: Chunk { metadata, ..chunk }, is_final })
    }
}

/// Converts a metadata value to text. Strings remain unchanged, and other values become JSON.
fn text_of(value: &Bound<'_, PyAny>, description: fmt::Arguments<'_>) -> PyResult<String> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(text.to_cow()?.into_owned());
    }
    let json = value::python_to_json(value, Purpose::Result, format_args!("the metadata of {description}"))?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// Converts the items of a stream and puts them into the sink.
#[derive(Debug)]
struct ChunkWriter {
    sink: Sink,
    tool: Arc<str>,
    /// The `StreamChunk` class.
    chunk_type: Py<PyAny>,
    /// The rule for items. `None` if the tool may yield any value.
    rule: Option<ResultRule>,
    /// The number of items so far, for error messages.
    count: u64,
}

impl ChunkWriter {
    fn new(py: Python<'_>, plan: &Plan, tool: &Arc<str>, sink: Sink) -> Self {
        let contract = plan.tools.get(&**tool).map(|tool| &tool.contract);
        Self {
            sink,
            tool: Arc::clone(tool),
            chunk_type: plan.chunk.clone_ref(py),
            rule: contract.and_then(|contract| contract.item.as_ref()).map(|rule| rule.clone_ref(py)),
            count: 0,
        }
    }

    fn put(&mut self, item: &Bound<'_, PyAny>) -> PyResult<Put> {
        let Item { chunk, is_final } = self.read(item)?;
        let put = self.sink.put(chunk);
        Ok(if is_final { Put::Closed } else { put })
    }

    /// Like [`put`](Self::put), and lets `sender` send the chunk.
    fn put_and_send(&mut self, item: &Bound<'_, PyAny>, sender: &mut ChunkSender) -> PyResult<Put> {
        let Item { chunk, is_final } = self.read(item)?;
        let size = chunk.size();
        let (put, reader) = self.sink.put_without_wake(chunk);
        sender.chunk_queued(size, reader);
        Ok(if is_final { Put::Closed } else { put })
    }

    fn wait_for_space(&self, py: Python<'_>, sender: Option<&mut ChunkSender>) -> bool {
        match sender {
            Some(sender) => sender.wait_for_space(py, &self.sink),
            None => py.detach(|| self.sink.wait_for_space()),
        }
    }

    fn read(&mut self, item: &Bound<'_, PyAny>) -> PyResult<Item> {
        fork::exit_if_fork();
        self.count += 1;
        let description = format_args!("chunk {} of tool `{}`", self.count, self.tool);
        Item::read(item, self.chunk_type.bind(item.py()), self.rule.as_ref(), description)
    }
}

/// The sink for Python code that drains an async generator.
#[pyclass(module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct ChunkSink {
    chunks: ChunkWriter,
    /// The IO that finishes the waits of [`ready`](Self::ready). `None` in a worker that runs one call at a time.
    io: Option<Io>,
}

impl ChunkSink {
    pub(super) fn new(py: Python<'_>, plan: &Plan, tool: &Arc<str>, sink: Sink, io: Option<Io>) -> Self {
        Self { chunks: ChunkWriter::new(py, plan, tool, sink), io }
    }

    /// Converts a value that is the only item of a stream.
    pub(super) fn single(
        py: Python<'_>,
        plan: &Plan,
        tool: &str,
        result: &Bound<'_, PyAny>,
    ) -> PyResult<Chunk> {
        let rule = plan.tools.get(tool).and_then(|tool| tool.contract.result.as_ref());
        let description = format_args!("the result of tool `{tool}`");
        Ok(Item::read(result, plan.chunk.bind(py), rule, description)?.chunk)
    }
}

#[pymethods]
impl ChunkSink {
    /// Puts an item into the queue. Returns `True` to continue, `False` if the queue is full and the caller must wait,
    /// and `None` if the stream has ended.
    fn put(&mut self, item: &Bound<'_, PyAny>) -> PyResult<Option<bool>> {
        Ok(match self.chunks.put(item)? {
            Put::Queued => Some(true),
            Put::Full => Some(false),
            Put::Closed => None,
        })
    }

    /// Finishes the wait of this key when there is space or the stream has ended.
    fn ready(&self, completions: &Completions, key: u64) -> PyResult<Wait> {
        let io = self.io.ok_or_else(|| PyRuntimeError::new_err("this sink has no event loop"))?;
        let sink = self.chunks.sink.clone();
        Wait::start(RuntimeHandle::Worker(io), completions, key, async move {
            sink.space().await;
        })
    }

    /// Returns a handle with which another thread can wait for space, so that the event loop is not blocked.
    fn space(&self) -> ChunkSpace {
        ChunkSpace { sink: self.chunks.sink.clone() }
    }
}

/// A handle for waiting until a full sink has space.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct ChunkSpace {
    sink: Sink,
}

#[pymethods]
impl ChunkSpace {
    /// Blocks until there is space. Returns `False` if the stream has ended.
    fn wait(&self, py: Python<'_>) -> bool {
        py.detach(|| self.sink.wait_for_space())
    }
}
