//! What processes use: CPU time in microseconds, resident memory in bytes.

use nix::time::{ClockId, clock_gettime};

/// The processes on the other side of a measure.
#[derive(Debug, Clone, Default)]
pub(crate) struct Processes {
    /// A server in a process of its own, if there is one.
    pub(crate) host: Vec<u32>,
    pub(crate) workers: Vec<u32>,
}

/// What all have used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) here: u64,
    pub(crate) host: u64,
    pub(crate) workers: u64,
}

impl Processes {
    pub(crate) fn used(&self) -> Used {
        Used { here: of_self(), host: of(&self.host), workers: of(&self.workers) }
    }
}

/// What this process has used so far.
fn of_self() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("every process has a CPU clock");
    u64::try_from(time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000).expect("time is not negative")
}

/// What other processes have used so far, all together. The kernel counts in ticks of 10 ms.
fn of(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| ticks(*pid).unwrap_or(0) * 10_000).sum()
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The fields follow the parenthesized command name: user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The resident memory of a process; 0 when it is gone.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
