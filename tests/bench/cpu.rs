//! CPU time of processes, in microseconds.

use nix::time::{ClockId, clock_gettime};

/// What this process has used so far.
pub(crate) fn of_self() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("every process has a CPU clock");
    u64::try_from(time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000).expect("time is not negative")
}

/// What other processes have used so far, all together. The kernel counts in ticks of 10 ms.
pub(crate) fn of(pids: &[u32]) -> u64 {
    pids.iter().map(|pid| ticks(*pid).unwrap_or(0) * 10_000).sum()
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The fields follow the parenthesized command name: user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}
