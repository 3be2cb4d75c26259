//! [`TelemetryFilter`]: which events a stream of telemetry contains. Hosts and workers use the same rules.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    str::FromStr,
    time::SystemTime,
};

use snakepit_proto::pb::{self, telemetry_control::Control, telemetry_value::Value};

/// The maximum number of patterns of a list. Each event is matched with all of them.
const MAX_PATTERNS: usize = 64;
/// The total size of the patterns of a list, in bytes.
const MAX_PATTERN_BYTES: usize = 4096;
/// The maximum size of an event on the wire, in bytes. Larger events are dropped and counted.
pub const MAX_EVENT_BYTES: usize = 16 * 1024;
/// The maximum number of events that wait for a slow reader. Further ones are dropped and counted.
pub const MAX_WAITING_EVENTS: usize = 1024;

/// Selects events of telemetry by their names. By default, every event passes.
///
/// In a pattern, `*` matches any text: `model.*` matches `model.load.stop`.
///
/// ```
/// use snakepit_wire::TelemetryFilter;
///
/// let filter = TelemetryFilter::new().allow("model.*").deny("*.start");
/// assert!(filter.passes("model.load.stop", 0));
/// assert!(!filter.passes("model.load.start", 0) && !filter.passes("cache", 0));
/// assert!(!TelemetryFilter::new().sampling(0.0).passes("cache", 0));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryFilter {
    enabled: bool,
    sampling_rate: f64,
    /// Patterns of the events that sampling applies to. Empty means all.
    sampled: Vec<String>,
    /// Patterns of the events that pass. Empty means all.
    allow: Vec<String>,
    /// Patterns of the events that do not pass. They override `allow`.
    deny: Vec<String>,
}

/// A control or a filter with too many patterns or an invalid sampling rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPatterns {
    /// The field of the control, such as `filter.deny`.
    pub field: &'static str,
    /// The problem, as the end of a sentence.
    pub problem: String,
}

impl fmt::Display for InvalidPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.field, self.problem)
    }
}

impl std::error::Error for InvalidPatterns {}

impl Default for TelemetryFilter {
    fn default() -> Self {
        Self { enabled: true, sampling_rate: 1.0, sampled: Vec::new(), allow: Vec::new(), deny: Vec::new() }
    }
}

impl TelemetryFilter {
    /// Creates a filter that every event passes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether any event passes.
    #[must_use]
    pub const fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Sets the share of events that pass, from 0 to 1. Events with the same correlation id pass together.
    #[must_use]
    pub const fn sampling(mut self, rate: f64) -> Self {
        self.sampling_rate = rate;
        self
    }

    /// Restricts sampling to events that match a pattern. All others pass. Several calls add patterns.
    #[must_use]
    pub fn sampling_of(mut self, pattern: impl Into<String>) -> Self {
        self.sampled.push(pattern.into());
        self
    }

    /// Drops events that match no such pattern. Several calls add patterns.
    #[must_use]
    pub fn allow(mut self, pattern: impl Into<String>) -> Self {
        self.allow.push(pattern.into());
        self
    }

    /// Drops events that match a pattern, even if an [allowed](Self::allow) pattern matches. Several calls add patterns.
    #[must_use]
    pub fn deny(mut self, pattern: impl Into<String>) -> Self {
        self.deny.push(pattern.into());
        self
    }

    /// Checks the sampling rate, and the number and the size of the patterns.
    ///
    /// # Errors
    /// The rate is not a number from 0 to 1. A list has more than 64 patterns, or patterns of more than 4096 bytes.
    pub fn check(&self) -> Result<(), InvalidPatterns> {
        if !(0.0..=1.0).contains(&self.sampling_rate) {
            let problem = format!("is {}, expected a number from 0 to 1", self.sampling_rate);
            return Err(InvalidPatterns { field: "sampling.sampling_rate", problem });
        }
        let lists = [
            ("sampling.event_patterns", &self.sampled),
            ("filter.allow", &self.allow),
            ("filter.deny", &self.deny),
        ];
        lists.into_iter().try_for_each(|(field, patterns)| check_patterns(field, patterns))
    }

