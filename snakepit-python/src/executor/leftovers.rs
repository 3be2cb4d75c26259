//! Bounds how long the tasks that an answered call left on the event loop keep the next calls waiting. The host takes the
//! worker for idle, and only this process knows better.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{Flags, warn};
use crate::{serve::exit_now, state::CallState, tools::PythonTools};

/// After this time, waiting calls go to another worker.
const GRACE: Duration = Duration::from_millis(50);
/// After this time, the process ends: longer than the event loop waits for tasks that it cancelled.
const END_WITHIN: Duration = Duration::from_secs(3);

/// Starts a thread that replaces the worker if the call has not ended in time.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn watch(
    tool: &Arc<str>,
    state: &Arc<CallState>,
    tools: &PythonTools,
    flags: &Arc<Flags>,
) -> io::Result<()> {
    let (tool, state) = (Arc::clone(tool), Arc::clone(state));
    let (tools, flags) = (tools.clone(), Arc::clone(flags));
    let watch = move || {
        if state.wait_ended(GRACE) {
            return;
        }
        warn(format_args!("the worker is replaced: a call of tool `{tool}` left tasks that do not end"));
        flags.retired.store(true, Relaxed);
        tools.close();
        if !state.wait_ended(END_WITHIN) {
            warn(format_args!("the tasks that a call of tool `{tool}` left are killed with the worker"));
            exit_now(1);
        }
    };
    std::thread::Builder::new().name("snakepit-leftovers".to_owned()).spawn(watch).map(drop)
}
