//! Limits how long tasks that an answered call left on the event loop may delay the next calls.
//!
//! The host already treats the worker as idle, so only this process can enforce the limit.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{ExecutorFlags, warn};
use crate::{exit::exit_now, state::CallState, tools::PythonTools};

/// The time after which the worker is retired, so that waiting calls run on another worker.
const GRACE: Duration = Duration::from_millis(50);
/// The additional time after which the process exits. Longer than the event loop waits for tasks that it cancelled.
const EXIT_AFTER: Duration = Duration::from_secs(3);

/// Starts a thread that replaces the worker if the tasks do not end in time.
///
/// # Errors
/// If the system provides no thread.
pub(super) fn watch(
    tool: &Arc<str>,
    state: &Arc<CallState>,
    tools: &PythonTools,
    flags: &Arc<ExecutorFlags>,
) -> io::Result<()> {
    let (tool, state) = (Arc::clone(tool), Arc::clone(state));
    let (tools, flags) = (tools.clone(), Arc::clone(flags));
    let watch = move || {
        if state.wait_ended(GRACE) {
            return;
        }
        warn(format_args!("the worker is replaced: a call of tool `{tool}` left tasks that do not end"));
        flags.is_retired.store(true, Relaxed);
        tools.close();
        if !state.wait_ended(EXIT_AFTER) {
            warn(format_args!("the tasks that a call of tool `{tool}` left are killed with the worker"));
            exit_now(1);
        }
    };
    std::thread::Builder::new().name("snakepit-tasks".to_owned()).spawn(watch).map(drop)
}
