//! The last failed launch or lost worker, which explains why a pool has no workers.

use std::sync::Arc;

use snakepit_worker::WorkerId;

/// The maximum number of tools that a failure names.
const MAX_TOOLS: usize = 5;

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
        /// The tools of the calls that were lost with the worker, without duplicates, and at most [`MAX_TOOLS`].
        tools: Vec<Arc<str>>,
        /// Whether more tools were lost.
        has_more: bool,
    },
}

impl LastFailure {
    /// Records the exit of a worker. Keeps the tools if the loss of their calls was recorded before.
    pub(super) fn exited(last: Option<Self>, id: &WorkerId, reason: String) -> Self {
        match last {
            Some(Self::Exit { worker, tools, has_more, .. }) if worker == *id => {
                Self::Exit { worker, reason, tools, has_more }
            }
            _ => Self::Exit { worker: id.clone(), reason, tools: Vec::new(), has_more: false },
        }
    }

    /// Records that a call was lost with its worker. Keeps the reason if the exit was recorded before, because it is
    /// more specific.
    pub(super) fn lost_call(last: Option<Self>, id: &WorkerId, reason: &str, tool: Arc<str>) -> Self {
        match last {
            Some(Self::Exit { worker, reason, mut tools, mut has_more }) if worker == *id => {
                if !tools.contains(&tool) {
                    match tools.len() {
                        MAX_TOOLS.. => has_more = true,
                        _ => tools.push(tool),
                    }
                }
                Self::Exit { worker, reason, tools, has_more }
            }
            _ => {
                let (worker, reason) = (id.clone(), reason.to_owned());
                Self::Exit { worker, reason, tools: vec![tool], has_more: false }
            }
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
            Self::Exit { worker, reason, tools, .. } if tools.is_empty() => format!(
                "workers start, but end before they have answered a call; the last one, `{worker}`: {reason}"
            ),
            Self::Exit { worker, reason, tools, has_more } => format!(
                "workers start, but are lost with the calls that they run; the last one, `{worker}`, was lost during {}: {reason}",
                describe_calls(tools, has_more)
            ),
        };
        (reason, String::new())
    }
}

/// Names the tools in a fixed order, because the calls of a lost worker end in any order.
fn describe_calls(mut tools: Vec<Arc<str>>, has_more: bool) -> String {
    if let [tool] = &tools[..] {
        return format!("a call of tool `{tool}`");
    }
    tools.sort();
    let names: Vec<_> = tools.iter().map(|tool| format!("`{tool}`")).collect();
    format!("calls of tools {}{}", names.join(", "), if has_more { " and others" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tools_of_a_lost_worker_are_named_up_to_a_bound() {
        let id = WorkerId::new("w");
        let lose = |tools: &[&str]| {
            let lost =
                |last, tool: &&str| Some(LastFailure::lost_call(last, &id, "SIGSEGV", Arc::from(*tool)));
            tools.iter().fold(None, lost).unwrap().into_reason_and_error().0
        };
        let text = lose(&["b", "a", "b"]);
        assert!(text.ends_with("was lost during calls of tools `a`, `b`: SIGSEGV"), "{text}");
        let text = lose(&["a", "b", "c", "d", "e", "f", "f", "g"]);
        assert!(text.ends_with("calls of tools `a`, `b`, `c`, `d`, `e` and others: SIGSEGV"), "{text}");
    }

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
