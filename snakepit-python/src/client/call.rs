//! [`HostCall`]: one call of a client, and the methods with which Python waits for it.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use pyo3::{
    exceptions::{PyRuntimeError, PyStopIteration},
    prelude::*,
    types::{PyString, PyTuple},
};
use snakepit_proto::{
    mux::{Call, CallEnd, CallEvent, MAX_SHARED_BYTES, Multiplexer, STREAM_CREDIT, call_size, chunk_cost},
    pb,
};
use snakepit_wire::value_from_wire;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;

use super::{
    answer::{self, WaitMode},
    connection::Connection,
};
use crate::{
    completions::{Completions, Wait},
    errors::{self, HostError, SnakepitError},
    runtime::RuntimeHandle,
    value,
};

/// The time for which the client waits for the host's answer after the deadline. That answer contains more details than
/// the client's own error.
const GRACE: Duration = Duration::from_millis(200);
/// The maximum number of times that the client starts a call again because its connection broke.
const MAX_RESTARTS: u8 = 3;

/// A running call. Dropping it cancels the call.
#[pyclass(frozen, module = "snakepit_bridge._native")]
#[derive(Debug)]
pub(crate) struct HostCall {
    runtime: RuntimeHandle,
    tool: Py<PyString>,
    exceptions: Option<Py<PyTuple>>,
    is_streaming: bool,
    shared: Arc<RestartableCall>,
}

#[derive(Debug)]
struct RestartableCall {
    connection: Arc<Connection>,
    is_large: bool,
    /// The deadline. `None` leaves it to the host's default.
    deadline: Option<Instant>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The call, until there is a connection to send it on.
    unsent: Option<pb::CallStart>,
    /// Keeps a closing client waiting while the call has no stream yet.
    drain_token: Option<TaskTrackerToken>,
    /// The call on its stream. `None` once it has ended or was cancelled.
    live: Option<Call>,
    /// A copy of the call for as long as it may be sent again. That is the case if it is idempotent, or if the host
    /// reports that it did not begin it. Large calls that are not idempotent have no copy.
    copy: Option<pb::CallStart>,
    restarts: u8,
    /// Whether an earlier attempt of an idempotent call may have run.
    may_have_run: bool,
    /// The chunks that Python has not taken yet.
    chunks: VecDeque<pb::CallChunk>,
    /// The cost, in bytes, of the chunks that Python took since the last grant of credit.
    ungranted: u64,
    /// The reports that Python has not taken yet.
    reports: Vec<pb::CallReport>,
    /// Whether further reports are dropped.
    ignores_reports: bool,
    end: Option<Result<pb::CallReply, HostError>>,
}

enum Step {
    /// A chunk, a report or the end is available, or the call was cancelled.
    Ready,
    /// The call needs a connection.
    Connect,
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        while self.chunks.is_empty() && self.reports.is_empty() && self.end.is_none() {
            if self.unsent.is_some() {
                return Poll::Ready(Step::Connect);
            }
            let Some(call) = &mut self.live else { break };
            match ready!(call.poll_event(cx)) {
                CallEvent::Opened(_) => {}
                CallEvent::Reports(_) if self.ignores_reports => {}
                CallEvent::Reports(reports) => self.reports = reports,
                CallEvent::Chunks(chunks) => {
                    // Sending the call again would start the stream from the beginning.
                    self.copy = None;
                    self.chunks.extend(chunks);
                }
                CallEvent::End(end) => {
                    self.live = None;
                    self.handle_end(end);
                }
            }
        }
        Poll::Ready(Step::Ready)
    }

    fn handle_end(&mut self, end: CallEnd) {
        let may_restart = self.restarts < MAX_RESTARTS;
        self.restarts += 1;
        match end {
            CallEnd::Reply(reply) => self.end = Some(Ok(reply)),
            CallEnd::Unsent(start, _) if may_restart => self.unsent = Some(start),
            CallEnd::Broken(status) if may_restart && self.may_repeat(&status) => {
                self.may_have_run |= !errors::is_not_begun(&status);
                self.unsent = self.copy.clone();
            }
            CallEnd::Unsent(_, status) => {
                let problem = format!(
                    "each new connection broke before the call was sent, the last one by: {}",
                    status.message()
                );
                self.end = Some(Err(HostError::Unreachable(problem)));
            }
            CallEnd::Broken(status) => self.end = Some(Err(HostError::from_broken_stream(status))),
            CallEnd::Recalled => {
                self.end = Some(Err(HostError::ConnectionLost(
                    "it returned a call that was not recalled".to_owned(),
                )));
            }
        }
    }

    /// Returns whether the call may be sent again after its stream broke with this status.
    fn may_repeat(&self, status: &Status) -> bool {
        let Some(copy) = &self.copy else { return false };
        if copy.idempotent { !errors::is_message_rejected(status) } else { errors::is_not_begun(status) }
    }

    fn next_chunk(&mut self) -> Option<pb::CallChunk> {
        let chunk = self.chunks.pop_front()?;
        self.ungranted += chunk_cost(&chunk);
        if self.ungranted >= STREAM_CREDIT / 2
            && let Some(call) = &self.live
        {
            call.grant(std::mem::take(&mut self.ungranted));
        }
        Some(chunk)
    }
}

