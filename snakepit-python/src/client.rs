//! A client of a host, for programs that are no workers: calls as frames on one stream, driven by a thread of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pyo3::{
    exceptions::{PyRuntimeError, PyStopIteration, PyValueError},
    prelude::*,
    types::PyDict,
};
use snakepit_proto::{
    mux::{Call, CallEnd, CallEvent, MAX_SHARED_BYTES, Multiplexer, STREAM_CREDIT, call_size, chunk_cost},
    pb::{self, bridge_service_client::BridgeServiceClient},
};
use snakepit_worker::wire::{value_from_wire, value_to_wire};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::{
    background::Background,
    caller::Caller,
    context,
    driver::Driver,
    host::{self, Host, HostError, HostUnavailableError, SnakepitError, ToolFailed},
    readable::Readable,
    value, windows,
};

/// How often a host that says nothing is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// A connection to a host.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct HostClient {
    address: String,
    connect_timeout: Duration,
    /// Its channel connects anew by itself.
    host: Host,
    /// The stream that calls share; `None` once the client is closed.
    stream: Mutex<Option<Multiplexer>>,
    /// Held while a broken stream is replaced, so that one call does it and the others wait.
    reopening: tokio::sync::Mutex<()>,
    /// Cancelled once the client is closed.
    closed: CancellationToken,
}

/// Opens a stream for calls. The task that brings its answers belongs to the stream and not to the client: it ends when the
/// last [`Multiplexer`] is dropped and the last call has ended, so calls outlive the client that started them.
async fn open_stream(client: BridgeServiceClient<Channel>, driver: Driver) -> Result<Multiplexer, String> {
    let opened = Multiplexer::open(client).await;
    let (multiplexer, answers) = opened.map_err(|status| status.message().to_owned())?;
    driver.runtime().spawn(answers);
    Ok(multiplexer)
}

impl HostClient {
    fn stream(&self) -> MutexGuard<'_, Option<Multiplexer>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream, if it is not known to be broken.
    fn usable(&self) -> PyResult<Option<Multiplexer>> {
        let multiplexer = self.stream().clone().ok_or(HostError::Closed)?;
        Ok((!multiplexer.is_broken()).then_some(multiplexer))
    }

    /// The stream, opened anew if it broke: the host may have been restarted.
    fn multiplexer(&self, py: Python<'_>) -> PyResult<Multiplexer> {
        let driver = self.host.driver();
        driver.refuse_fork()?;
        if let Some(usable) = self.usable()? {
            return Ok(usable);
        }
        driver.wait(py, async {
            let _alone = self.reopening.lock().await;
            if let Some(usable) = self.usable()? {
                return Ok(usable);
            }
            let opened = open_stream(self.host.client(), driver);
            let fresh =
                within(self.connect_timeout, opened).await.map_err(|e| unreachable(&self.address, &e))?;
            // It may have been closed meanwhile.
            if let Some(stream) = &mut *self.stream() {
                *stream = fresh;
            }
            self.usable()?.ok_or_else(|| unreachable(&self.address, "the connection broke again"))
        })?
    }
}

impl HostClient {
    /// A stream for one call whose arguments would keep those of others waiting. It closes once the call has ended.
    fn own_stream(&self, py: Python<'_>) -> PyResult<Multiplexer> {
        let driver = self.host.driver();
        if self.stream().is_none() {
            return Err(HostError::Closed.into());
        }
        let opened = within(self.connect_timeout, open_stream(self.host.client(), driver));
        driver.wait(py, opened)?.map_err(|problem| unreachable(&self.address, &problem))
    }
}

async fn within<T>(bound: Duration, opened: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = || Err(format!("it did not answer within {} s", bound.as_secs_f64()));
    tokio::time::timeout(bound, opened).await.unwrap_or_else(|_| late())
}

fn unreachable(address: &str, problem: &str) -> PyErr {
    HostUnavailableError::new_err(format!(
        "cannot reach a host at {address}: {problem}; start one with `snakepit serve`"
    ))
}

