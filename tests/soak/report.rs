//! Renders the tables of faults and calls.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use snakepit_proto::status::details_of;
use snakepit_server::{Error, status::from_tool_error};

use crate::{checks::RunCounts, faults::Recoveries, tally::Tally};

/// The reason of a failure, by its name on the wire.
pub(crate) fn reason(error: &Error) -> String {
    match error {
        Error::Tool(error) => {
            let status = from_tool_error(error.clone());
            details_of(&status).reason.unwrap_or_else(|| format!("{:?}", status.code()))
        }
        Error::Session(_) => "Session".to_owned(),
        Error::Unreachable { .. } => "Unreachable".to_owned(),
        Error::TimedOut { .. } => "TimedOut".to_owned(),
        Error::Rejected { .. } => "Rejected".to_owned(),
        other => other.to_string(),
    }
}

/// Renders the tables of a run.
pub(crate) fn render(minutes: f64, recoveries: &Recoveries, tally: &Tally, runs: &RunCounts) -> String {
    let mut text = String::new();
    let faults: usize = recoveries.values().map(Vec::len).sum();
    let outcomes = tally.outcomes();
    let calls: u64 = outcomes.values().sum();
    let _ = writeln!(text, "{minutes} minutes, {faults} faults, {calls} calls, writes and updates\n");

    let _ = writeln!(text, "| fault | injected | recovery, median | longest |");
    let _ = writeln!(text, "| --- | ---: | ---: | ---: |");
    for (name, times) in recoveries {
        let mut times = times.clone();
        times.sort();
        let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
        let _ = writeln!(text, "| {name} | {} | {} | {} |", times.len(), short(median), short(longest));
    }

    let mut kinds: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
    for ((kind, outcome), count) in &outcomes {
        kinds.entry(kind).or_default().push((outcome, *count));
    }
    let _ = writeln!(text, "\n| kind of call | ended | succeeded | failed, by reason |");
    let _ = writeln!(text, "| --- | ---: | ---: | --- |");
    for (kind, counts) in kinds {
        let all: u64 = counts.iter().map(|(_, count)| count).sum();
        let ok: u64 =
            counts.iter().filter(|(outcome, _)| ["ok", "update"].contains(outcome)).map(|(_, n)| n).sum();
        let failures: Vec<_> = counts
            .iter()
            .filter(|(outcome, _)| !["ok", "update"].contains(outcome))
            .map(|(outcome, count)| format!("{outcome} {count}"))
            .collect();
        let _ = writeln!(text, "| {kind} | {all} | {ok} | {} |", failures.join(", "));
    }

    let RunCounts { ran, succeeded, duplicated, missing } = runs;
    let _ = writeln!(
        text,
        "\n{ran} calls of the tools `mark` and `mark_async` ran. {succeeded} of them succeeded for Rust callers. {duplicated} ran \
         twice, and {missing} succeeded without running."
    );
    let violations = tally.violations();
    let _ = writeln!(text, "Violations: {}.", violations.len());
    text
}

/// The text of docs/soak.md with new tables.
pub(crate) fn page(tables: &str) -> String {
    const MARKER: &str = "The tables below are the output of one run.\n\n";
    let page = include_str!("../../docs/soak.md");
    let (introduction, _) = page.split_once(MARKER).expect("docs/soak.md has the sentence before its tables");
    format!("{introduction}{MARKER}{tables}")
}

fn short(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
