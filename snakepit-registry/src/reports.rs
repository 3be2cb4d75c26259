//! [`CallReports`]: the reports that the caller of a call receives while it runs.

use std::{fmt, sync::Arc, time::SystemTime};

use crate::{ToolCall, guard::catch};

/// The progress of a call, as its tool reports it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ProgressReport {
    /// The work that is done, in the unit of the tool.
    pub done: f64,
    /// The whole work, if the tool knows it.
    pub total: Option<f64>,
    /// A human-readable message. May be empty.
    pub message: String,
}

impl ProgressReport {
    /// Creates a report.
    #[must_use]
    pub const fn new(done: f64, total: Option<f64>, message: String) -> Self {
        Self { done, total, message }
    }

    /// The part of the work that is done, from 0 to 1. `None` without a total, or if the tool reported NaN.
    #[must_use]
    pub fn fraction(&self) -> Option<f64> {
        let total = self.total.filter(|total| *total > 0.0)?;
        let fraction = self.done / total;
        (!fraction.is_nan()).then(|| fraction.clamp(0.0, 1.0))
    }
}

/// A line of a call's output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: Arc<str>,
    /// The level of a Python log record, such as 20 for INFO. 0 for other output.
    pub level: i32,
    /// The name of the logger. Empty for other output.
    pub logger: String,
    /// The line, without its end. Control characters are escaped.
    pub text: String,
    /// The time at which the host received it.
    pub time: SystemTime,
}

impl LogLine {
    /// Creates a line that arrives now, without level and logger.
    #[must_use]
    pub fn new(stream: impl Into<Arc<str>>, text: String) -> Self {
        Self { stream: stream.into(), level: 0, logger: String::new(), text, time: SystemTime::now() }
    }

    /// Sets the level and the name of the logger.
    #[must_use]
    pub fn with_level(mut self, level: i32, logger: String) -> Self {
        (self.level, self.logger) = (level, logger);
        self
    }

    /// Sets the time.
    #[must_use]
    pub const fn at(mut self, time: SystemTime) -> Self {
        self.time = time;
        self
    }
}

type Receiver<T> = Arc<dyn Fn(T) + Send + Sync>;

/// The functions that receive the reports of one call. They are stored as an extension of the call, because few calls have any.
///
/// The host calls them on tasks that serve other calls, too, so they must not block.
#[derive(Clone, Default)]
pub struct CallReports {
    progress: Option<Receiver<ProgressReport>>,
    logs: Option<Receiver<LogLine>>,
}

impl CallReports {
    /// The reports of a call. `None` if its caller receives none.
    #[inline]
    #[must_use]
    pub fn of(call: &ToolCall) -> Option<&Self> {
        call.extensions.get()
    }

    /// Whether the caller receives progress.
    #[must_use]
    pub const fn wants_progress(&self) -> bool {
        self.progress.is_some()
    }

    /// Whether the caller receives output.
    #[must_use]
    pub const fn wants_logs(&self) -> bool {
        self.logs.is_some()
    }

    /// The receivers of reports from nested calls. Their output reaches the caller of this call. Their progress does not,
    /// because it does not measure the work of this call.
    #[must_use]
    pub fn for_nested(&self) -> Option<Self> {
        let logs = Some(Arc::clone(self.logs.as_ref()?));
        Some(Self { progress: None, logs })
    }

    /// Attaches the receivers to a call, except those that it has.
    pub fn attach_to(self, call: &mut ToolCall) {
        let own = Self::of(call).cloned().unwrap_or_default();
        call.extensions
            .insert(Self { progress: own.progress.or(self.progress), logs: own.logs.or(self.logs) });
    }

    /// Passes on a report. A panic of the receiver affects neither the tool nor the host.
    pub fn progress(&self, report: ProgressReport) {
        if let Some(receiver) = &self.progress {
            let _ = catch(|| receiver(report));
        }
    }

    /// Passes on a line of output. A panic of the receiver affects neither the tool nor the host.
    pub fn log(&self, line: LogLine) {
        if let Some(receiver) = &self.logs {
            let _ = catch(|| receiver(line));
        }
    }
}

