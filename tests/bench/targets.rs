//! The targets: the figure of each measurement, its baseline, and the bound.

use crate::{measurements::Runs, sample::short};

/// The bound of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// A minimum of the figure divided by the baseline of the same round.
    RatioAtLeast(f64),
    /// A maximum of the figure divided by the baseline of the same round.
    RatioAtMost(f64),
    /// A maximum of the figure minus the baseline of the same round.
    MoreByAtMost(f64),
    /// A minimum of the figure.
    AtLeast(f64),
    /// A maximum of the figure.
    AtMost(f64),
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    measurement: (&'static str, &'static str),
    baseline: Option<(&'static str, &'static str)>,
    rule: Rule,
}

/// A row with its results.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Verdict {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) target: String,
    pub(crate) measured: f64,
    pub(crate) baseline: Option<f64>,
    pub(crate) baseline_name: Option<&'static str>,
    pub(crate) ratio: Option<f64>,
    pub(crate) pass: bool,
}

const fn row(
    title: &'static str,
    unit: &'static str,
    measurement: (&'static str, &'static str),
    baseline: Option<(&'static str, &'static str)>,
    rule: Rule,
) -> Target {
    Target { title, unit, measurement, baseline, rule }
}

/// The targets of `cargo xtask bench`.
#[rustfmt::skip]
pub(crate) const TARGETS: [Target; 27] = {
    use Rule::{AtLeast, AtMost, MoreByAtMost, RatioAtLeast, RatioAtMost};
    const RATE: &str = "per_second";
    [
        row("embedded, 64 in flight", "calls/s", ("embedded-64", RATE), Some(("echo-multiplexed", RATE)), RatioAtLeast(0.5)),
        row("embedded, 64 in flight", "calls/s", ("embedded-64", RATE), Some(("grpcio-64", RATE)), RatioAtLeast(25.0)),
        row("embedded, 64 in flight, p99", "us", ("embedded-64", "p99_us"), None, AtMost(1200.0)),
        row("embedded, 1 in flight, p50", "us", ("embedded-1", "p50_us"), Some(("ping-pong", "p50_us")), RatioAtMost(2.0)),
        row("embedded, 1 in flight, p50", "us", ("embedded-1", "p50_us"), None, AtMost(100.0)),
        row("embedded at 30 % of that rate (open loop), p99", "us", ("embedded-open-30", "p99_us"), None, AtMost(1200.0)),
        row("embedded at 60 % of that rate (open loop), p99", "us", ("embedded-open-60", "p99_us"), None, AtMost(1200.0)),
        row("daemon, unary, 64 in flight", "calls/s", ("daemon-unary", RATE), Some(("echo-unary", RATE)), RatioAtLeast(0.45)),
        row("daemon, multiplexed, 64 in flight", "calls/s", ("daemon-multiplexed", RATE), Some(("echo-multiplexed", RATE)), RatioAtLeast(0.4)),
        row("daemon, GetSession, 64 in flight", "calls/s", ("daemon-get-session", RATE), Some(("daemon-ping", RATE)), RatioAtLeast(0.9)),
        row("daemon, Heartbeat, 64 in flight", "calls/s", ("daemon-heartbeat", RATE), Some(("daemon-ping", RATE)), RatioAtLeast(0.9)),
        row("one stream, embedded", "chunks/s", ("embedded-chunks", RATE), None, AtLeast(1e6)),
        row("one stream, embedded", "chunks/s", ("embedded-chunks", RATE), Some(("grpcio-chunks", RATE)), RatioAtLeast(100.0)),
        row("one stream, embedded, first chunk p50", "us", ("embedded-chunks", "first_p50_us"), None, AtMost(1000.0)),
        row("one stream, daemon, unary streaming", "chunks/s", ("daemon-chunks", RATE), None, AtLeast(5e5)),
        row("one stream, daemon, unary streaming", "chunks/s", ("daemon-chunks", RATE), Some(("grpcio-chunks", RATE)), RatioAtLeast(100.0)),
        row("one stream, daemon, unary streaming, first chunk p50", "us", ("daemon-chunks", "first_p50_us"), None, AtMost(1000.0)),
        row("one stream, daemon, multiplexed", "chunks/s", ("daemon-chunks-multiplexed", RATE), None, AtLeast(5e5)),
        row("one stream, daemon, multiplexed", "chunks/s", ("daemon-chunks-multiplexed", RATE), Some(("grpcio-chunks", RATE)), RatioAtLeast(100.0)),
        row("one stream, daemon, multiplexed, first chunk p50", "us", ("daemon-chunks-multiplexed", "first_p50_us"), None, AtMost(1000.0)),
        row("memory grown over 10 M chunks, embedded", "MiB", ("growth-embedded", "grown_mib"), None, AtMost(8.0)),
        row("memory grown over 10 M chunks, daemon", "MiB", ("growth-daemon", "grown_mib"), None, AtMost(8.0)),
        row("16 MiB echoed, one way", "MB/s", ("embedded-16mib", "mb_per_second"), Some(("grpcio-16mib", "mb_per_second")), RatioAtLeast(4.0)),
        row("start to four ready workers", "ms", ("start", "ms"), Some(("bare-start", "ms")), RatioAtMost(1.5)),
        row("daemon at rest", "MiB", ("memory", "host_mib"), None, AtMost(30.0)),
        row("a worker at rest", "MiB", ("memory", "worker_mib"), Some(("bare-memory", "worker_mib")), MoreByAtMost(8.0)),
        row("errors in the whole run", "", ("errors", "errors"), None, AtMost(0.0)),
    ]
};

