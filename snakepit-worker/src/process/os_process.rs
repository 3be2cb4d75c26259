//! What the operating system says about processes. Linux reads /proc; elsewhere nothing is known, and so nothing that
//! was not started here is ever killed.

use std::collections::HashMap;

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

/// When a process started, in clock ticks since boot: together with its pid, its identity.
#[cfg(target_os = "linux")]
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command's name in parentheses and may hold anything, so fields count from behind it.
    // The start time is field 22, the first one behind the name is field 3.
    stat.rsplit_once(") ")?.1.split(' ').nth(22 - 3)?.parse().ok()
}

/// The parent of a process.
#[cfg(target_os = "linux")]
pub(super) fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 4.
    stat.rsplit_once(") ")?.1.split(' ').nth(4 - 3)?.parse().ok()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn start_time(_: u32) -> Option<u64> {
    None
}

/// Identifies the boot that pids and start times belong to.
pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Identifies the namespace in which pids name processes, where there are several.
pub(super) fn pid_namespace() -> Option<String> {
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(namespace.to_string_lossy().into_owned())
}

/// Kills every process of a group. That none is left is no error.
pub(super) fn kill_group(pgid: u32) {
    match killpg(Pid::from_raw(pgid.cast_signed()), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        // macOS answers so for a group of zombies.
        Err(Errno::EPERM) => {}
        Err(error) => tracing::warn!(pgid, %error, "failed to kill a process group"),
    }
}

/// Sends SIGTERM to one process.
pub(super) fn terminate(pid: u32) {
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(pid, %error, "failed to send SIGTERM"),
    }
}

/// Kills one process that does not lead its group.
pub(super) fn kill_one(pid: u32) {
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(pid, %error, "failed to kill a process"),
    }
}

/// The members of groups that are known by an entry of their environment, such as `NAME=value`. Each wanted group may have
/// several entries, each with a tag; the answer is pairs of such a tag and a process. One pass over all processes.
#[cfg(target_os = "linux")]
pub(super) fn members_of(wanted: &HashMap<u32, Vec<(usize, String)>>) -> Vec<(usize, u32)> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|process| process.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let member = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The group is field 5, and the first one behind the name is field 3.
        let group = stat.rsplit_once(") ")?.1.split(' ').nth(5 - 3)?.parse::<u32>().ok()?;
        let entries = wanted.get(&group)?;
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let has = |entry: &str| environment.split(|byte| *byte == 0).any(|e| e == entry.as_bytes());
        entries.iter().find(|(_, entry)| has(entry)).map(|(tag, _)| (*tag, pid))
    };
    pids.filter_map(member).collect()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn members_of(_: &HashMap<u32, Vec<(usize, String)>>) -> Vec<(usize, u32)> {
    Vec::new()
}

/// The name of a signal by its number.
pub(super) fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}
