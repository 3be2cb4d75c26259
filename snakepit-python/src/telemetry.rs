//! `StreamTelemetry` of a worker: events of Python code, filtered and sampled as each stream requests.
//!
//! Without a stream, an event is dropped before it is created. Only events from the start of the worker wait for the first
//! stream. All queues are bounded. A full queue drops further events and counts them.

use std::{
    collections::VecDeque,
    ffi::CString,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, ready},
    time::SystemTime,
};

use futures_core::Stream;
use pyo3::{
    PyTypeInfo,
    exceptions::PyRuntimeWarning,
    prelude::*,
    types::{PyBool, PyFloat, PyInt, PyMapping, PyString},
};
use snakepit_proto::{
    Message,
    pb::{self, telemetry_value::Value},
};
use snakepit_wire::{
    MAX_EVENT_BYTES, MAX_WAITING_EVENTS, TelemetryFilter, bad_field, is_host_event, lost_events,
    nanoseconds_since_epoch, sample_key,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::fork;

/// The events of one stream, for its reader.
pub(crate) type TelemetryEvents = Pin<Box<dyn Stream<Item = Result<pb::TelemetryEvent, Status>> + Send>>;

/// The maximum number of open streams.
const MAX_STREAMS: usize = 16;
/// The maximum number of startup events that wait for the first stream.
const MAX_STARTUP_EVENTS: usize = 256;

static HUB: Hub = Hub {
    is_active: AtomicBool::new(false),
    dropped: AtomicU64::new(0),
    last_sample: AtomicU64::new(0),
    state: Mutex::new(HubState { phase: Phase::Idle, streams: Vec::new(), startup: VecDeque::new() }),
};

/// Distributes the events of this process to its streams.
struct Hub {
    /// Whether an event may have a reader. Otherwise, it is dropped without further work.
    is_active: AtomicBool,
    /// The number of events that were dropped because a queue was full or the event was too large.
    dropped: AtomicU64,
    /// The sampling key of the last event without a correlation id.
    last_sample: AtomicU64,
    state: Mutex<HubState>,
}

struct HubState {
    phase: Phase,
    streams: Vec<OpenStream>,
    startup: VecDeque<pb::TelemetryEvent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not a worker.
    Idle,
    /// The worker starts. Its events wait for the first stream.
    Starting,
    Serving,
    /// The worker has run its last call.
    Ended,
}

/// The sending half of a stream.
struct OpenStream {
    state: Arc<StreamState>,
    sender: mpsc::Sender<pb::TelemetryEvent>,
}

/// The state that both halves of a stream share.
struct StreamState {
    filter: Mutex<TelemetryFilter>,
    /// The number of dropped events that were not reported to the reader yet.
    lost: AtomicU64,
}

impl Hub {
    /// Code under this lock does not panic.
    fn lock(&self) -> MutexGuard<'_, HubState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update_activity(&self, state: &HubState) {
        self.is_active.store(state.phase == Phase::Starting || !state.streams.is_empty(), Release);
    }

    fn set_phase(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = phase;
        if phase == Phase::Ended {
            // Drops the senders. Each stream ends after the events that wait in it.
            state.streams.clear();
        }
        self.update_activity(&state);
    }

    /// Whether any stream wants an event.
    fn wants(&self, name: &str, sample: u64) -> bool {
        let state = self.lock();
        state.phase == Phase::Starting || state.streams.iter().any(|stream| stream.state.passes(name, sample))
    }

    fn send(&self, name: &str, sample: u64, event: pb::TelemetryEvent) {
        let is_too_large = event.encoded_len() > MAX_EVENT_BYTES;
        let mut hub = self.lock();
        let mut drops = 0;
        for OpenStream { state, sender } in &hub.streams {
            if state.passes(name, sample) && (is_too_large || sender.try_send(event.clone()).is_err()) {
                state.lost.fetch_add(1, Relaxed);
                drops += 1;
            }
        }
        if hub.phase == Phase::Starting {
            if is_too_large || hub.startup.len() >= MAX_STARTUP_EVENTS {
                drops += 1;
            } else {
                hub.startup.push_back(event);
            }
        }
        self.dropped.fetch_add(drops, Relaxed);
    }
}

impl StreamState {
    fn filter(&self) -> MutexGuard<'_, TelemetryFilter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn passes(&self, name: &str, sample: u64) -> bool {
        self.filter().passes(name, sample)
    }
}

/// Starts to keep the events of this process for the first stream. Called when a worker starts.
pub(crate) fn begin() {
    HUB.set_phase(Phase::Starting);
}

/// Starts to drop events that have no stream. Called when the worker serves.
pub(crate) fn serve() {
    HUB.set_phase(Phase::Serving);
}

/// Ends all streams after their queued events.
pub(crate) fn end() {
    HUB.set_phase(Phase::Ended);
}

/// Opens a stream.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` if too many streams are open.
pub(crate) fn stream(controls: Streaming<pb::TelemetryControl>) -> Result<TelemetryEvents, Status> {
    let (sender, events) = mpsc::channel(MAX_WAITING_EVENTS);
    let state = Arc::new(StreamState { filter: Mutex::default(), lost: AtomicU64::new(0) });
    let mut hub = HUB.lock();
    if hub.streams.len() >= MAX_STREAMS {
        return Err(Status::resource_exhausted(format!(
            "the worker has {MAX_STREAMS} streams of telemetry, which is the limit; close one"
        )));
    }
    let startup = std::mem::take(&mut hub.startup);
    if hub.phase != Phase::Ended {
        hub.streams.push(OpenStream { state: Arc::clone(&state), sender });
        HUB.update_activity(&hub);
    }
    drop(hub);
    let reader = Reader { controls: Some(controls), startup, events, state, has_failed: false };
    Ok(Box::pin(reader))
}

