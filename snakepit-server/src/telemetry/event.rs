//! [`TelemetryEvents`]: the events of a host for programs that embed it.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_core::Stream;
use futures_util::{StreamExt, stream};
use snakepit_proto::pb::{self, telemetry_value::Value};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::grpc::telemetry::Subscription;

/// An event of a call or of a tool, as [`Snakepit::telemetry`](crate::Snakepit::telemetry) yields it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TelemetryEvent {
    /// The name, with dots, such as `tool.execution.stop`.
    pub name: String,
    /// The measurements by name.
    pub measurements: BTreeMap<String, TelemetryValue>,
    /// Additional descriptions by name. An event of a worker has the `worker_id`.
    pub metadata: BTreeMap<String, String>,
    /// The time of the event, by the clock of the process that emitted it.
    pub timestamp: SystemTime,
    /// The id that links events of one operation, such as a call. Empty if there is none.
    pub correlation_id: String,
}

/// A measurement of a [`TelemetryEvent`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TelemetryValue {
    /// An integer.
    Integer(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(String),
}

/// A stream of [`TelemetryEvent`]s, by [`Snakepit::telemetry`](crate::Snakepit::telemetry). Dropping it ends the subscription.
pub struct TelemetryEvents(Pin<Box<dyn Stream<Item = TelemetryEvent> + Send>>);

impl TelemetryEvents {
    pub(crate) fn new(subscription: Subscription, stop: WaitForCancellationFutureOwned) -> Self {
        let events = stream::unfold(subscription, |mut subscription| async {
            // Without controls, no item is an error.
            let event = subscription.next().await?.ok()?;
            Some((TelemetryEvent::from(event), subscription))
        });
        Self(Box::pin(events.take_until(Box::pin(stop))))
    }
}

impl Stream for TelemetryEvents {
    type Item = TelemetryEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TelemetryEvent>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for TelemetryEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TelemetryEvents")
    }
}

impl From<pb::TelemetryEvent> for TelemetryEvent {
    fn from(event: pb::TelemetryEvent) -> Self {
        let pb::TelemetryEvent { event_parts, measurements, metadata, timestamp_ns, correlation_id } = event;
        let measurements = measurements.into_iter().filter_map(|(name, measurement)| {
            let value = match measurement.value? {
                Value::IntValue(number) => TelemetryValue::Integer(number),
                Value::FloatValue(number) => TelemetryValue::Float(number),
                Value::StringValue(text) => TelemetryValue::Text(text),
            };
            Some((name, value))
        });
        let since_epoch = Duration::from_nanos(u64::try_from(timestamp_ns).unwrap_or_default());
        Self {
            name: event_parts.join("."),
            measurements: measurements.collect(),
            metadata,
            timestamp: SystemTime::UNIX_EPOCH + since_epoch,
            correlation_id,
        }
    }
}
