//! The queues of reports on both sides of a stream. They are bounded, because nothing slows a tool down if its caller does not
//! read. The caller always receives the last progress, and a notice in place of lines that were dropped.

use std::time::SystemTime;

use super::ITEM_BYTES;
use crate::pb::{CallLog, CallReport, call_report::Report};

/// The logger of the notice.
const NOTICE_LOGGER: &str = "snakepit";
/// The text of the notice.
const NOTICE: &str = "output of the call was dropped here, because its caller reads too slowly";
/// The level of warnings in Python's logging.
const WARNING: i32 = 30;

/// The size of a report, in bytes.
pub(super) fn report_size(report: &CallReport) -> usize {
    ITEM_BYTES
        + match &report.report {
            Some(Report::Progress(progress)) => progress.message.len(),
            Some(Report::Log(log)) => log.stream.len() + log.logger.len() + log.text.len(),
            None => 0,
        }
}

/// The change in a queue's size, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SizeChange {
    pub(super) added: usize,
    pub(super) removed: usize,
}

/// Adds a report. In a full queue, progress replaces the previous progress of the call, and one notice replaces all lines of the call.
/// So a full queue grows by two reports for each call.
pub(super) fn push(queue: &mut Vec<CallReport>, report: CallReport, is_full: bool) -> SizeChange {
    let report = match &report.report {
        Some(Report::Progress(_)) if is_full => {
            let is_progress = |report: &Report| matches!(report, Report::Progress(_));
            if let Some(last) = last_of(queue, report.id, is_progress) {
                let change = SizeChange { added: report_size(&report), removed: report_size(last) };
                *last = report;
                return change;
            }
            report
        }
        Some(Report::Log(_)) if is_full => {
            let is_log = |report: &Report| matches!(report, Report::Log(_));
            if last_of(queue, report.id, is_log).is_some_and(|last| is_notice(last)) {
                return SizeChange::default();
            }
            notice(report.id)
        }
        _ => report,
    };
    let added = report_size(&report);
    queue.push(report);
    SizeChange { added, removed: 0 }
}

/// The last report of one kind for a call.
fn last_of(queue: &mut [CallReport], id: u64, is_kind: impl Fn(&Report) -> bool) -> Option<&mut CallReport> {
    queue.iter_mut().rev().find(|report| report.id == id && report.report.as_ref().is_some_and(&is_kind))
}

fn is_notice(report: &CallReport) -> bool {
    matches!(&report.report, Some(Report::Log(log)) if log.logger == NOTICE_LOGGER && log.text == NOTICE)
}

fn notice(id: u64) -> CallReport {
    let log = CallLog {
        stream: "stderr".to_owned(),
        level: WARNING,
        logger: NOTICE_LOGGER.to_owned(),
        text: NOTICE.to_owned(),
        time: Some(SystemTime::now().into()),
    };
    CallReport { id, report: Some(Report::Log(log)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::CallProgress;

    fn log(id: u64, text: &str) -> CallReport {
        CallReport { id, report: Some(Report::Log(CallLog { text: text.to_owned(), ..CallLog::default() })) }
    }

    fn progress(id: u64, done: f64, message: &str) -> CallReport {
        let message = message.to_owned();
        let progress = CallProgress { done, total: None, message };
        CallReport { id, report: Some(Report::Progress(progress)) }
    }

    fn texts(queue: &[CallReport]) -> Vec<String> {
        let text = |report: &CallReport| match &report.report {
            Some(Report::Log(log)) if is_notice(report) => format!("{} notice at {}", report.id, log.level),
            Some(Report::Log(log)) => format!("{} {}", report.id, log.text),
            Some(Report::Progress(progress)) => format!("{} at {}", report.id, progress.done),
            None => String::new(),
        };
        queue.iter().map(text).collect()
    }

    #[test]
    fn a_full_queue_keeps_the_last_progress_and_one_notice_per_call() {
        let (mut queue, mut size) = (Vec::new(), 0);
        let mut add = |queue: &mut Vec<CallReport>, report, is_full| {
            let SizeChange { added, removed } = push(queue, report, is_full);
            size += added;
            size -= removed;
            assert_eq!(size, queue.iter().map(report_size).sum::<usize>());
        };
        add(&mut queue, log(1, "one"), false);
        add(&mut queue, progress(1, 1.0, "a long message"), false);
        add(&mut queue, progress(2, 1.0, ""), false);
        for number in 0..1000 {
            add(&mut queue, log(1, "lost"), true);
            add(&mut queue, progress(1, f64::from(number), "short"), true);
            add(&mut queue, log(2, "lost"), true);
            add(&mut queue, progress(3, f64::from(number), ""), true);
        }
        let expected = ["1 one", "1 at 999", "2 at 1", "1 notice at 30", "2 notice at 30", "3 at 999"];
        assert_eq!(texts(&queue), expected);
        // A later gap has its own notice.
        add(&mut queue, log(1, "two"), false);
        add(&mut queue, log(1, "lost"), true);
        assert_eq!(texts(&queue)[6..], ["1 two", "1 notice at 30"]);
    }
}
