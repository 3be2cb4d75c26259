//! [`WorkerTelemetry`]: the events of workers, which the host reads with `StreamTelemetry`. The host controls which events workers
//! send.
//!
//! ```text
//!   worker ──events──> forward, one per worker ──> broadcast ──> subscribers, tracing
//!          <─controls─         ^── filter and number of subscribers (watch)
//! ```

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::stream;
use snakepit_proto::{Message, pb};
use snakepit_wire::{
    MAX_EVENT_BYTES, MAX_WAITING_EVENTS, TelemetryFilter, TelemetryFilterError, is_host_event, lost_events,
};
use tokio::sync::{broadcast, mpsc, watch};
use tonic::{Code, Status};

use super::{connect::Client, launches::Launches};
use crate::WorkerId;

/// The tracing target of worker events.
pub const TELEMETRY_TARGET: &str = "snakepit::telemetry";
/// The pause before the host opens a broken stream again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The number of controls that may wait for the worker to read them. A change to the filter consists of three.
const MAX_WAITING_CONTROLS: usize = 6;

/// The events of all workers. Clones share them.
///
/// A worker sends events only while there are subscribers, or while `tracing` accepts the level `TRACE` of the target
/// [`TELEMETRY_TARGET`]. Without either, no stream is open.
#[derive(Clone)]
pub struct WorkerTelemetry {
    events: broadcast::Sender<Arc<pb::TelemetryEvent>>,
    settings: watch::Sender<Settings>,
}

#[derive(Debug, Clone, Default)]
struct Settings {
    filter: TelemetryFilter,
    subscribers: usize,
}

impl Settings {
    fn are_events_wanted(&self) -> bool {
        self.subscribers > 0 || is_traced()
    }
}

fn is_traced() -> bool {
    tracing::enabled!(target: TELEMETRY_TARGET, tracing::Level::TRACE)
}

/// The events of all workers from the subscription on. Dropping it ends the subscription.
#[derive(Debug)]
pub struct WorkerEvents {
    events: broadcast::Receiver<Arc<pb::TelemetryEvent>>,
    settings: watch::Sender<Settings>,
}

impl Default for WorkerTelemetry {
    fn default() -> Self {
        let (events, settings) = (broadcast::channel(MAX_WAITING_EVENTS).0, watch::Sender::default());
        Self { events, settings }
    }
}

impl Launches {
    /// The events of the workers.
    #[must_use]
    pub const fn telemetry(&self) -> &WorkerTelemetry {
        &self.telemetry
    }
}

impl WorkerTelemetry {
    /// Returns the filter that workers apply to their events.
    #[must_use]
    pub fn filter(&self) -> TelemetryFilter {
        self.settings.borrow().filter.clone()
    }

    /// Sets the filter that workers apply to their events. Running workers receive the change.
    ///
    /// # Errors
    /// The filter has too many patterns.
    pub fn set_filter(&self, filter: TelemetryFilter) -> Result<(), TelemetryFilterError> {
        filter.check()?;
        self.settings.send_modify(|settings| settings.filter = filter);
        Ok(())
    }

    /// Subscribes to the events of all workers.
    #[must_use]
    pub fn subscribe(&self) -> WorkerEvents {
        let events = self.events.subscribe();
        self.settings.send_modify(|settings| settings.subscribers += 1);
        WorkerEvents { events, settings: self.settings.clone() }
    }