#[pymethods]
impl HostClient {
    /// Connects to `host:port`, `http://host:port` or `unix:/path`.
    #[new]
    fn new(py: Python<'_>, address: &str, timeout: f64) -> PyResult<Self> {
        let bound = seconds(timeout)?;
        let target = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/').to_owned();
        let driver = Driver::Background(Background::get()?);
        let settings = |endpoint| {
            // Each later attempt to connect is bounded too.
            windows::of_client(endpoint)
                .connect_timeout(bound)
                .http2_keep_alive_interval(KEEPALIVE.0)
                .keep_alive_timeout(KEEPALIVE.1)
        };
        let opened = async {
            let host = Host::new(host::connect(&target, settings).await?, driver);
            let stream = open_stream(host.client(), driver).await?;
            Ok((host, stream))
        };
        let (host, stream) =
            driver.wait(py, within(bound, opened))?.map_err(|problem| unreachable(address, &problem))?;
        Ok(Self {
            address: address.to_owned(),
            connect_timeout: bound,
            host,
            stream: Mutex::new(Some(stream)),
            reopening: tokio::sync::Mutex::default(),
            closed: CancellationToken::new(),
        })
    }

    /// Makes sure that the session exists.
    fn open_session(&self, py: Python<'_>, session_id: String) -> PyResult<()> {
        let request = pb::InitializeSessionRequest { session_id, ..Default::default() };
        let outside = self.outside(String::new(), None)?;
        let opened = outside
            .ask(py, request, |mut client, request| async move { client.initialize_session(request).await });
        opened.map(drop)
    }

    /// What a call would know, for who looks at its session from outside. Each request may take so long, a watch as well.
    #[pyo3(signature = (session_id, timeout))]
    fn outside(&self, session_id: String, timeout: Option<f64>) -> PyResult<context::Call> {
        let timeout = timeout.map(seconds).transpose()?;
        Ok(context::Call {
            caller: Caller::Program { closed: self.closed.clone(), timeout },
            host: Some(self.host.clone()),
            session_id,
            // Who it is, it says itself, if it wants to.
            worker_id: "".into(),
            metadata: BTreeMap::new(),
        })
    }

    /// Starts a call.
    #[pyo3(signature = (tool, arguments, *, session_id, timeout, idempotent, stream))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
    fn start(
        &self,
        py: Python<'_>,
        tool: String,
        arguments: &Bound<'_, PyDict>,
        session_id: String,
        timeout: Option<f64>,
        idempotent: bool,
        stream: bool,
    ) -> PyResult<HostCall> {
        let mut values = Vec::with_capacity(arguments.len());
        for (name, argument) in arguments {
            let name: String = name.extract()?;
            let payload = value::from_python(&argument, format_args!("argument `{name}` of tool `{tool}`"))?;
            values.push(pb::CallArgument { name, value: Some(value_to_wire(payload)) });
        }
        let timeout_us = match timeout {
            None => 0,
            Some(timeout) => u64::try_from(seconds(timeout)?.as_micros()).unwrap_or(u64::MAX).max(1),
        };
        let start = pb::CallStart {
            tool_name: tool,
            session_id,
            arguments: values,
            metadata: BTreeMap::new(),
            stream,
            timeout_us,
            idempotent,
            credit: if stream { STREAM_CREDIT } else { 0 },
            ..pb::CallStart::default()
        };
        let call = if call_size(&start) > MAX_SHARED_BYTES {
            self.own_stream(py)?.start(start, 0)
        } else {
            self.multiplexer(py)?.start(start, 0)
        };
        let state = CallState { call: Some(call), ..CallState::default() };
        Ok(HostCall { driver: self.host.driver(), state: Arc::new(Mutex::new(state)) })
    }

    /// Takes no more calls; those that run go on. Ends watches.
    fn close(&self) {
        drop(self.stream().take());
        self.closed.cancel();
    }
}

fn seconds(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero()).ok_or_else(|| {
        PyValueError::new_err(format!("timeout is {seconds}; give a number of seconds above 0"))
    })
}

/// One call on its way. Dropped before its end, it is cancelled.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct HostCall {
    driver: Driver,
    state: Arc<Mutex<CallState>>,
}

#[derive(Debug, Default)]
struct CallState {
    /// `None` once it has ended or was cancelled, and while somebody waits for it.
    call: Option<Call>,
    ready: VecDeque<pb::CallChunk>,
    /// The cost of chunks that were handed on since the last grant.
    owed: u64,
    end: Option<CallEnd>,
}