impl RestartableCall {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a chunk or the end. Cancel safe.
    async fn advance(&self) {
        loop {
            match poll_fn(|cx| self.state().poll(cx)).await {
                Step::Ready => return,
                Step::Connect => {
                    let stream = match self.is_large {
                        true => self.connection.own_stream().await,
                        false => self.connection.shared_stream().await,
                    };
                    self.send(stream);
                }
            }
        }
    }

    /// Sends the call, unless it was sent or cancelled before.
    fn send(&self, stream: Result<Multiplexer, HostError>) {
        let mut state = self.state();
        let Some(mut start) = state.unsent.take() else { return };
        // From here on, the stream keeps a closing client waiting.
        let _drain_token = state.drain_token.take();
        if let Some(deadline) = self.deadline {
            start.timeout_us = microseconds(deadline.saturating_duration_since(Instant::now()));
        }
        match stream {
            Ok(stream) => state.live = Some(stream.start(start, 0)),
            Err(error) => state.end = Some(Err(error)),
        }
    }

    /// The time at which the client stops waiting.
    fn wait_limit(&self) -> Option<Instant> {
        self.deadline.and_then(|deadline| deadline.checked_add(GRACE))
    }

    /// Ends the call, because the host did not answer in time.
    fn expire(&self) {
        let live = {
            let mut state = self.state();
            if state.end.is_none() {
                state.drain_token = None;
                let is_unsent = state.unsent.take().is_some();
                state.end = Some(Err(HostError::Unanswered { may_have_run: !is_unsent }));
            }
            state.live.take()
        };
        drop(live);
    }
}

/// The parameters of [`HostCall::start`].
#[derive(Debug)]
pub(super) struct NewCall {
    pub(super) tool: Py<PyString>,
    /// The classes of tools' exceptions that the call may raise. `None` stands for those of all imported modules.
    pub(super) exceptions: Option<Py<PyTuple>>,
    pub(super) start: pb::CallStart,
    pub(super) timeout: Option<Duration>,
}

impl HostCall {
    /// Starts a call. Without a connection, it is sent when Python waits for it.
    pub(super) fn start(connection: &Arc<Connection>, new: NewCall) -> PyResult<Self> {
        let NewCall { tool, exceptions, mut start, timeout } = new;
        let (runtime, is_streaming) = (connection.host.runtime(), start.stream);
        runtime.check_not_forked()?;
        start.timeout_us = timeout.map_or(0, microseconds);
        // A large call gets its own stream, because it would delay others.
        let is_large = call_size(&start) > MAX_SHARED_BYTES;
        let copy = (start.idempotent || !is_large).then(|| start.clone());
        let mut state = State { copy, ..State::default() };
        match connection.usable_stream()?.filter(|_| !is_large) {
            Some(stream) => state.live = Some(stream.start(start, 0)),
            None => {
                state.drain_token = Some(connection.drain_token());
                state.unsent = Some(start);
            }
        }
        let shared = RestartableCall {
            connection: Arc::clone(connection),
            is_large,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            state: Mutex::new(state),
        };
        Ok(Self { runtime, tool, exceptions, is_streaming, shared: Arc::new(shared) })
    }

    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        if self.runtime.wait_until(py, self.shared.wait_limit(), self.shared.advance())?.is_none() {
            self.shared.expire();
        }
        Ok(())
    }

    /// Converts the end of the call. Returns `None` at the end of a stream.
    fn convert_end(
        &self,
        py: Python<'_>,
        end: Result<pb::CallReply, HostError>,
        wait_mode: WaitMode,
    ) -> PyResult<Option<pb::CallValue>> {
        let may_have_run = self.shared.state().may_have_run;
        let converted = self.convert_last_attempt(py, end, wait_mode);
        if may_have_run {
            converted.map_err(|error| errors::with_may_have_run(error, true))
        } else {
            converted
        }
    }

    /// Converts the end of the last attempt.
    fn convert_last_attempt(
        &self,
        py: Python<'_>,
        end: Result<pb::CallReply, HostError>,
        wait_mode: WaitMode,
    ) -> PyResult<Option<pb::CallValue>> {
        match end {
            // The connection broke because the client was closed.
            Err(HostError::ConnectionLost(_))
                if self.shared.connection.close_signals.abort.is_cancelled() =>
            {
                Err(HostError::Aborted.into())
            }
            Err(error) => Err(answer::exception(self.tool.bind(py), error)),
            Ok(reply) => {
                let classes = self.exceptions.as_ref();
                answer::read_reply(self.tool.bind(py), reply, classes, self.is_streaming, wait_mode)
            }
        }
    }

    fn take_value<'py>(&self, py: Python<'py>, wait_mode: WaitMode) -> PyResult<Bound<'py, PyAny>> {
        let end = self.shared.state().end.take();
        match end {
            Some(end) => match self.convert_end(py, end, wait_mode)? {
                Some(value) => {
                    let description = format_args!("the result of tool `{}`", self.tool.bind(py));
                    let value = value_from_wire(value);
                    let value =
                        value.map_err(|error| SnakepitError::new_err(format!("{description}: {error}")))?;
                    value::name_read_error(value::to_python(py, value), py, description)
                }
                None => Err(SnakepitError::new_err("the host ended the call without an answer")),
            },
            None => {
                Err(PyRuntimeError::new_err("the call was cancelled, or its result has already been taken"))
            }
        }
    }

    fn take_next<'py>(&self, py: Python<'py>, wait_mode: WaitMode) -> PyResult<Bound<'py, PyAny>> {
        let (chunk, end) = {
            let mut state = self.shared.state();
            let chunk = state.next_chunk();
            let end = if chunk.is_none() { state.end.take() } else { None };
            (chunk, end)
        };
        match (chunk, end) {
            (Some(chunk), _) => {
                let description = format_args!("a chunk of tool `{}`", self.tool.bind(py));
                value::name_read_error(value::item_to_python(py, chunk.data, chunk.binary), py, description)
            }
            (None, Some(end)) => {
                self.convert_end(py, end, wait_mode)?;
                Err(PyStopIteration::new_err(()))
            }
            (None, None) => Err(PyStopIteration::new_err(())),
        }
    }
}