    /// Applies a control of a stream.
    ///
    /// # Errors
    /// As for [`check`](Self::check). The filter is then unchanged.
    pub fn apply(&mut self, control: pb::TelemetryControl) -> Result<(), InvalidPatterns> {
        let mut changed = self.clone();
        match control.control {
            Some(Control::Toggle(toggle)) => changed.enabled = toggle.enabled,
            Some(Control::Sampling(update)) => {
                changed.sampling_rate = update.sampling_rate;
                changed.sampled = update.event_patterns;
            }
            Some(Control::Filter(filter)) => {
                changed.allow = filter.allow;
                changed.deny = filter.deny;
            }
            None => {}
        }
        changed.check()?;
        *self = changed;
        Ok(())
    }

    /// The controls that give a stream this filter.
    #[must_use]
    pub fn controls(&self) -> [pb::TelemetryControl; 3] {
        let Self { enabled, sampling_rate, sampled, allow, deny } = self.clone();
        let sampling = pb::TelemetrySamplingUpdate { sampling_rate, event_patterns: sampled };
        [
            Control::Filter(pb::TelemetryEventFilter { allow, deny }),
            Control::Sampling(sampling),
            Control::Toggle(pb::TelemetryToggle { enabled }),
        ]
        .map(|control| pb::TelemetryControl { control: Some(control) })
    }

    /// Whether an event passes. Sampling depends only on `sample`, the key of a call or correlation id, so that
    /// either all events of one key pass or none.
    #[must_use]
    pub fn passes(&self, name: &str, sample: u64) -> bool {
        self.selects(name)
            && (!(self.sampled.is_empty() || matches_any(&self.sampled, name)) || self.samples(sample))
    }

    /// Whether an event passes, apart from sampling.
    #[must_use]
    pub fn selects(&self, name: &str) -> bool {
        self.enabled
            && !matches_any(&self.deny, name)
            && (self.allow.is_empty() || matches_any(&self.allow, name))
    }

    fn samples(&self, key: u64) -> bool {
        // A rate of 1 must not lose the largest key.
        if self.sampling_rate >= 1.0 {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        #[allow(clippy::cast_precision_loss, reason = "a share of all hashes needs no more precision")]
        let share = hasher.finish() as f64 / u64::MAX as f64;
        share < self.sampling_rate
    }
}

fn matches_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| matches_pattern(pattern, name))
}

/// Parses rules, separated by commas: a pattern allows events, `-` and a pattern deny events, a number from 0 to 1 is the sampling
/// rate, and `off` disables all events.
///
/// ```
/// use snakepit_wire::TelemetryFilter;
///
/// let filter: TelemetryFilter = "model.*, -*.start, 0.5".parse()?;
/// assert_eq!(filter, TelemetryFilter::new().allow("model.*").deny("*.start").sampling(0.5));
/// # Ok::<(), String>(())
/// ```
impl FromStr for TelemetryFilter {
    type Err = String;

    fn from_str(rules: &str) -> Result<Self, String> {
        let mut filter = Self::new();
        for rule in rules.split(',').map(str::trim).filter(|rule| !rule.is_empty()) {
            filter = if rule == "off" {
                filter.enabled(false)
            } else if let Ok(rate) = rule.parse::<f64>() {
                if !(0.0..=1.0).contains(&rate) {
                    return Err(format!("the sampling rate {rule} is not a number from 0 to 1"));
                }
                filter.sampling(rate)
            } else if let Some(pattern) = rule.strip_prefix('-') {
                filter.deny(pattern)
            } else {
                filter.allow(rule)
            };
        }
        filter.check().map_err(|error| error.to_string())?;
        Ok(filter)
    }
}

/// Returns the sampling key of an event with this correlation id.
#[must_use]
pub fn sample_key(correlation_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    correlation_id.hash(&mut hasher);
    hasher.finish()
}

