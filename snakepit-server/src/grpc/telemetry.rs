//! StreamTelemetry: the events of calls, as the subscriber's controls ask for them.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::Arc,
    time::SystemTime,
};

use futures_core::Stream;
use snakepit_proto::pb::{self, telemetry_control::Control, telemetry_value::Value};
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::{Status, Streaming};

use super::{bridge::Bridge, until_stop::UntilStop};
use crate::telemetry::{CallEvent, CallEventKind};

impl Bridge {
    pub(super) fn telemetry(
        &self,
        controls: Streaming<pb::TelemetryControl>,
    ) -> Pin<Box<dyn Stream<Item = Result<pb::TelemetryEvent, Status>> + Send>> {
        let subscription = Subscription {
            controls: Some(controls),
            events: self.host().telemetry.subscribe(),
            wanted: Wanted::default(),
        };
        let events = futures_util::stream::unfold(subscription, |mut subscription| async {
            let event = subscription.next().await?;
            Some((Ok(event), subscription))
        });
        Box::pin(UntilStop::new(events, self.host().stop.clone()))
    }
}

struct Subscription {
    /// `None` once the subscriber said its last; its last word stays in force.
    controls: Option<Streaming<pb::TelemetryControl>>,
    events: broadcast::Receiver<Arc<CallEvent>>,
    wanted: Wanted,
}

impl Subscription {
    /// The next event the subscriber wants; `None` when it is gone or the host is.
    async fn next(&mut self) -> Option<pb::TelemetryEvent> {
        loop {
            let control = async {
                match &mut self.controls {
                    Some(controls) => controls.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                control = control => match control {
                    Ok(Some(control)) => self.wanted.apply(control),
                    Ok(None) => self.controls = None,
                    Err(_) => return None,
                },
                event = self.events.recv() => match event {
                    Ok(event) if self.wanted.wants(&event) => return Some(event_to_wire(&event)),
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => return Some(lost_events(count)),
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }
}

/// What a subscriber asked for. At first: everything.
#[derive(Debug)]
struct Wanted {
    enabled: bool,
    sampling_rate: f64,
    /// Events that sampling applies to; empty means all.
    sampled: Vec<String>,
    /// Events to send; empty means all.
    allow: Vec<String>,
    /// Events to leave out, whatever `allow` says.
    deny: Vec<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { enabled: true, sampling_rate: 1.0, sampled: Vec::new(), allow: Vec::new(), deny: Vec::new() }
    }
}

impl Wanted {
    fn apply(&mut self, control: pb::TelemetryControl) {
        match control.control {
            Some(Control::Toggle(toggle)) => self.enabled = toggle.enabled,
            Some(Control::Sampling(update)) => {
                self.sampling_rate = update.sampling_rate;
                self.sampled = update.event_patterns;
            }
            Some(Control::Filter(filter)) => {
                self.allow = filter.allow;
                self.deny = filter.deny;
            }
            None => {}
        }
    }

    fn wants(&self, event: &CallEvent) -> bool {
        let name = parts(event.kind).join(".");
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches_pattern(pattern, &name));
        self.enabled
            && !any(&self.deny)
            && (self.allow.is_empty() || any(&self.allow))
            && (!(self.sampled.is_empty() || any(&self.sampled)) || self.samples(event.call))
    }

    /// Decides by the call, so that all events of one call are sent or none.
    fn samples(&self, call: u64) -> bool {
        let mut hasher = DefaultHasher::new();
        call.hash(&mut hasher);
        #[allow(clippy::cast_precision_loss, reason = "a share of all hashes needs no more precision")]
        let share = hasher.finish() as f64 / u64::MAX as f64;
        share < self.sampling_rate
    }
}

/// Whether a dotted name fits a pattern in which `*` stands for anything.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    while let Some((middle, tail)) = rest.split_once('*') {
        let Some(found) = name.find(middle) else { return false };
        name = &name[found + middle.len()..];
        rest = tail;
    }
    name.ends_with(rest)
}

const fn parts(kind: CallEventKind) -> [&'static str; 3] {
    match kind {
        CallEventKind::Start => ["tool", "execution", "start"],
        CallEventKind::Stop => ["tool", "execution", "stop"],
        CallEventKind::Exception => ["tool", "execution", "exception"],
    }
}

fn event_to_wire(event: &CallEvent) -> pb::TelemetryEvent {
    let mut metadata = BTreeMap::from([("tool".to_owned(), event.tool.to_string())]);
    for (key, value) in
        [("session_id", &event.session), ("worker_id", &event.worker), ("error", &event.error)]
    {
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
        event_parts: parts(event.kind).map(str::to_owned).to_vec(),
        measurements,
        metadata,
        timestamp_ns: nanoseconds_since_epoch(event.at),
        correlation_id: event.call.to_string(),
    }
}

/// Tells a slow subscriber that it lost events.
fn lost_events(count: u64) -> pb::TelemetryEvent {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    pb::TelemetryEvent {
        event_parts: ["telemetry", "events", "lost"].map(str::to_owned).to_vec(),
        measurements: BTreeMap::from([("count".to_owned(), integer(count))]),
        timestamp_ns: nanoseconds_since_epoch(SystemTime::now()),
        ..pb::TelemetryEvent::default()
    }
}

const fn integer(value: i64) -> pb::TelemetryValue {
    pb::TelemetryValue { value: Some(Value::IntValue(value)) }
}

fn nanoseconds_since_epoch(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, matches) in [
            ("tool.execution.stop", true),
            ("tool.*", true),
            ("*", true),
            ("*.stop", true),
            ("tool.*.stop", true),
            ("tool.*.start", false),
            ("tool", false),
            ("", false),
        ] {
            assert_eq!(matches_pattern(pattern, "tool.execution.stop"), matches, "{pattern}");
        }
    }

    #[test]
    fn sampling_keeps_its_share_and_whole_calls() {
        let wanted = Wanted { sampling_rate: 0.25, ..Wanted::default() };
        let kept = (0..10_000).filter(|call| wanted.samples(*call)).count();
        assert!((2_000..3_000).contains(&kept), "{kept}");
        assert!((0..100).all(|call| wanted.samples(call) == wanted.samples(call)));
    }
}
