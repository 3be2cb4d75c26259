//! Why a pool has no workers, in the words of its last failed launch or lost worker.

use std::{fmt, sync::Arc};

use snakepit_worker::WorkerId;

/// The last thing that went wrong with a worker.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// It did not start.
    Launch {
        /// The launch's error, which names the worker.
        error: String,
    },
    /// It ended although nobody asked it to.
    Exit {
        worker: WorkerId,
        reason: String,
        /// The tool whose call it was lost with, if there was one.
        tool: Option<Arc<str>>,
    },
}

impl Trouble {
    /// A worker ended. Its call, if it was lost with one, may have said so already.
    pub(super) fn ended(last: Option<Self>, id: &WorkerId, reason: String) -> Self {
        match last {
            Some(Self::Exit { worker, tool, .. }) if worker == *id => Self::Exit { worker, reason, tool },
            _ => Self::Exit { worker: id.clone(), reason, tool: None },
        }
    }

    /// A call was lost with its worker, whose end may be known already, and then says more.
    pub(super) fn lost_call(last: Option<Self>, id: &WorkerId, reason: &str, tool: Arc<str>) -> Self {
        match last {
            Some(Self::Exit { worker, reason, .. }) if worker == *id => {
                Self::Exit { worker, reason, tool: Some(tool) }
            }
            _ => Self::Exit { worker: id.clone(), reason: reason.to_owned(), tool: Some(tool) },
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch { error } => {
                write!(f, "every worker failed to start several times in a row; the last error: {error}")
            }
            Self::Exit { worker, reason, tool: Some(tool) } => write!(
                f,
                "workers start, but are lost with the calls that they run; the last one, `{worker}`, was lost during a \
                 call of tool `{tool}`: {reason}"
            ),
            Self::Exit { worker, reason, tool: None } => write!(
                f,
                "workers start, but end before they have answered a call; the last one, `{worker}`: {reason}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_and_the_end_of_a_worker_come_in_either_order() {
        let (id, tool) = (WorkerId::new("w"), Arc::<str>::from("crash"));
        let call_first = Trouble::lost_call(None, &id, "connection closed", Arc::clone(&tool));
        let call_first = Trouble::ended(Some(call_first), &id, "SIGSEGV".to_owned());
        let exit_first = Trouble::ended(None, &id, "SIGSEGV".to_owned());
        let exit_first = Trouble::lost_call(Some(exit_first), &id, "connection closed", tool);
        for trouble in [call_first, exit_first] {
            let text = trouble.to_string();
            assert!(text.ends_with("`w`, was lost during a call of tool `crash`: SIGSEGV"), "{text}");
        }
        let other = Trouble::ended(None, &WorkerId::new("x"), "SIGSEGV".to_owned());
        assert!(!Trouble::ended(Some(other), &id, "code 1".to_owned()).to_string().contains('x'));
    }
}
