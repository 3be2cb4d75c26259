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
use crate::{
    status::invalid_field,
    telemetry::{CallEvent, CallEventKind},
};

impl Bridge {
    pub(super) fn telemetry(
        &self,
        controls: Streaming<pb::TelemetryControl>,
    ) -> Pin<Box<dyn Stream<Item = Result<pb::TelemetryEvent, Status>> + Send>> {
        let subscription = Subscription {
            controls: Some(controls),
            events: self.host().telemetry.subscribe(),
            wanted: Wanted::default(),
            is_refused: false,
        };
        let events = futures_util::stream::unfold(subscription, |mut subscription| async {
            let event = subscription.next().await?;
            Some((event, subscription))
        });
        Box::pin(UntilStop::new(events, self.host().stop.clone()))
    }
}

struct Subscription {
    /// `None` once the subscriber said its last; its last word stays in force.
    controls: Option<Streaming<pb::TelemetryControl>>,
    events: broadcast::Receiver<Arc<CallEvent>>,
    wanted: Wanted,
    /// Its last control was refused, which ends it.
    is_refused: bool,
}

impl Subscription {
    /// The next event the subscriber wants; `None` when it is gone or the host is. The last item may be a refusal.
    async fn next(&mut self) -> Option<Result<pb::TelemetryEvent, Status>> {
        loop {
            if self.is_refused {
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
                    Ok(Some(control)) => if let Err(refusal) = self.wanted.apply(control) {
                        self.is_refused = true;
                        return Some(Err(refusal));
                    },
                    Ok(None) => self.controls = None,
                    Err(_) => return None,
                },
                event = self.events.recv() => match event {
                    Ok(event) if self.wanted.wants(&event) => return Some(Ok(event_to_wire(&event))),
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => return Some(Ok(lost_events(count))),
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }
}

/// The most patterns that a list may have, and what they may hold together, in bytes: each is matched with every event.
const MAX_PATTERNS: usize = 64;
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
    /// # Errors
    /// When there are too many patterns. What was wanted stays as it was.
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
    fn patterns_are_bounded_and_a_refusal_changes_nothing() {
        let mut wanted = Wanted::default();
        let filter = |deny: Vec<String>| pb::TelemetryControl {
            control: Some(Control::Filter(pb::TelemetryEventFilter { allow: vec!["*".to_owned()], deny })),
        };
        for (patterns, problem) in [
            (vec!["*".to_owned(); MAX_PATTERNS + 1], "has 65 patterns, the limit is 64"),
            (vec!["*a".repeat(MAX_PATTERN_BYTES)], "has 8192 bytes of patterns, the limit is 4096"),
        ] {
            let refusal = wanted.apply(filter(patterns)).unwrap_err();
            assert_eq!(refusal.message(), format!("`filter.deny` {problem}"));
        }
        assert!(wanted.allow.is_empty() && wanted.deny.is_empty());
        wanted.apply(filter(vec!["*".to_owned(); MAX_PATTERNS])).unwrap();
        assert_eq!(wanted.deny.len(), MAX_PATTERNS);
    }

    #[test]
    fn sampling_keeps_its_share_and_whole_calls() {
        let wanted = Wanted { sampling_rate: 0.25, ..Wanted::default() };
        let kept = (0..10_000).filter(|call| wanted.samples(*call)).count();
        assert!((2_000..3_000).contains(&kept), "{kept}");
        assert!((0..100).all(|call| wanted.samples(call) == wanted.samples(call)));
    }
}
