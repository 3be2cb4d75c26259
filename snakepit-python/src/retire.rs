//! The end of a worker that a cut call made unfit for more: it stops as if its host had asked it to.

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
    plan::AfterCancel,
    serve::exit_now,
    state::{CallState, Cut},
};

/// How long the worker still answers: its host asks whether the call has ended, and learns from a refusal that it is to
/// hand no more calls to this worker.
const LINGER: Duration = Duration::from_millis(250);
/// How long Python may take to end: hooks that run at exit, threads that it waits for. Nobody else bounds that.
const EXIT_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to print why the worker cannot go on, in seconds.
const PRINT_WITHIN: u32 = 2;

/// Why a cancelled call that ended costs its worker; `None` if it does not. `began` is when it began.
pub(crate) fn reason(policy: AfterCancel, state: &CallState, began: Instant) -> Option<&'static str> {
    match (policy, state.cut()) {
        (AfterCancel::Keep, _) => None,
        (AfterCancel::Replace, Cut::Own | Cut::Library) => {
            Some("its call was cut, and `after_cancel` says so")
        }
        (AfterCancel::Auto, Cut::Library) => {
            Some("its call was cut in code of a library, whose state may be broken")
        }
        (AfterCancel::Auto | AfterCancel::Replace, _) if has_children_since(began) => {
            Some("its call was cancelled and left processes behind")
        }
        (AfterCancel::Auto | AfterCancel::Replace, _) => None,
    }
}

/// Has the worker stop soon, by the way on which it always stops.
///
/// # Errors
/// When the system refuses a thread.
pub(crate) fn stop_serving() -> io::Result<()> {
    let end = || {
        thread::sleep(LINGER);
        // To itself this is always allowed.
        let _ = kill(getpid(), Signal::SIGTERM);
        thread::sleep(EXIT_WITHIN);
        exit_now(0);
    };
    thread::Builder::new().name("snakepit-exit".to_owned()).spawn(end).map(drop)
}

/// Has panics printed without a backtrace. To make one takes memory: a worker without any would wait forever for a lock that
/// it holds.
pub(crate) fn print_panics_briefly() {
    set_hook(Box::new(|panic| {
        let thread = thread::current();
        // Whether anybody reads it makes no difference.
        let _ = writeln!(io::stderr(), "thread '{}' {panic}", thread.name().unwrap_or("?"));
    }));
}

/// Prints the error and exits, skipping Python's exit handlers: the interpreter may be broken, and the host gets no answers any
/// more.
#[allow(unsafe_code)]
pub(crate) fn fail(py: Python<'_>, error: &PyErr) -> ! {
    // Without memory, printing may panic, and the panic handler may deadlock. The kernel's alarm needs neither memory nor a thread.
    // SAFETY: this installs no handler.
    let _ = unsafe { signal(Signal::SIGALRM, SigHandler::SigDfl) };
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGALRM);
    let _ = blocked.thread_unblock();
    alarm::set(PRINT_WITHIN);
    let _ = catch_unwind(AssertUnwindSafe(|| error.print(py)));
    exit_now(1)
}

/// Whether a process that this one started since then lives. Not known, and so denied, where there is no `/proc`.
#[cfg(target_os = "linux")]
fn has_children_since(began: Instant) -> bool {
    use nix::time::{ClockId, clock_gettime};

    // What the system tells of starts is rounded down to such a tick.
    const TICK: Duration = Duration::from_millis(10);
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return false };
    let since = Duration::from(now).saturating_sub(began.elapsed() + TICK);
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return false };
    threads.flatten().any(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_whitespace().any(|child| started(child).is_some_and(|start| start >= since))
    })
}

#[cfg(not(target_os = "linux"))]
fn has_children_since(_: Instant) -> bool {
    false
}

/// When a process started, counted from the start of the system; `None` if it has ended.
#[cfg(target_os = "linux")]
fn started(pid: &str) -> Option<Duration> {
    // The state is field 3, the start field 22; what stands before them may contain anything, but ends with the last `)`.
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
    #[allow(clippy::disallowed_methods, reason = "the children are what is tested")]
    fn only_children_that_live_and_started_since_then_count() {
        let sleep = || Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let before = Instant::now();
        let mut child = sleep();
        assert!(has_children_since(before));
        while has_children_since(Instant::now()) {}
        child.kill().unwrap();
        // Not reaped yet, it is there, but it does not live.
        while has_children_since(before) {}
        child.wait().unwrap();
    }
}
