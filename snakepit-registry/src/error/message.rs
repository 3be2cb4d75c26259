//! The parts of error messages.

use std::time::Duration;

use super::{CallStage, TimeLimit};
use crate::{ToolFailure, Violation};

/// The message of a failure. Constructors do not require the name of the tool.
pub(super) fn describe_failure(failure: &ToolFailure) -> String {
    match &*failure.tool {
        "" => format!("the tool failed: {failure}"),
        tool => format!("tool `{tool}` failed: {failure}"),
    }
}

/// The end of the message about a full queue.
pub(super) fn describe_queue(queued: usize, limit: usize) -> String {
    match limit {
        0 => "no worker is free, and the limit of waiting calls is 0, so calls never wait".to_owned(),
        _ => format!("{queued} calls wait, the limit is {limit}"),
    }
}

/// The end of the message about a missed deadline.
pub(super) fn describe_deadline(stage: CallStage, limit: Option<TimeLimit>, is_unanswered: bool) -> String {
    match limit {
        limit if is_unanswered => {
            let limit = limit.map(|limit| format!(", after {limit},")).unwrap_or_default();
            format!("passed{limit} and the host did not answer; check that it is running and reachable")
        }
        Some(TimeLimit::Caller(Duration::ZERO)) => {
            "had passed before the call was made; set a later deadline, or a timeout above zero".to_owned()
        }
        limit => {
            let limit = limit.map(|limit| format!(", after {limit}")).unwrap_or_default();
            format!("exceeded {stage}{limit}; raise the timeout or make the tool faster")
        }
    }
}

/// Rounds a duration for a message to milliseconds, because the time until a deadline has too many digits. Durations below 1 ms
/// stay as they are.
pub(super) fn rounded(time: Duration) -> Duration {
    const MILLISECOND: Duration = Duration::from_millis(1);
    let rounded = time.saturating_add(MILLISECOND / 2).as_millis();
    match u64::try_from(rounded) {
        Ok(millis) if time >= MILLISECOND => Duration::from_millis(millis),
        _ => time,
    }
}

/// Returns one sentence for all violations: "argument `a` of tool `t` is missing, `b` is null, and `c` is unknown".
pub(super) fn describe_violations(tool: &str, violations: &[Violation]) -> String {
    let parts: Vec<String> = violations
        .iter()
        .enumerate()
        .map(|(index, Violation { field, description })| match index {
            0 => format!("argument `{field}` of tool `{tool}` {description}"),
            _ => format!("`{field}` {description}"),
        })
        .collect();
    match parts.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{}, and {last}", others.join(", ")),
        _ => parts.concat(),
    }
}