    /// Forwards the events of one worker as long as it lives. Returns if the worker does not serve `StreamTelemetry`.
    ///
    /// # Cancel safety
    /// Cancel safe. Dropping the future closes the stream.
    pub(super) async fn forward(&self, worker: &WorkerId, client: Client) {
        let mut settings = self.settings.subscribe();
        loop {
            let Some(filter) = wait_until_wanted(&mut settings).await else { return };
            let (controls, receiver) = mpsc::channel(MAX_WAITING_CONTROLS);
            for control in filter.controls() {
                // The channel is empty.
                let _ = controls.try_send(control);
            }
            let events = self.read(worker, client.clone(), receiver);
            let ended = tokio::select! {
                ended = events => ended,
                // The next subscriber must not wait.
                () = send_filter_changes(&mut settings, &controls, filter) => continue,
            };
            match ended {
                Ok(()) => {}
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::debug!(worker = %worker, "the worker does not serve telemetry");
                    return;
                }
                Err(status) => {
                    let problem = status.message();
                    tracing::debug!(worker = %worker, problem, "the telemetry of a worker ended");
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn read(
        &self,
        worker: &WorkerId,
        mut client: Client,
        controls: mpsc::Receiver<pb::TelemetryControl>,
    ) -> Result<(), Status> {
        let controls = stream::unfold(controls, |mut controls| async move {
            let control = controls.recv().await?;
            Some((control, controls))
        });
        let mut events = client.stream_telemetry(controls).await?.into_inner();
        while let Some(event) = events.message().await? {
            self.publish(worker, event);
        }
        Ok(())
    }

    fn publish(&self, worker: &WorkerId, event: pb::TelemetryEvent) {
        // Foreign workers may send events of any name and size.
        let name = event.event_parts.join(".");
        if is_host_event(&name) {
            tracing::debug!(event = name, %worker, "dropped an event of a worker with a name of the host");
            return;
        }
        let mut event = if event.encoded_len() > MAX_EVENT_BYTES { lost_events(1) } else { event };
        event.metadata.insert("worker_id".to_owned(), worker.to_string());
        if is_traced() {
            let (measurements, metadata) = (Measurements(&event.measurements), &event.metadata);
            tracing::trace!(
                target: TELEMETRY_TARGET,
                event = event.event_parts.join("."),
                worker = %worker,
                correlation_id = event.correlation_id,
                %measurements,
                ?metadata,
                "telemetry"
            );
        }
        // An error means that there are no subscribers.
        let _ = self.events.send(Arc::new(event));
    }
}

/// Waits until events are wanted, and returns the filter. `None` if the host has ended.
async fn wait_until_wanted(settings: &mut watch::Receiver<Settings>) -> Option<TelemetryFilter> {
    // A separate function, because the reference is not `Send`.
    settings.wait_for(Settings::are_events_wanted).await.ok().map(|wanted| wanted.filter.clone())
}

/// Sends filter changes to a worker. Returns when no events are wanted any more.
async fn send_filter_changes(
    settings: &mut watch::Receiver<Settings>,
    controls: &mpsc::Sender<pb::TelemetryControl>,
    mut sent: TelemetryFilter,
) {
    loop {
        if settings.changed().await.is_err() {
            return;
        }
        let new = settings.borrow_and_update().clone();
        if !new.are_events_wanted() {
            return;
        }
        if new.filter != sent {
            sent = new.filter;
            for control in sent.controls() {
                // Fails if the stream has ended, which its reader notices.
                let _ = controls.send(control).await;
            }
        }
    }
}

/// Formats measurements as `name=value`.
struct Measurements<'a>(&'a BTreeMap<String, pb::TelemetryValue>);

impl fmt::Display for Measurements<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use pb::telemetry_value::Value;

        for (index, (name, measurement)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            match &measurement.value {
                Some(Value::IntValue(number)) => write!(f, "{separator}{name}={number}")?,
                Some(Value::FloatValue(number)) => write!(f, "{separator}{name}={number}")?,
                Some(Value::StringValue(text)) => write!(f, "{separator}{name}={text:?}")?,
                None => {}
            }
        }
        Ok(())
    }
}

impl fmt::Debug for WorkerTelemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerTelemetry").field("settings", &*self.settings.borrow()).finish_non_exhaustive()
    }
}

impl WorkerEvents {
    /// Waits for the next event. A slow subscriber loses the oldest events and receives `telemetry.events.lost` with their number.
    /// Never returns if no worker sends events.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Arc<pb::TelemetryEvent> {
        match self.events.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(count)) => Arc::new(lost_events(count)),
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Drop for WorkerEvents {
    fn drop(&mut self) {
        self.settings.send_modify(|settings| settings.subscribers -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> pb::TelemetryEvent {
        pb::TelemetryEvent { event_parts: vec![name.to_owned()], ..pb::TelemetryEvent::default() }
    }

    #[tokio::test]
    async fn subscribers_receive_events_with_the_id_of_the_worker_and_learn_of_losses() {
        let telemetry = WorkerTelemetry::default();
        let (worker, mut events) = (WorkerId::new("p-0-1"), telemetry.subscribe());
        telemetry.publish(&worker, event("a"));
        let first = events.next().await;
        assert_eq!((&*first.event_parts[0], &*first.metadata["worker_id"]), ("a", "p-0-1"));

        // Only the host emits such events.
        telemetry.publish(&worker, event("tool.execution.stop"));
        telemetry.publish(&worker, event(&"x".repeat(MAX_EVENT_BYTES)));
        assert_eq!(events.next().await.event_parts, ["telemetry", "events", "lost"]);

        (0..MAX_WAITING_EVENTS + 3).for_each(|_| telemetry.publish(&worker, event("b")));
        let lost = events.next().await;
        let count = pb::telemetry_value::Value::IntValue(3);
        assert_eq!(lost.measurements["count"].value, Some(count));
        assert_eq!(events.next().await.event_parts, ["b"]);
    }

    #[tokio::test]
    async fn events_are_wanted_while_there_are_subscribers() {
        let telemetry = WorkerTelemetry::default();
        let subscribers = || telemetry.settings.borrow().subscribers;
        let (first, second) = (telemetry.subscribe(), telemetry.subscribe());
        assert_eq!(subscribers(), 2);
        drop((first, second));
        assert_eq!(subscribers(), 0);
        let many = (0..100).fold(TelemetryFilter::new(), |filter, _| filter.deny("x"));
        telemetry.set_filter(many).unwrap_err();
        assert_eq!(telemetry.filter(), TelemetryFilter::new());
    }
}
