//! The average execution time of each tool, from the workers' reports. It predicts the load of the next call.

use std::{collections::HashMap, sync::Arc, time::Duration};

use snakepit_registry::{CallMode, ToolCall};

use crate::scheduler::Load;

/// The maximum number of tools with an average. It bounds the memory for names that clients invent. Calls to other tools count
/// as long.
const MAX_TOOLS: usize = 4096;
/// The maximum size of the arguments of a brief call, in bytes. Calls with larger arguments count as long.
const MAX_ARGUMENT_BYTES: usize = 64 * 1024;
/// The inverse weight of the latest call in the average.
const INVERSE_WEIGHT: u32 = 8;

/// The exponential moving average of each tool's execution time.
#[derive(Debug, Default)]
pub(super) struct ToolTimes(HashMap<Arc<str>, Duration>);

impl ToolTimes {
    /// The expected load of a call with this many bytes. Calls to a tool without an average count as long.
    pub(super) fn load(&self, call: &ToolCall, bytes: usize) -> Load {
        // The duration of a stream depends on its reader, and large arguments take time to send.
        if call.mode == CallMode::Streaming || bytes > MAX_ARGUMENT_BYTES {
            return Load::LONG;
        }
        self.0.get(&call.tool).map_or(Load::LONG, |average| Load::of(*average))
    }

    /// Adds the execution time of a call to the average of its tool.
    pub(super) fn record(&mut self, tool: &Arc<str>, execution_time: Duration) {
        if let Some(average) = self.0.get_mut(tool) {
            *average = (*average * (INVERSE_WEIGHT - 1) + execution_time) / INVERSE_WEIGHT;
        } else if self.0.len() < MAX_TOOLS {
            self.0.insert(Arc::clone(tool), execution_time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_decides_whether_a_tool_is_brief() {
        let call = ToolCall::new("add");
        let mut tool_times = ToolTimes::default();
        assert_eq!(tool_times.load(&call, 0), Load::LONG);
        tool_times.record(&call.tool, Duration::from_micros(8));
        assert_eq!(tool_times.load(&call, 0), Load::of(Duration::from_micros(8)));
        assert_eq!(tool_times.load(&call.clone().streaming(), 0), Load::LONG);
        tool_times.record(&call.tool, Duration::from_secs(1));
        assert_eq!(tool_times.load(&call, 0), Load::LONG);
        (0..100).for_each(|_| tool_times.record(&call.tool, Duration::from_micros(8)));
        assert!(tool_times.load(&call, 0).is_brief());
    }
}
