//! Queries and kills processes of the operating system. Queries read `/proc` on Linux and find nothing on other systems, where
//! a host therefore cannot find the processes of dead hosts.

use std::collections::HashMap;

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

/// Fields of `/proc/<pid>/stat`.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// The state as a letter. `Z` is a zombie.
    state: u8,
    /// The parent's pid.
    pub(super) parent: u32,
    /// The id of the process group.
    group: u32,
    /// The start time, in clock ticks since boot. Pid and start time together identify a process.
    pub(super) start_time: u64,
}

#[cfg(target_os = "linux")]
impl Stat {
    pub(super) fn of(pid: u32) -> Option<Self> {
        use std::io::Read;

        // Large enough to read the fields below at once.
        let mut text = [0; 1024];
        let length = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut text).ok()?;
        Self::parse(&text[..length])
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // Field 2 is the command's name in parentheses and may contain any bytes, so parsing starts after it, at field 3.
        let name_end = text.iter().rposition(|byte| *byte == b')')?;
        let fields = str::from_utf8(text.get(name_end + 2..)?).ok()?;
        let mut fields = fields.split(' ');
        Some(Self {
            state: *fields.next()?.as_bytes().first()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            start_time: fields.nth(22 - 6)?.parse().ok()?,
        })
    }
}

/// The start time of a process, in clock ticks since boot.
#[cfg(target_os = "linux")]
pub(super) fn start_time(pid: u32) -> Option<u64> {
    Stat::of(pid).map(|stat| stat.start_time)
}

/// Whether a process has ended and waits for its parent to collect its exit status.
#[cfg(target_os = "linux")]
pub(super) fn is_zombie(pid: u32) -> bool {
    Stat::of(pid).is_some_and(|stat| stat.state == b'Z')
}

#[cfg(not(target_os = "linux"))]
pub(super) fn start_time(_: u32) -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_zombie(_: u32) -> bool {
    false
}

/// The id of the current boot. Pids and start times are unique only within one.
pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The PID namespace of this process, on systems that have them.
pub(super) fn pid_namespace() -> Option<String> {
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(namespace.to_string_lossy().into_owned())
}

/// Kills all processes of a group. An empty group is not an error.
pub(super) fn kill_group(pgid: u32) {
    match killpg(Pid::from_raw(pgid.cast_signed()), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        // macOS returns EPERM for a group of zombies.
        Err(Errno::EPERM) => {}
        Err(error) => tracing::warn!(pgid, %error, "failed to kill a process group"),
    }
}

/// Sends SIGTERM to a process.
pub(super) fn terminate(pid: u32) {
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(pid, %error, "failed to send SIGTERM"),
    }
}

/// Kills a single process, not its group.
pub(super) fn kill_one(pid: u32) {
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(pid, %error, "failed to kill a process"),
    }
}

/// Finds members of process groups by an entry of their environment, such as `NAME=value`, in one pass over all processes.
///
/// `entries_by_group` maps the id of a group to pairs of a tag and an entry. Returns pairs of a tag and the pid of a member that
/// has the entry.
#[cfg(target_os = "linux")]
pub(super) fn members_of(entries_by_group: &HashMap<u32, Vec<(usize, String)>>) -> Vec<(usize, u32)> {
    if entries_by_group.is_empty() {
        return Vec::new();
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|process| process.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let member = |pid: u32| {
        let entries = entries_by_group.get(&Stat::of(pid)?.group)?;
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let has_entry = |entry: &str| environment.split(|byte| *byte == 0).any(|e| e == entry.as_bytes());
        entries.iter().find(|(_, entry)| has_entry(entry)).map(|(tag, _)| (*tag, pid))
    };
    pids.filter_map(member).collect()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn members_of(_: &HashMap<u32, Vec<(usize, String)>>) -> Vec<(usize, u32)> {
    Vec::new()
}

/// The name of a signal, such as `SIGSEGV`.
pub(super) fn signal_name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |signal| signal.as_str().to_owned())
}