impl fmt::Debug for CallReports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallReports")
            .field("progress", &self.wants_progress())
            .field("logs", &self.wants_logs())
            .finish()
    }
}

impl ToolCall {
    /// Passes the progress that the tool reports to a function, which must not block. Replaces an earlier function.
    #[must_use]
    pub fn on_progress(mut self, receiver: impl Fn(ProgressReport) + Send + Sync + 'static) -> Self {
        let mut reports = CallReports::of(&self).cloned().unwrap_or_default();
        reports.progress = Some(Arc::new(receiver));
        self.extensions.insert(reports);
        self
    }

    /// Passes the output of the tool to a function, line by line. The function must not block. Replaces an earlier function.
    #[must_use]
    pub fn on_log(mut self, receiver: impl Fn(LogLine) + Send + Sync + 'static) -> Self {
        let mut reports = CallReports::of(&self).cloned().unwrap_or_default();
        reports.logs = Some(Arc::new(receiver));
        self.extensions.insert(reports);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{FnTool, Registry, ReplyBody, ToolContext};

    #[test]
    fn a_call_passes_on_the_reports_that_its_caller_receives() {
        assert!(CallReports::of(&ToolCall::new("train")).is_none());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let [progress, lines] = [(); 2].map(|()| Arc::clone(&seen));
        let call = ToolCall::new("train").on_progress(move |report| {
            progress.lock().unwrap().push(format!("{:?} {}", report.fraction(), report.message));
        });
        let reports = CallReports::of(&call).unwrap();
        assert!(reports.wants_progress() && !reports.wants_logs());
        reports.log(LogLine::new("stdout", "dropped".to_owned()));
        let call = call.on_log(move |line| lines.lock().unwrap().push(line.text));
        let reports = CallReports::of(&call).unwrap();
        reports.progress(ProgressReport::new(3.0, Some(4.0), "epoch 3".to_owned()));
        reports.progress(ProgressReport::new(9.0, None, String::new()));
        reports.progress(ProgressReport::new(9.0, Some(4.0), String::new()));
        reports.log(LogLine::new("stderr", "a line".to_owned()));
        assert_eq!(*seen.lock().unwrap(), ["Some(0.75) epoch 3", "None ", "Some(1.0) ", "a line"]);

        for done in [f64::NAN, f64::INFINITY] {
            assert_eq!(ProgressReport::new(done, Some(done), String::new()).fraction(), None);
        }

        // The receivers of a nested call.
        assert!(CallReports::of(&ToolCall::new("t").on_progress(|_| {})).unwrap().for_nested().is_none());
        let inherited = reports.for_nested().unwrap();
        assert!(inherited.wants_logs() && !inherited.wants_progress());
        let own = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&own);
        let mut nested = ToolCall::new("save").on_log(move |line| lines.lock().unwrap().push(line.text));
        inherited.clone().attach_to(&mut nested);
        CallReports::of(&nested).unwrap().log(LogLine::new("stdout", "own".to_owned()));
        assert_eq!(*own.lock().unwrap(), ["own"]);
        let mut nested = ToolCall::new("save");
        inherited.attach_to(&mut nested);
        CallReports::of(&nested).unwrap().log(LogLine::new("stdout", "nested".to_owned()));
        assert_eq!(seen.lock().unwrap().last().map(String::as_str), Some("nested"));
    }

    #[tokio::test]
    async fn a_receiver_that_panics_does_not_affect_the_tool() {
        let tool = FnTool::new("import", |context: ToolContext| async move {
            context.report_progress(1.0, None, "");
            1
        });
        let registry = Registry::new();
        registry.register_host_tool(tool).unwrap();
        let call =
            ToolCall::new("import").on_progress(|_| panic!("on purpose")).on_log(|_| panic!("on purpose"));
        CallReports::of(&call).unwrap().log(LogLine::new("stdout", String::new()));
        let reply = registry.call_host_tool(call).await.unwrap();
        assert!(matches!(reply.body, ReplyBody::Value(value) if value.to_serde::<i64>().unwrap() == 1));
    }
}
