//! `StreamTelemetry`: events of calls and of workers, filtered and sampled as the subscriber requests.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures_core::Stream;
use snakepit_proto::pb::{self, telemetry_value::Value};
use snakepit_wire::{TelemetryFilter, lost_events, nanoseconds_since_epoch, sample_key};
use snakepit_worker::process::WorkerEvents;
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::{Extensions, Status, Streaming};

use super::{bridge::Bridge, open_ended::OpenEndedStream, request::is_from_worker};
use crate::{
    host::Host,
    status::{invalid_field, malformed_message, too_many_open},
    telemetry::{CallEvent, CallEventKind},
};

/// The maximum number of subscriptions per host. It is limited because each makes every call slower. Subscriptions of the embedding program count,
/// but the host never rejects them.
const MAX_SUBSCRIBERS: usize = 32;

type TelemetryStream = Pin<Box<dyn Stream<Item = Result<pb::TelemetryEvent, Status>> + Send>>;

impl Bridge {
    /// # Errors
    /// `RESOURCE_EXHAUSTED` above [`MAX_SUBSCRIBERS`].
    pub(super) fn telemetry(
        &self,
        controls: Streaming<pb::TelemetryControl>,
        extensions: &Extensions,
    ) -> Result<TelemetryStream, Status> {
        let open = self.host().telemetry.subscribers();
        if open >= MAX_SUBSCRIBERS {
            return Err(too_many_open("subscriptions of telemetry", open));
        }
        let mut subscription = Subscription::new(self.host(), TelemetryFilter::new());
        subscription.controls = Some(controls);
        subscription.sees_internals = self.host().tracebacks.shows_to(&self.principal(extensions));
        subscription.hiding = is_from_worker(extensions).then(|| Arc::clone(self.host()));
        let events = futures_util::stream::unfold(subscription, |mut subscription| async {
            let event = subscription.next().await?;
            Some((event, subscription))
        });
        Ok(Box::pin(OpenEndedStream::new(events, self.host().stop.clone())))
    }
}

/// A subscription to a host's events.
pub(crate) struct Subscription {
    /// `None` after the last control. The filter stays in force.
    controls: Option<Streaming<pb::TelemetryControl>>,
    events: broadcast::Receiver<Arc<CallEvent>>,
    worker_events: WorkerEvents,
    /// The host, if the subscriber is a worker, which must not see calls to hidden host tools.
    hiding: Option<Arc<Host>>,
    /// Whether errors include the output of workers and tracebacks.
    sees_internals: bool,
    filter: TelemetryFilter,
    /// Whether a control was rejected, which ends the subscription.
    is_rejected: bool,
}

impl Subscription {
    /// Creates a subscription of the program itself.
    pub(crate) fn new(host: &Host, filter: TelemetryFilter) -> Self {
        let (events, worker_events) = (host.telemetry.subscribe(), host.launches.telemetry().subscribe());
        Self {
            controls: None,
            events,
            worker_events,
            hiding: None,
            sees_internals: true,
            filter,
            is_rejected: false,
        }
    }

    fn hides(&self, event: &CallEvent) -> bool {
        self.hiding.as_ref().is_some_and(|host| host.registry.is_hidden(&event.tool))
    }

    /// The next event that passes the filter. `None` after the subscriber has disconnected or the host has ended. The last item may
    /// be the rejection of a control.
    pub(crate) async fn next(&mut self) -> Option<Result<pb::TelemetryEvent, Status>> {
        loop {
            if self.is_rejected {
                return None;
            }
            let control = async {
                match &mut self.controls {
                    Some(controls) => controls.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                control = control => match control {
                    Ok(Some(control)) => if let Err(error) = self.filter.apply(control) {
                        self.is_rejected = true;
                        return Some(Err(invalid_field(error.field(), error.problem())));
                    },
                    Ok(None) => self.controls = None,
                    Err(status) => {
                        self.is_rejected = true;
                        return malformed_message(&status).map(Err);
                    }
                },
                event = self.events.recv() => match event {
                    Ok(event) if self.hides(&event) => {}
                    Ok(event) if self.filter.passes(event_name(event.kind), event.call) => {
                        return Some(Ok(event_to_wire(&event, self.sees_internals)));
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => return Some(Ok(lost_events(count))),
                    Err(RecvError::Closed) => return None,
                },
                event = self.worker_events.next() => {
                    let name = event.event_parts.join(".");
                    if self.filter.passes(&name, sample_of(&event)) {
                        return Some(Ok(Arc::unwrap_or_clone(event)));
                    }
                },
            }
        }
    }
}

/// The sampling key of a worker event. Events without a correlation id are sampled one by one.
fn sample_of(event: &pb::TelemetryEvent) -> u64 {
    match &*event.correlation_id {
        "" => event.timestamp_ns.cast_unsigned(),
        id => sample_key(id),
    }
}

const fn event_name(kind: CallEventKind) -> &'static str {
    match kind {
        CallEventKind::Start => "tool.execution.start",
        CallEventKind::Stop => "tool.execution.stop",
        CallEventKind::Exception => "tool.execution.exception",
    }
}

fn event_to_wire(event: &CallEvent, sees_internals: bool) -> pb::TelemetryEvent {
    let error = match &event.redacted_error {
        Some(redacted) if !sees_internals => redacted,
        _ => &event.error,
    };
    let mut metadata = BTreeMap::from([("tool".to_owned(), event.tool.to_string())]);
    for (key, value) in [("session_id", &event.session), ("worker_id", &event.worker), ("error", error)] {
        if !value.is_empty() {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let mut measurements = BTreeMap::new();
    if event.kind != CallEventKind::Start {
        let nanoseconds = i64::try_from(event.duration.as_nanos()).unwrap_or(i64::MAX);
        measurements.insert("duration_ns".to_owned(), integer(nanoseconds));
    }
    pb::TelemetryEvent {
        event_parts: event_name(event.kind).split('.').map(str::to_owned).collect(),
        measurements,
        metadata,
        timestamp_ns: nanoseconds_since_epoch(event.at),
        correlation_id: event.call.to_string(),
    }
}

const fn integer(value: i64) -> pb::TelemetryValue {
    pb::TelemetryValue { value: Some(Value::IntValue(value)) }
}