#[pymethods]
impl HostCall {
    /// Waits for the value of a unary call.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.wait(py)?;
        self.take_value(py, WaitMode::Blocking)
    }

    /// Waits for reports, a chunk or the end. Returns the reports, and an empty list if a chunk or the end is available.
    fn next_reports(&self, py: Python<'_>) -> PyResult<Vec<Report>> {
        if self.shared.state().reports.is_empty() {
            self.wait(py)?;
        }
        Ok(self.take_reports())
    }

    /// Returns the reports that have arrived.
    fn take_reports(&self) -> Vec<Report> {
        let reports = std::mem::take(&mut self.shared.state().reports);
        reports.into_iter().filter_map(|report| report.report.map(report_of)).collect()
    }

    /// Drops the reports that have arrived, and all later ones.
    fn ignore_reports(&self) {
        let mut state = self.shared.state();
        state.ignores_reports = true;
        state.reports.clear();
    }

    /// Waits for the next chunk of a stream and returns its value. Raises `StopIteration` at the end.
    fn chunk<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let is_ready = {
            let state = self.shared.state();
            !state.chunks.is_empty() || state.end.is_some()
        };
        if !is_ready {
            self.wait(py)?;
        }
        self.take_next(py, WaitMode::Blocking)
    }

    /// Finishes the wait of this key when `take_result` or `take_chunk` can return.
    fn ready(&self, completions: &Completions, key: u64) -> PyResult<Wait> {
        let shared = Arc::clone(&self.shared);
        Wait::start(self.runtime, completions, key, async move {
            let Some(limit) = shared.wait_limit() else { return shared.advance().await };
            if timeout_at(limit, shared.advance()).await.is_err() {
                shared.expire();
            }
        })
    }

    /// Returns the value of a unary call that has ended.
    fn take_result<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.take_value(py, WaitMode::Async)
    }

    /// Returns the next chunk that has arrived. Raises `StopIteration` at the end.
    fn take_chunk<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.take_next(py, WaitMode::Async)
    }

    /// Cancels the call.
    fn cancel(&self) {
        if self.runtime.is_forked() {
            return;
        }
        let live = {
            let mut state = self.shared.state();
            state.unsent = None;
            state.drain_token = None;
            state.live.take()
        };
        drop(live);
    }
}

impl Drop for HostCall {
    fn drop(&mut self) {
        let has_no_stream = self.shared.state.try_lock().is_ok_and(|state| state.live.is_none());
        if !has_no_stream && self.runtime.is_forked() {
            // The call belongs to the parent, and its locks may have been held by threads that do not exist here.
            std::mem::forget(Arc::clone(&self.shared));
        }
    }
}

/// A progress report: done, total, message. Or a line of output: text, stream, level, logger, seconds since the Unix epoch.
type Report = (Option<(f64, Option<f64>, String)>, Option<(String, String, i32, String, f64)>);

fn report_of(report: pb::call_report::Report) -> Report {
    match report {
        pb::call_report::Report::Progress(pb::CallProgress { done, total, message }) => {
            (Some((done, total, message)), None)
        }
        pb::call_report::Report::Log(pb::CallLog { stream, level, logger, text, time }) => {
            let time = time.map_or(0.0, |time| time.seconds as f64 + f64::from(time.nanos) / 1e9);
            (None, Some((text, stream, level, logger, time)))
        }
    }
}

/// Encodes a timeout for the wire, where 0 means none.
fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}
