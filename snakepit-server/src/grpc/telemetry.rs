//! `StreamTelemetry`: events of calls, filtered and sampled as the subscriber requests.

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
use tonic::{Extensions, Status, Streaming};

use super::{bridge::Bridge, open_ended::OpenEndedStream, request::is_from_worker};
use crate::{
    host::Host,
    status::invalid_field,
    telemetry::{CallEvent, CallEventKind},
};

impl Bridge {
    pub(super) fn telemetry(
        &self,
        controls: Streaming<pb::TelemetryControl>,
        extensions: &Extensions,
    ) -> Pin<Box<dyn Stream<Item = Result<pb::TelemetryEvent, Status>> + Send>> {
        let subscription = Subscription {
            controls: Some(controls),
            events: self.host().telemetry.subscribe(),
            hiding: is_from_worker(extensions).then(|| Arc::clone(self.host())),
            filter: EventFilter::default(),
            is_rejected: false,
        };
        let events = futures_util::stream::unfold(subscription, |mut subscription| async {
            let event = subscription.next().await?;
            Some((event, subscription))
        });
        Box::pin(OpenEndedStream::new(events, self.host().stop.clone()))
    }
}

struct Subscription {
    /// `None` after the last control. The filter stays in force.
    controls: Option<Streaming<pb::TelemetryControl>>,
    events: broadcast::Receiver<Arc<CallEvent>>,
    /// The host, if the subscriber is a worker, which must not see calls of hidden host tools.
    hiding: Option<Arc<Host>>,
    filter: EventFilter,
    /// Whether a control was rejected, which ends the subscription.
    is_rejected: bool,
}

impl Subscription {
    fn hides(&self, event: &CallEvent) -> bool {
        self.hiding.as_ref().is_some_and(|host| host.registry.is_hidden(&event.tool))
    }

    /// The next event that passes the filter. `None` after the subscriber has disconnected or the host has ended. The last item may
    /// be the rejection of a control.
    async fn next(&mut self) -> Option<Result<pb::TelemetryEvent, Status>> {
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
                    Ok(Some(control)) => if let Err(status) = self.filter.apply(control) {
                        self.is_rejected = true;
                        return Some(Err(status));
                    },
                    Ok(None) => self.controls = None,
                    Err(_) => return None,
                },
                event = self.events.recv() => match event {
                    Ok(event) if self.hides(&event) => {}
                    Ok(event) if self.filter.passes(&event) => return Some(Ok(event_to_wire(&event))),
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => return Some(Ok(lost_events(count))),
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }
}

/// The maximum number of patterns of a list. The host matches each of them with every event.
const MAX_PATTERNS: usize = 64;
/// The total size of the patterns of a list, in bytes.
const MAX_PATTERN_BYTES: usize = 4096;

fn check_patterns(field: &str, patterns: &[String]) -> Result<(), Status> {
    let (count, bytes) = (patterns.len(), patterns.iter().map(String::len).sum::<usize>());
    if count > MAX_PATTERNS {
        return Err(invalid_field(field, format_args!("has {count} patterns, the limit is {MAX_PATTERNS}")));
    }
    if bytes > MAX_PATTERN_BYTES {
        let problem = format_args!("has {bytes} bytes of patterns, the limit is {MAX_PATTERN_BYTES}");
        return Err(invalid_field(field, problem));
    }
    Ok(())
}

/// Selects the events of a subscription. Initially, every event passes.
#[derive(Debug)]
struct EventFilter {
    enabled: bool,
    sampling_rate: f64,
    /// Patterns of the events that sampling applies to. Empty means all.
    sampled: Vec<String>,
    /// Patterns of the events that pass. Empty means all.
    allow: Vec<String>,
    /// Patterns of the events that do not pass. They override `allow`.
    deny: Vec<String>,
}

impl Default for EventFilter {
    fn default() -> Self {
        Self { enabled: true, sampling_rate: 1.0, sampled: Vec::new(), allow: Vec::new(), deny: Vec::new() }
    }
}

impl EventFilter {
    /// Applies a control.
    ///
    /// # Errors
    /// A list of patterns is too large. The filter is then unchanged.
    fn apply(&mut self, control: pb::TelemetryControl) -> Result<(), Status> {
        match control.control {
            Some(Control::Toggle(toggle)) => self.enabled = toggle.enabled,
            Some(Control::Sampling(update)) => {
                check_patterns("sampling.event_patterns", &update.event_patterns)?;
                self.sampling_rate = update.sampling_rate;
                self.sampled = update.event_patterns;
            }
            Some(Control::Filter(filter)) => {
                check_patterns("filter.allow", &filter.allow)?;
                check_patterns("filter.deny", &filter.deny)?;
                self.allow = filter.allow;
                self.deny = filter.deny;
            }
            None => {}
        }
        Ok(())
    }

    fn passes(&self, event: &CallEvent) -> bool {
        let name = event_parts(event.kind).join(".");
        let matches_any =
            |patterns: &[String]| patterns.iter().any(|pattern| matches_pattern(pattern, &name));
        self.enabled
            && !matches_any(&self.deny)
            && (self.allow.is_empty() || matches_any(&self.allow))
            && (!(self.sampled.is_empty() || matches_any(&self.sampled)) || self.samples(event.call))
    }

    /// Returns whether the sample includes a call. Depends only on the call's id, so that either all events of a call pass or none.
    fn samples(&self, call: u64) -> bool {
        let mut hasher = DefaultHasher::new();
        call.hash(&mut hasher);
        #[allow(clippy::cast_precision_loss, reason = "a share of all hashes needs no more precision")]
        let share = hasher.finish() as f64 / u64::MAX as f64;
        share < self.sampling_rate
    }
}

/// Whether a dotted name matches a pattern, in which `*` matches any text.
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

const fn event_parts(kind: CallEventKind) -> [&'static str; 3] {
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
        event_parts: event_parts(event.kind).map(str::to_owned).to_vec(),
        measurements,
        metadata,
        timestamp_ns: nanoseconds_since_epoch(event.at),
        correlation_id: event.call.to_string(),
    }
}

/// The event that reports to a slow subscriber how many events it lost.
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
    fn patterns_are_bounded_and_a_rejection_changes_nothing() {
        let mut filter = EventFilter::default();
        let control = |deny: Vec<String>| pb::TelemetryControl {
            control: Some(Control::Filter(pb::TelemetryEventFilter { allow: vec!["*".to_owned()], deny })),
        };
        for (patterns, problem) in [
            (vec!["*".to_owned(); MAX_PATTERNS + 1], "has 65 patterns, the limit is 64"),
            (vec!["*a".repeat(MAX_PATTERN_BYTES)], "has 8192 bytes of patterns, the limit is 4096"),
        ] {
            let status = filter.apply(control(patterns)).unwrap_err();
            assert_eq!(status.message(), format!("`filter.deny` {problem}"));
        }
        assert!(filter.allow.is_empty() && filter.deny.is_empty());
        filter.apply(control(vec!["*".to_owned(); MAX_PATTERNS])).unwrap();
        assert_eq!(filter.deny.len(), MAX_PATTERNS);
    }

    #[test]
    fn sampling_keeps_its_rate_and_whole_calls() {
        let filter = EventFilter { sampling_rate: 0.25, ..EventFilter::default() };
        let sampled = (0..10_000).filter(|call| filter.samples(*call)).count();
        assert!((2_000..3_000).contains(&sampled), "{sampled}");
        assert!((0..100).all(|call| filter.samples(call) == filter.samples(call)));
    }
}
