//! [`TelemetryFilter`]: which events a stream of telemetry contains. Hosts and workers use the same rules.

use std::{str::FromStr, time::SystemTime};

use snakepit_proto::pb::{self, telemetry_control::Control, telemetry_value::Value};

/// The maximum number of patterns in a list. Each event is matched with all of them.
const MAX_PATTERNS: usize = 64;
/// The maximum total size of the patterns in a list, in bytes.
const MAX_PATTERN_BYTES: usize = 4096;
/// The maximum size of an event on the wire, in bytes. Larger events are dropped and counted.
pub const MAX_EVENT_BYTES: usize = 16 * 1024;
/// The maximum number of events that wait for a slow reader. Additional events are dropped and counted.
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

/// An invalid filter of telemetry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct TelemetryFilterError {
    field: &'static str,
    problem: String,
}

impl TelemetryFilterError {
    /// The invalid field, such as `filter.deny`. The names are those of the protocol.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        self.field
    }

    /// The problem, as the end of a sentence that begins with the field.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

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
    /// The rate is not a number from 0 to 1, or a list has more than 64 patterns or patterns of more than 4096 bytes.
    pub fn check(&self) -> Result<(), TelemetryFilterError> {
        if !(0.0..=1.0).contains(&self.sampling_rate) {
            let problem = format!("is {}, expected a number from 0 to 1", self.sampling_rate);
            return Err(TelemetryFilterError { field: "sampling.sampling_rate", problem });
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
    pub fn apply(&mut self, control: pb::TelemetryControl) -> Result<(), TelemetryFilterError> {
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
        #[allow(clippy::cast_precision_loss, reason = "a share of all hashes needs no more precision")]
        let share = mixed(key) as f64 / u64::MAX as f64;
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
/// use snakepit_wire::{TelemetryFilter, TelemetryFilterError};
///
/// let filter: TelemetryFilter = "model.*, -*.start, 0.5".parse()?;
/// assert_eq!(filter, TelemetryFilter::new().allow("model.*").deny("*.start").sampling(0.5));
/// # Ok::<(), TelemetryFilterError>(())
/// ```
impl FromStr for TelemetryFilter {
    type Err = TelemetryFilterError;

    fn from_str(rules: &str) -> Result<Self, TelemetryFilterError> {
        let mut filter = Self::new();
        for rule in rules.split(',').map(str::trim).filter(|rule| !rule.is_empty()) {
            filter = if rule == "off" {
                filter.enabled(false)
            } else if let Ok(rate) = rule.parse() {
                filter.sampling(rate)
            } else if let Some(pattern) = rule.strip_prefix('-') {
                filter.deny(pattern)
            } else {
                filter.allow(rule)
            };
        }
        filter.check()?;
        Ok(filter)
    }
}

/// Returns the sampling key of an event with this correlation id: its FNV-1a hash. Hosts and workers of different builds must select
/// the same events, so this is not the hash of the standard library, which may change.
#[must_use]
pub fn sample_key(correlation_id: &str) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    correlation_id.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// Distributes keys evenly, even consecutive ones, with one step of the generator SplitMix64.
const fn mixed(key: u64) -> u64 {
    let key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

fn check_patterns(field: &'static str, patterns: &[String]) -> Result<(), TelemetryFilterError> {
    let (count, bytes) = (patterns.len(), patterns.iter().map(String::len).sum::<usize>());
    let problem = if count > MAX_PATTERNS {
        format!("has {count} patterns, the limit is {MAX_PATTERNS}")
    } else if bytes > MAX_PATTERN_BYTES {
        format!("has {bytes} bytes of patterns, the limit is {MAX_PATTERN_BYTES}")
    } else {
        return Ok(());
    };
    Err(TelemetryFilterError { field, problem })
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
            let problem = format!("is {rate}, expected a number from 0 to 1");
            assert_eq!((error.field(), error.problem()), ("sampling.sampling_rate", problem.as_str()));
            assert_eq!(filter, TelemetryFilter::new());
        }
    }

    #[test]
    fn sampling_selects_the_same_events_in_all_builds() {
        // The published test vectors of FNV-1a and SplitMix64.
        assert_eq!(sample_key(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(sample_key("foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(mixed(0), 0xe220_a839_7b1d_cdaf);
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
        for rule in ["2", "-1", "NaN"] {
            let error = rule.parse::<TelemetryFilter>().unwrap_err();
            let expected = format!("`sampling.sampling_rate` is {rule}, expected a number from 0 to 1");
            assert_eq!(error.to_string(), expected);
        }
        let error = "a,".repeat(100).parse::<TelemetryFilter>().unwrap_err();
        assert_eq!(error.to_string(), "`filter.allow` has 100 patterns, the limit is 64");
    }
}
