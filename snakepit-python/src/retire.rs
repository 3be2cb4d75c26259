//! Stops a worker that a call has left unable to run further calls. The worker shuts down as if the host had stopped it.

use std::{
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{SigHandler, SigSet, Signal, kill, signal},
    unistd::{alarm, getpid},
};
use pyo3::{PyErr, Python};
use tokio::time::Instant;

use crate::{
    exit::exit_now,
    plan::AfterCancel,
    state::{CallState, Interruption},
};

/// The time for which a retiring worker still answers requests. Meanwhile, the host can query whether the cancelled call has
/// ended, and the worker rejects other calls.
const LINGER: Duration = Duration::from_millis(250);
/// The limit for Python's finalization: exit handlers, and threads that Python joins.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit for printing the final error, in seconds.
const PRINT_TIMEOUT_SECONDS: u32 = 2;

/// Returns the reason why the worker must be replaced after a cancelled call, or `None` if it can continue. The call
/// began at `began_at`.
pub(crate) fn retire_reason(
    policy: AfterCancel,
    state: &CallState,
    began_at: Instant,
) -> Option<&'static str> {
    match (policy, state.interruption()) {
        (AfterCancel::Keep, _) => None,
        (AfterCancel::Replace, Interruption::Own | Interruption::Library) => {
            Some("its call was interrupted, and `after_cancel` is \"replace\"")
        }
        (AfterCancel::Auto, Interruption::Library) => {
            Some("its call was interrupted inside a library, whose state may be inconsistent")
        }
        (AfterCancel::Auto | AfterCancel::Replace, _) if has_children_since(began_at) => {
            Some("its call was cancelled and left processes behind")
        }
        (AfterCancel::Auto | AfterCancel::Replace, _) => None,
    }
}

/// Stops the worker after [`LINGER`], as SIGTERM does.
///
/// # Errors
/// If the system provides no thread.
pub(crate) fn stop_serving() -> io::Result<()> {
    let end = || {
        thread::sleep(LINGER);
        // A process may always signal itself.
        let _ = kill(getpid(), Signal::SIGTERM);
        thread::sleep(EXIT_TIMEOUT);
        exit_now(0);
    };
    thread::Builder::new().name("snakepit-exit".to_owned()).spawn(end).map(drop)
}

/// Prints panics without a backtrace. Capturing a backtrace allocates, which would deadlock on the lock of the backtrace
/// printer if the worker's memory is exhausted.
pub(crate) fn print_panics_briefly() {
    set_hook(Box::new(|panic| {
        let thread = thread::current();
        // A failed write cannot be reported.
        let _ = writeln!(io::stderr(), "thread '{}' {panic}", thread.name().unwrap_or("?"));
    }));
}

/// Prints the error and exits without running Python's exit handlers, because the interpreter may be broken. The host does not
/// receive further answers.
#[allow(unsafe_code)]
pub(crate) fn print_and_exit(py: Python<'_>, error: &PyErr) -> ! {
    // Without memory, printing may panic, and the panic handler may deadlock. The kernel's alarm needs neither memory
    // nor a thread.
    // SAFETY: this restores the default action and installs no handler.
    let _ = unsafe { signal(Signal::SIGALRM, SigHandler::SigDfl) };
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGALRM);
    let _ = blocked.thread_unblock();
    alarm::set(PRINT_TIMEOUT_SECONDS);
    let _ = catch_unwind(AssertUnwindSafe(|| error.print(py)));
    exit_now(1)
}

/// Returns whether a child process that started after `time` is alive. Returns `false` where there is no `/proc`.
#[cfg(target_os = "linux")]
fn has_children_since(time: Instant) -> bool {
    use nix::time::{ClockId, clock_gettime};

    // The kernel rounds start times down to this unit.
    const TICK: Duration = Duration::from_millis(10);
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return false };
    let earliest_start = Duration::from(now).saturating_sub(time.elapsed() + TICK);
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return false };
    threads.flatten().any(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children
            .split_whitespace()
            .any(|child| start_time(child).is_some_and(|start| start >= earliest_start))
    })
}

#[cfg(not(target_os = "linux"))]
fn has_children_since(_: Instant) -> bool {
    false
}

/// Returns the start time of a process since boot, or `None` if it has ended.
#[cfg(target_os = "linux")]
fn start_time(pid: &str) -> Option<Duration> {
    // Field 3 is the state, and field 22 the start time. The name before them may contain any character, but ends with
    // the last `)`.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let ticks: u64 = fields.nth(18)?.parse().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let per_second = u64::try_from(per_second).ok().filter(|ticks| *ticks > 0)?;
    Some(Duration::from_millis(ticks.saturating_mul(1000) / per_second))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test needs child processes")]
    fn only_living_children_that_started_later_count() {
        let sleep = || Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let before = Instant::now();
        let mut child = sleep();
        assert!(has_children_since(before));
        while has_children_since(Instant::now()) {}
        child.kill().unwrap();
        // The child is a zombie until it is reaped.
        while has_children_since(before) {}
        child.wait().unwrap();
    }
}
