//! [`ToolContext`]: the call to a host tool, without its arguments.

use std::{collections::BTreeMap, sync::Arc};

use snakepit_session::SessionId;
use tokio::time::Instant;

use super::extract::{CallScope, Extractor};
use crate::{
    CallId, CallMode, CallReports, Extensions, Principal, ProgressReport, ToolCall, ToolError, TraceContext,
};

/// The context of a host tool call: the call without its arguments. An [`Extractor`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ToolContext {
    /// The id of the call.
    pub call: CallId,
    /// The name of the tool.
    pub tool: Arc<str>,
    /// Whether the caller expects one value or a stream.
    pub mode: CallMode,
    /// The session of the call.
    pub session: Option<SessionId>,
    /// Key-value pairs from the caller.
    pub metadata: BTreeMap<String, String>,
    /// The deadline of the call.
    pub deadline: Option<Instant>,
    /// The trace of the call.
    pub trace: Option<TraceContext>,
    /// The running calls that wait for this one, outermost first. `None` for a call that is not nested.
    pub ancestors: Option<Arc<[CallId]>>,
    /// The party that makes the call.
    pub principal: Principal,
    /// The values that layers attached to the call.
    pub extensions: Extensions,
}

impl ToolContext {
    pub(super) fn of(call: &ToolCall) -> Self {
        Self {
            call: call.id,
            tool: Arc::clone(&call.tool),
            mode: call.mode,
            session: call.session.clone(),
            metadata: call.metadata.clone(),
            deadline: call.deadline,
            trace: call.trace.clone(),
            ancestors: call.ancestors.clone(),
            principal: call.principal.clone(),
            extensions: call.extensions.clone(),
        }
    }

    /// Reports the progress of the call to its caller, if the caller receives it. `done` and `total` are in any unit. Each report is
    /// sent, so report at most some twenty a second.
    ///
    /// ```
    /// use snakepit_registry::{FnTool, ToolContext};
    ///
    /// let tool = FnTool::new("import", |context: ToolContext| async move {
    ///     for file in 1..=3 {
    ///         context.report_progress(f64::from(file), Some(3.0), "copying");
    ///     }
    ///     3
    /// });
    /// ```
    pub fn report_progress(&self, done: f64, total: Option<f64>, message: impl Into<String>) {
        if let Some(reports) = self.extensions.get::<CallReports>().filter(|reports| reports.wants_progress())
        {
            reports.progress(ProgressReport::new(done, total, message.into()));
        }
    }
}

impl Extractor for ToolContext {
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        Ok(Self::of(scope.call()))
    }
}