/// Returns the last three lines of output for a message, each shortened to 160 characters. After a fatal signal, the first lines of
/// Python's stacks follow. The status details contain all lines.
pub(super) fn output_tail(lines: &[String]) -> String {
    const MAX_LINES: usize = 3;
    const MAX_LINE_CHARS: usize = 160;
    const STACKS: &str = "Fatal Python error";
    // The stacks follow the output. They begin with the code that crashed, and end with that of the runtime.
    let begin = lines.iter().position(|line| line.starts_with(STACKS)).unwrap_or(lines.len());
    let (output, stacks) = lines.split_at(begin);
    let output = &output[output.len().saturating_sub(MAX_LINES)..];
    let is_useful = |line: &&String| line.starts_with(STACKS) || line.trim_start().starts_with("File ");
    let stacks = stacks.iter().filter(is_useful).take(MAX_LINES);
    let last: Vec<String> = output
        .iter()
        .chain(stacks)
        .map(|line| line.trim())
        .map(|line| match line.char_indices().nth(MAX_LINE_CHARS) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => line.to_owned(),
        })
        .collect();
    if last.is_empty() { String::new() } else { format!("; its last output: {}", last.join(" | ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ToolError, ToolFailure, error::PANIC};

    #[test]
    fn the_message_of_a_missed_deadline_names_the_limit() {
        let error = ToolError::deadline_exceeded("add", CallStage::Queued);
        let second = Duration::from_secs(1);
        let late = error.with_time_limit(None).with_time_limit(Some(TimeLimit::Host(60 * second)));
        let late = late.with_time_limit(Some(TimeLimit::Caller(second)));
        assert_eq!(
            late.to_string(),
            "deadline of tool `add` exceeded while queued, after the host's default timeout of 60s; raise the timeout or make \
             the tool faster"
        );
        let silent = ToolError::deadline_exceeded("add", CallStage::Running).of_unanswered_call();
        assert_eq!(
            silent.with_time_limit(Some(TimeLimit::Caller(second))).to_string(),
            "deadline of tool `add` passed, after the caller's timeout of 1s, and the host did not answer; check that it is \
             running and reachable"
        );
    }

    #[test]
    fn the_message_of_a_missed_deadline_rounds_the_limit_and_explains_a_deadline_in_the_past() {
        let late = |limit| {
            let error = ToolError::deadline_exceeded("add", CallStage::Queued);
            error.with_time_limit(Some(TimeLimit::Caller(limit))).to_string()
        };
        assert!(
            late(Duration::from_nanos(299_969_565)).contains(", after the caller's timeout of 300ms; raise")
        );
        assert!(late(Duration::from_nanos(1_999_600_000)).contains(" of 2s;"));
        assert!(late(Duration::from_micros(20)).contains(" of 20µs;"), "short limits are not rounded");
        assert!(late(Duration::MAX).contains("timeout of "), "the rounding does not overflow");
        assert_eq!(
            late(Duration::ZERO),
            "deadline of tool `add` had passed before the call was made; set a later deadline, or a timeout above zero"
        );
    }

    #[test]
    fn the_message_of_a_queue_without_room_says_that_calls_never_wait() {
        let full = |limit| ToolError::Overloaded { queued: limit, limit, retry_after: None }.to_string();
        assert_eq!(full(9), "pool is overloaded: 9 calls wait, the limit is 9; retry later or add workers");
        assert_eq!(
            full(0),
            "pool is overloaded: no worker is free, and the limit of waiting calls is 0, so calls never wait; retry later or \
             add workers"
        );
    }

    #[test]
    fn the_message_of_a_panic_names_it_once() {
        let failure = ToolFailure {
            error_type: PANIC.into(),
            message: "panicked: oh no".into(),
            ..ToolFailure::default()
        };
        assert_eq!(failure.to_string(), "panicked: oh no");
    }

    #[test]
    fn the_message_of_a_failure_without_a_tool_has_no_empty_name() {
        let error = ToolError::from(ToolFailure::new("ValueError", "no"));
        assert_eq!(error.to_string(), "the tool failed: ValueError: no");
        let error = error.with_tool("add").with_tool("other");
        assert_eq!(error.to_string(), "tool `add` failed: ValueError: no", "the first name stays");
        let error = ToolError::from(crate::HostError::new("no"));
        assert_eq!(error.to_string(), "the tool failed: HostToolError: no");
    }

    #[test]
    fn the_message_of_invalid_arguments_contains_all_violations() {
        let invalid = |fields: &[&str]| {
            let violations = fields.iter().map(|field| Violation::new(*field, "is missing"));
            ToolError::invalid_arguments("add", violations.collect())
        };
        assert_eq!(invalid(&["a"]).to_string(), "argument `a` of tool `add` is missing");
        assert_eq!(
            invalid(&["a[3].b", "c", "d"]).to_string(),
            "argument `a[3].b` of tool `add` is missing, `c` is missing, and `d` is missing"
        );
    }

    #[test]
    fn the_message_of_a_lost_worker_contains_its_shortened_last_output() {
        let lost = |lines: Vec<String>| {
            let error = ToolError::WorkerLost {
                worker: "w".into(),
                reason: "it exited with code 1".into(),
                may_have_run: true,
                was_sent: true,
                output_lines: lines,
                retry_after: None,
                source: None,
            };
            error.to_string()
        };
        assert_eq!(lost(vec![]), "worker `w` was lost: it exited with code 1");
        let long = lost((0..20).map(|n| format!("{n}: {}", "ü".repeat(8 * 1024))).collect());
        assert!(long.contains("; its last output: 17: üü") && long.ends_with("ü..."), "{long}");
        assert!(long.chars().count() < 600, "{long}");
        let crash = "one\ntwo\nthree\nabout to die\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  \
                     File \"shop.py\", line 4 in crash\n  File \"shop.py\", line 9 in tool\n  File \"worker.py\", line 74 in main\n\n\
                     Extension modules: numpy";
        assert_eq!(
            lost(crash.lines().map(str::to_owned).collect()),
            "worker `w` was lost: it exited with code 1; its last output: two | three | about to die | Fatal Python error: \
             Segmentation fault | File \"shop.py\", line 4 in crash | File \"shop.py\", line 9 in tool"
        );
    }
}
