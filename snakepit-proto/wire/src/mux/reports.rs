//! Conversions of call reports.

use std::time::{SystemTime, UNIX_EPOCH};

use snakepit_proto::{mux::Replies, pb};
use snakepit_registry::{CallReports, LogLine, ProgressReport, ToolCall};

/// The parts of a `CallStart` frame that the callee handles itself.
#[derive(Debug, Clone, Copy)]
pub struct CallOrigin {
    /// The id of the call on its stream.
    pub id: u64,
    /// The host's id of the call. 0 if the caller is a client.
    pub request_id: u64,
    /// The reports that the caller receives.
    pub reports: Option<pb::CallReports>,
}

impl CallOrigin {
    /// Reads the parts of a frame.
    #[must_use]
    pub fn of(start: &pb::CallStart) -> Self {
        Self { id: start.id, request_id: start.request_id, reports: start.reports }
    }
}

/// The reports that the caller of a call receives.
pub(super) fn to_wire(call: &ToolCall) -> Option<pb::CallReports> {
    let reports = CallReports::of(call)?;
    Some(pb::CallReports { progress: reports.wants_progress(), logs: reports.wants_logs() })
}

/// Sends the reports of a call to its caller.
#[must_use]
pub fn attach_reports(call: ToolCall, origin: &CallOrigin, replies: &Replies) -> ToolCall {
    let Some(reports) = origin.reports else { return call };
    let id = origin.id;
    let call = match reports.progress {
        false => call,
        true => {
            let replies = replies.clone();
            call.on_progress(move |ProgressReport { done, total, message, .. }| {
                let progress = pb::CallProgress { done, total, message };
                let report = Some(pb::call_report::Report::Progress(progress));
                replies.send_report(pb::CallReport { id, report });
            })
        }
    };
    if !reports.logs {
        return call;
    }
    let replies = replies.clone();
    call.on_log(move |LogLine { stream, level, logger, text, time, .. }| {
        let (stream, time) = (stream.to_string(), Some(time.into()));
        let log = pb::CallLog { stream, level, logger, text, time };
        replies.send_report(pb::CallReport { id, report: Some(pb::call_report::Report::Log(log)) });
    })
}

/// Passes a report on to the caller.
pub fn report_from_wire(report: pb::CallReport, reports: &CallReports) {
    match report.report {
        Some(pb::call_report::Report::Progress(pb::CallProgress { done, total, message })) => {
            reports.progress(ProgressReport::new(done, total, message));
        }
        Some(pb::call_report::Report::Log(log)) => reports.log(log_from_wire(log)),
        None => {}
    }
}

fn log_from_wire(log: pb::CallLog) -> LogLine {
    let pb::CallLog { stream, level, logger, text, time } = log;
    let time = time.and_then(|time| SystemTime::try_from(time).ok()).unwrap_or(UNIX_EPOCH);
    LogLine::new(stream, text).with_level(level, logger).at(time)
}
