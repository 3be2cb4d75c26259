//! How long each tool usually takes, from what the workers report: the load that a call of it is expected to be.

use std::{collections::HashMap, sync::Arc, time::Duration};

use snakepit_registry::{CallMode, ToolCall};

use crate::scheduler::Load;

/// Tools beyond these are taken for long: whoever makes up names must not fill the memory.
const MOST_TOOLS: usize = 4096;
/// Calls with more are taken for long, in bytes.
const MOST_ARGUMENT_BYTES: usize = 64 * 1024;
/// The weight of the latest call, as one in so many.
const WEIGHT: u32 = 8;

/// Moving averages, by tool.
#[derive(Debug, Default)]
pub(super) struct Times(HashMap<Arc<str>, Duration>);

impl Times {
    /// What a call of so many bytes is expected to be: long, until others of its tool have shown otherwise.
    pub(super) fn load(&self, call: &ToolCall, bytes: usize) -> Load {
        // How long a stream takes is its reader's business too, and large arguments take time to hand over.
        if call.mode == CallMode::Streaming || bytes > MOST_ARGUMENT_BYTES {
            return Load::LONG;
        }
        self.0.get(&call.tool).map_or(Load::LONG, |average| Load::of(*average))
    }

    /// A call of this tool took so long.
    pub(super) fn record(&mut self, tool: &Arc<str>, took: Duration) {
        if let Some(average) = self.0.get_mut(tool) {
            *average = (*average * (WEIGHT - 1) + took) / WEIGHT;
        } else if self.0.len() < MOST_TOOLS {
            self.0.insert(Arc::clone(tool), took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_brief_once_it_has_shown_so_and_long_after_one_long_call() {
        let call = ToolCall::new("add");
        let mut times = Times::default();
        assert_eq!(times.load(&call, 0), Load::LONG);
        times.record(&call.tool, Duration::from_micros(8));
        assert_eq!(times.load(&call, 0), Load::of(Duration::from_micros(8)));
        assert_eq!(times.load(&call.clone().streaming(), 0), Load::LONG);
        times.record(&call.tool, Duration::from_secs(1));
        assert_eq!(times.load(&call, 0), Load::LONG);
        (0..100).for_each(|_| times.record(&call.tool, Duration::from_micros(8)));
        assert!(times.load(&call, 0).is_brief());
    }
}
