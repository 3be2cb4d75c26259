//! The last failed launch or lost worker, which explains why a pool has no workers.

use std::sync::Arc;

use snakepit_worker::WorkerId;

/// The last failure of a worker.
#[derive(Debug, Clone)]
pub(crate) enum LastFailure {
    /// The launch failed.
    Launch {
        /// The error of the launch. It names the worker.
        error: String,
    },
    /// The worker exited unexpectedly.
    Exit {
        worker: WorkerId,
        reason: String,
        /// The tool of the call that was lost with the worker, if any.
        tool: Option<Arc<str>>,
    },
}

impl LastFailure {
    /// Records the exit of a worker. Keeps the tool if the loss of its call was recorded before.
    pub(super) fn exited(last: Option<Self>, id: &WorkerId, reason: String) -> Self {
        match last {
            Some(Self::Exit { worker, tool, .. }) if worker == *id => Self::Exit { worker, reason, tool },
            _ => Self::Exit { worker: id.clone(), reason, tool: None },
        }
    }

    /// Records that a call was lost with its worker. Keeps the reason if the exit was recorded before, because it is
    /// more specific.
    pub(super) fn lost_call(last: Option<Self>, id: &WorkerId, reason: &str, tool: Arc<str>) -> Self {
        match last {
            Some(Self::Exit { worker, reason, .. }) if worker == *id => {
                Self::Exit { worker, reason, tool: Some(tool) }
            }
            _ => Self::Exit { worker: id.clone(), reason: reason.to_owned(), tool: Some(tool) },
        }
    }
}

impl LastFailure {
    /// The reason why no worker is available, and the error of the last launch, which may contain output of the worker.
    pub(crate) fn into_reason_and_error(self) -> (String, String) {
        let reason = match self {
            Self::Launch { error } => {
                return ("every worker failed to start several times in a row".to_owned(), error);
            }
            Self::Exit { worker, reason, tool: Some(tool) } => format!(
                "workers start, but are lost with the calls that they run; the last one, `{worker}`, was lost during a \
                 call of tool `{tool}`: {reason}"
            ),
            Self::Exit { worker, reason, tool: None } => format!(
                "workers start, but end before they have answered a call; the last one, `{worker}`: {reason}"
            ),
        };
        (reason, String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_the_call_and_the_exit_of_the_worker_may_come_in_either_order() {
        let (id, tool) = (WorkerId::new("w"), Arc::<str>::from("crash"));
        let call_first = LastFailure::lost_call(None, &id, "connection closed", Arc::clone(&tool));
        let call_first = LastFailure::exited(Some(call_first), &id, "SIGSEGV".to_owned());
        let exit_first = LastFailure::exited(None, &id, "SIGSEGV".to_owned());
        let exit_first = LastFailure::lost_call(Some(exit_first), &id, "connection closed", tool);
        for last_failure in [call_first, exit_first] {
            let (text, _) = last_failure.into_reason_and_error();
            assert!(text.ends_with("`w`, was lost during a call of tool `crash`: SIGSEGV"), "{text}");
        }
        let other = LastFailure::exited(None, &WorkerId::new("x"), "SIGSEGV".to_owned());
        let (text, _) = LastFailure::exited(Some(other), &id, "code 1".to_owned()).into_reason_and_error();
        assert!(!text.contains("`x`"), "{text}");
    }
}