/// The targets of `cargo xtask bench session`. Those of variables, files and Redis are bounds that reveal regressions.
#[rustfmt::skip]
pub(crate) const SESSION_TARGETS: [Target; 13] = {
    use Rule::{AtMost, RatioAtLeast, RatioAtMost};
    const RATE: &str = "per_second";
    [
        row("get a session, two threads", "/s", ("session-get", RATE), Some(("bare-get", RATE)), RatioAtLeast(0.5)),
        row("update a session, two threads", "/s", ("session-update", RATE), Some(("bare-update", RATE)), RatioAtLeast(0.5)),
        row("get a variable, two threads", "/s", ("variable-get", RATE), Some(("bare-get", RATE)), RatioAtLeast(0.15)),
        row("set a variable, two threads", "/s", ("variable-set", RATE), Some(("bare-update", RATE)), RatioAtLeast(0.08)),
        row("GetSession over gRPC, 64 in flight", "/s", ("daemon-get-session", RATE), Some(("daemon-ping", RATE)), RatioAtLeast(0.9)),
        row("GetVariable over gRPC, 64 in flight", "/s", ("daemon-get-variable", RATE), Some(("daemon-ping", RATE)), RatioAtLeast(0.8)),
        row("an idle session, of a million", "bytes", ("idle-session", "bytes"), None, AtMost(1024.0)),
        row("sweep of 1000 expired among a million", "us", ("sweep-among-1m", "us"), Some(("sweep-among-10k", "us")), RatioAtMost(4.0)),
        row("set in a file", "/s", ("file-set", RATE), Some(("bare-sync", RATE)), RatioAtLeast(0.2)),
        row("set in a file, 64 in flight", "/s", ("file-set-64", RATE), Some(("bare-sync", RATE)), RatioAtLeast(2.0)),
        row("set in Redis", "/s", ("redis-set", RATE), Some(("bare-redis", RATE)), RatioAtLeast(0.2)),
        row("set in Redis, 64 in flight", "/s", ("redis-set-64", RATE), Some(("bare-redis-64", RATE)), RatioAtLeast(0.05)),
        row("get from Redis, 64 in flight", "/s", ("redis-get-64", RATE), Some(("bare-redis-64", RATE)), RatioAtLeast(0.1)),
    ]
};

impl Target {
    /// Compares the results with the target. `None` if the measurement did not run.
    pub(crate) fn verdict(&self, runs: &Runs) -> Option<Verdict> {
        let measured = runs.median(self.measurement)?;
        let baseline = self.baseline.and_then(|baseline| runs.median(baseline));
        let compare =
            |combine: fn(f64, f64) -> f64| runs.median_of_pairs(self.measurement, self.baseline?, combine);
        let ratio = compare(|figure, baseline| figure / baseline);
        let (target, pass) = match self.rule {
            Rule::RatioAtLeast(min) => (format!(">= {}", ratio_text(min)), ratio? >= min),
            Rule::RatioAtMost(max) => (format!("<= {}", ratio_text(max)), ratio? <= max),
            Rule::MoreByAtMost(max) => {
                let difference = compare(|figure, baseline| figure - baseline)?;
                (format!("<= baseline + {} {}", short(max), self.unit), difference <= max)
            }
            Rule::AtLeast(min) => (format!(">= {} {}", short(min), self.unit), measured >= min),
            Rule::AtMost(max) => (format!("<= {} {}", short(max), self.unit), measured <= max),
        };
        let baseline_name = self.baseline.map(|(name, _)| name);
        let (title, unit) = (self.title, self.unit);
        Some(Verdict {
            title,
            unit,
            target: target.trim_end().to_owned(),
            measured,
            baseline,
            baseline_name,
            ratio,
            pass,
        })
    }
}

/// Formats a ratio, as a percentage up to about one.
pub(crate) fn ratio_text(ratio: f64) -> String {
    if ratio < 1.2 { format!("{:.0} %", ratio * 100.0) } else { format!("{}x", short(ratio)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    #[test]
    fn ratios_are_computed_within_each_round() {
        let mut runs = Runs::default();
        // In the second round, both are half as fast. In the third, only one of them is.
        for (product, baseline) in [(60.0, 100.0), (30.0, 50.0), (30.0, 100.0)] {
            runs.store("product", Sample::default().with("per_second", product));
            runs.store("baseline", Sample::default().with("per_second", baseline));
        }
        let target =
            |rule| row("it", "calls/s", ("product", "per_second"), Some(("baseline", "per_second")), rule);
        let verdict = target(Rule::RatioAtLeast(0.5)).verdict(&runs).unwrap();
        assert_eq!((verdict.ratio, verdict.pass, &*verdict.target), (Some(0.6), true, ">= 50 %"));
        assert!(!target(Rule::RatioAtLeast(0.61)).verdict(&runs).unwrap().pass);
        assert!(!target(Rule::RatioAtMost(0.5)).verdict(&runs).unwrap().pass);
        assert!(!target(Rule::AtLeast(31.0)).verdict(&runs).unwrap().pass);
        assert!(row("it", "", ("absent", "per_second"), None, Rule::AtMost(1.0)).verdict(&runs).is_none());
    }
}