fn check_patterns(field: &'static str, patterns: &[String]) -> Result<(), InvalidPatterns> {
    let (count, bytes) = (patterns.len(), patterns.iter().map(String::len).sum::<usize>());
    let problem = if count > MAX_PATTERNS {
        format!("has {count} patterns, the limit is {MAX_PATTERNS}")
    } else if bytes > MAX_PATTERN_BYTES {
        format!("has {bytes} bytes of patterns, the limit is {MAX_PATTERN_BYTES}")
    } else {
        return Ok(());
    };
    Err(InvalidPatterns { field, problem })
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

/// The event that reports to a reader how many events its stream has dropped: `telemetry.events.lost`.
#[must_use]
pub fn lost_events(count: u64) -> pb::TelemetryEvent {
    let count = Value::IntValue(i64::try_from(count).unwrap_or(i64::MAX));
    pb::TelemetryEvent {
        event_parts: ["telemetry", "events", "lost"].map(str::to_owned).to_vec(),
        measurements: [("count".to_owned(), pb::TelemetryValue { value: Some(count) })].into(),
        timestamp_ns: nanoseconds_since_epoch(SystemTime::now()),
        ..pb::TelemetryEvent::default()
    }
}

/// Whether only hosts emit events of this name. Those of workers are dropped.
#[must_use]
pub fn is_host_event(name: &str) -> bool {
    matches!(name, "tool.execution.start" | "tool.execution.stop" | "tool.execution.exception")
}

/// A time as an event holds it.
#[must_use]
pub fn nanoseconds_since_epoch(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampling_rate_is_a_number_from_0_to_1() {
        let mut filter = TelemetryFilter::new();
        for rate in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let sampling = pb::TelemetrySamplingUpdate { sampling_rate: rate, event_patterns: Vec::new() };
            let control = pb::TelemetryControl { control: Some(Control::Sampling(sampling)) };
            let error = filter.apply(control).unwrap_err();
            let expected = format!("`sampling.sampling_rate` is {rate}, expected a number from 0 to 1");
            assert_eq!(error.to_string(), expected);
            assert_eq!(filter, TelemetryFilter::new());
        }
    }

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
        let mut filter = TelemetryFilter::new();
        let control = |deny: Vec<String>| pb::TelemetryControl {
            control: Some(Control::Filter(pb::TelemetryEventFilter { allow: vec!["*".to_owned()], deny })),
        };
        for (patterns, problem) in [
            (vec!["*".to_owned(); MAX_PATTERNS + 1], "has 65 patterns, the limit is 64"),
            (vec!["*a".repeat(MAX_PATTERN_BYTES)], "has 8192 bytes of patterns, the limit is 4096"),
        ] {
            let error = filter.apply(control(patterns)).unwrap_err();
            assert_eq!(error.to_string(), format!("`filter.deny` {problem}"));
        }
        assert_eq!(filter, TelemetryFilter::new());
        filter.apply(control(vec!["*".to_owned(); MAX_PATTERNS])).unwrap();
        assert_eq!(filter.deny.len(), MAX_PATTERNS);
    }

    #[test]
    fn controls_carry_the_whole_filter() {
        let filter =
            TelemetryFilter::new().sampling(0.5).sampling_of("b*").allow("a").deny("c").enabled(false);
        let mut copy = TelemetryFilter::new();
        filter.controls().into_iter().for_each(|control| copy.apply(control).unwrap());
        assert_eq!(copy, filter);
    }

    #[test]
    fn sampling_keeps_its_rate_and_whole_calls() {
        let filter = TelemetryFilter::new().sampling(0.25);
        let sampled = (0..10_000).filter(|call| filter.samples(*call)).count();
        assert!((2_000..3_000).contains(&sampled), "{sampled}");
        assert!((0..100).all(|call| filter.samples(call) == filter.samples(call)));
        let partial = TelemetryFilter::new().sampling(0.0).sampling_of("a.*");
        assert!(partial.passes("b", 1) && !partial.passes("a.b", 1));
    }

    #[test]
    fn rules_have_a_short_form() {
        assert_eq!("off".parse(), Ok(TelemetryFilter::new().enabled(false)));
        assert_eq!("".parse(), Ok(TelemetryFilter::new()));
        for wrong in ["2", "-1", "NaN", &"a,".repeat(100)] {
            wrong.parse::<TelemetryFilter>().unwrap_err();
        }
    }
}