/// The receiving half of a stream. Dropping it closes the stream.
struct Reader {
    /// `None` after the last control. The filter stays in force.
    controls: Option<Streaming<pb::TelemetryControl>>,
    startup: VecDeque<pb::TelemetryEvent>,
    events: mpsc::Receiver<pb::TelemetryEvent>,
    state: Arc<StreamState>,
    /// Whether a control was rejected, which ends the stream.
    has_failed: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut hub = HUB.lock();
        hub.streams.retain(|stream| !Arc::ptr_eq(&stream.state, &self.state));
        HUB.update_activity(&hub);
    }
}

impl Reader {
    /// Applies the controls that have arrived. Returns the rejection of one, or an end of the stream.
    fn poll_controls(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<pb::TelemetryEvent, Status>>> {
        while let Some(controls) = &mut self.controls {
            match ready!(Pin::new(controls).poll_next(cx)) {
                Some(Ok(control)) => {
                    let applied = self.state.filter().apply(control);
                    if let Err(error) = applied {
                        self.has_failed = true;
                        return Poll::Ready(Some(Err(bad_field(error.field(), error.problem()))));
                    }
                }
                Some(Err(_)) => {
                    self.has_failed = true;
                    return Poll::Ready(None);
                }
                None => self.controls = None,
            }
        }
        Poll::Pending
    }

    /// Whether the current filter accepts an event that was queued before.
    fn accepts(&self, event: &pb::TelemetryEvent) -> bool {
        // Sampling was applied when the event was queued.
        self.state.filter().selects(&event.event_parts.join("."))
    }
}

impl Stream for Reader {
    type Item = Result<pb::TelemetryEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.has_failed {
            return Poll::Ready(None);
        }
        if let Poll::Ready(end) = this.poll_controls(cx) {
            return Poll::Ready(end);
        }
        let lost = this.state.lost.swap(0, Relaxed);
        if lost > 0 {
            return Poll::Ready(Some(Ok(lost_events(lost))));
        }
        loop {
            let event = match this.startup.pop_front() {
                Some(event) => event,
                None => match ready!(this.events.poll_recv(cx)) {
                    Some(event) => event,
                    None => return Poll::Ready(None),
                },
            };
            if this.accepts(&event) {
                return Poll::Ready(Some(Ok(event)));
            }
        }
    }
}

/// Queues an event for the streams that want it.
#[pyfunction]
pub(crate) fn emit_event(
    event: &str,
    measurements: &Bound<'_, PyAny>,
    metadata: Option<&Bound<'_, PyAny>>,
    correlation_id: Option<&str>,
) -> PyResult<()> {
    if is_host_event(event) || event == "telemetry.events.lost" {
        let message =
            format!("the event `{event}` is dropped, because only the host emits it; choose another name");
        let py = measurements.py();
        return PyErr::warn(py, &PyRuntimeWarning::type_object(py), &CString::new(message)?, 2);
    }
    if !HUB.is_active.load(Acquire) || fork::is_fork() {
        return Ok(());
    }
    let correlation_id = correlation_id.unwrap_or_default();
    let sample = match correlation_id {
        "" => HUB.last_sample.fetch_add(1, Relaxed),
        id => sample_key(id),
    };
    if !HUB.wants(event, sample) {
        return Ok(());
    }
    let mut created = pb::TelemetryEvent {
        event_parts: event.split('.').map(str::to_owned).collect(),
        timestamp_ns: nanoseconds_since_epoch(SystemTime::now()),
        correlation_id: correlation_id.to_owned(),
        ..pb::TelemetryEvent::default()
    };
    for entry in measurements.cast::<PyMapping>()?.items()? {
        let (name, value) = entry.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
        let value = Some(measurement(&value)?);
        created.measurements.insert(name.str()?.to_string_lossy().into_owned(), pb::TelemetryValue { value });
    }
    if let Some(metadata) = metadata {
        for entry in metadata.cast::<PyMapping>()?.items()? {
            let (name, value) = entry.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            let [name, value] = [name.str()?, value.str()?].map(|text| text.to_string_lossy().into_owned());
            created.metadata.insert(name, value);
        }
    }
    HUB.send(event, sample, created);
    Ok(())
}

/// Returns the number of events that were dropped, because a queue was full or they were too large.
#[pyfunction]
pub(crate) fn dropped_events() -> u64 {
    HUB.dropped.load(Relaxed)
}

/// Converts a measurement. A value that is not a number becomes a string.
fn measurement(value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(flag) = value.cast::<PyBool>() {
        return Ok(Value::IntValue(i64::from(flag.is_true())));
    }
    if value.is_instance_of::<PyInt>() {
        return Ok(match value.extract::<i64>() {
            Ok(number) => Value::IntValue(number),
            Err(_) => Value::FloatValue(value.extract()?),
        });
    }
    if value.is_instance_of::<PyFloat>() {
        return Ok(Value::FloatValue(value.extract()?));
    }
    let text = match value.cast::<PyString>() {
        Ok(text) => text.clone(),
        Err(_) => value.str()?,
    };
    Ok(Value::StringValue(text.to_string_lossy().into_owned()))
}