impl CallState {
    /// Waits until there is a chunk or the end.
    async fn advance(state: &Mutex<Self>) {
        let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
        std::future::poll_fn(|cx| {
            let mut state = lock();
            while state.ready.is_empty() && state.end.is_none() {
                let Some(call) = &mut state.call else { break };
                match std::task::ready!(call.poll_event(cx)) {
                    CallEvent::Opened(_) => {}
                    CallEvent::Chunks(chunks) => state.ready.extend(chunks),
                    CallEvent::End(end) => {
                        state.call = None;
                        state.end = Some(end);
                    }
                }
            }
            std::task::Poll::Ready(())
        })
        .await;
    }

    fn next_chunk(&mut self) -> Option<pb::CallChunk> {
        let chunk = self.ready.pop_front()?;
        self.owed += chunk_cost(&chunk);
        if self.owed >= STREAM_CREDIT / 2
            && let Some(call) = &self.call
        {
            call.grant(std::mem::take(&mut self.owed));
        }
        Some(chunk)
    }
}

#[pymethods]
impl HostCall {
    /// Waits for the value of a unary call.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.driver.wait(py, CallState::advance(&self.state))?;
        self.take_result(py)
    }

    /// Waits for the next chunk of a stream: its value, or `StopIteration`.
    fn chunk<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let is_there = {
            let state = self.lock();
            !state.ready.is_empty() || state.end.is_some()
        };
        if !is_there {
            self.driver.wait(py, CallState::advance(&self.state))?;
        }
        self.take_chunk(py)
    }

    /// Becomes readable once `take_result` or `take_chunk` has something to take.
    fn ready(&self) -> PyResult<Readable> {
        let state = Arc::clone(&self.state);
        self.driver.readable(async move { CallState::advance(&state).await })
    }

    /// The value of a unary call that has ended.
    fn take_result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let end = self.lock().end.take();
        match end {
            Some(end) => match read(end)? {
                Some(value) => value::to_python(
                    py,
                    value_from_wire(value).map_err(|error| SnakepitError::new_err(error.to_string()))?,
                ),
                None => Err(SnakepitError::new_err("the host ended the call without an answer")),
            },
            None => Err(PyRuntimeError::new_err("the call was cancelled, or its result was taken already")),
        }
    }

    /// The next chunk that is there, or `StopIteration` at the end.
    fn take_chunk<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (chunk, end) = {
            let mut state = self.lock();
            let chunk = state.next_chunk();
            let end = if chunk.is_none() { state.end.take() } else { None };
            (chunk, end)
        };
        match (chunk, end) {
            (Some(chunk), _) => value::json_to_python(py, &chunk.data),
            (None, Some(end)) => {
                read(end)?;
                Err(PyStopIteration::new_err(()))
            }
            (None, None) => Err(PyStopIteration::new_err(())),
        }
    }

    /// Gives the call up.
    fn cancel(&self) {
        let call = self.lock().call.take();
        drop(call);
    }
}

impl HostCall {
    fn lock(&self) -> std::sync::MutexGuard<'_, CallState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the end of a call means. `None`: a stream is complete.
fn read(end: CallEnd) -> PyResult<Option<pb::CallValue>> {
    let reply = match end {
        CallEnd::Reply(reply) => reply,
        CallEnd::Recalled => return Err(SnakepitError::new_err("the host gave the call back")),
        CallEnd::Broken(status) => {
            let problem = format!("the connection to the host broke: {}", status.message());
            return Err(HostUnavailableError::new_err(problem));
        }
        CallEnd::Unsent(status) => {
            let problem =
                format!("the connection to the host broke before the call was sent: {}", status.message());
            return Err(HostUnavailableError::new_err(problem));
        }
    };
    if let Some(failure) = reply.failure {
        let pb::ToolFailure { r#type, message, traceback, .. } = failure;
        return Err(ToolFailed::new_err((r#type, message, traceback)));
    }
    match reply.status {
        Some(status) => Err(HostError::Status(Status::from(status)).into()),
        None => Ok(reply.value),
    }
}
