//! CPU time of processes in microseconds, and their resident memory in bytes.

use nix::time::{ClockId, clock_gettime};

/// The processes that serve a measurement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Processes {
    /// A server in a separate process, if there is one.
    pub(crate) host: Vec<u32>,
    pub(crate) workers: Vec<u32>,
}

/// The CPU time so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTime {
    /// This process.
    pub(crate) client: u64,
    pub(crate) host: u64,
    pub(crate) workers: u64,
}

impl Processes {
    pub(crate) fn cpu_time(&self) -> CpuTime {
        CpuTime { client: own_cpu_time(), host: cpu_time_of(&self.host), workers: cpu_time_of(&self.workers) }
    }
}

/// The CPU time of this process.
fn own_cpu_time() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("every process has a CPU clock");
    u64::try_from(time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000).expect("time is not negative")
}

/// The sum of the CPU times of other processes. The kernel counts in ticks of 10 ms.
fn cpu_time_of(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| ticks(*pid).unwrap_or(0) * 10_000).sum()
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The fields follow the parenthesized command name: user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The resident memory of a process, or 0 if it has ended.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
