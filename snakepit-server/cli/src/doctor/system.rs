//! Checks of this program, the clock, the run directory and the system limits.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use nix::sys::{
    resource::{Resource, getrlimit},
    statvfs::statvfs,
};
use snakepit_proto::launch::{PROTOCOL, VERSION};
use snakepit_worker::{error_chain, process::RunDir};

use super::Check;

/// The number of open files below which few clients can connect.
const FEW_FILES: u64 = 1024;
/// The number of open files that a daemon without clients and workers needs.
const DAEMON_FILES: u64 = 64;
/// The number of open files that the daemon needs for each worker.
const WORKER_FILES: u64 = 16;
/// The space that the run directory needs, in bytes.
const MIN_SPACE: u64 = 16 * 1024 * 1024;
/// The memory of a worker with numpy, in bytes.
const WORKER_MEMORY: u64 = 64 * 1024 * 1024;

pub(super) fn daemon() -> Check {
    let path = std::env::current_exe()
        .map_or_else(|_| "an unknown path".to_owned(), |path| path.display().to_string());
    Check::ok("program", format!("snakepit {VERSION} (protocol {PROTOCOL}) in {path}"))
}

/// Checks the clock. Deadlines and session expiry need one that is roughly right.
pub(super) fn clock() -> Check {
    let now = SystemTime::now();
    let built = std::env::current_exe().and_then(fs::metadata).and_then(|metadata| metadata.modified()).ok();
    let shown = humantime::format_rfc3339_seconds(now);
    match built.and_then(|built| built.duration_since(now).ok()) {
        Some(ahead) if ahead > Duration::from_secs(60) => {
            let evidence = format!("it is {shown}, before this program was installed");
            Check::failed("clock", evidence, "set the clock, for example with an NTP client")
        }
        _ => Check::ok("clock", format!("it is {shown}")),
    }
}

/// Creates a run directory as the daemon does, and removes it.
pub(super) async fn run_dir(base: Option<&Path>) -> Check {
    let base = base.map(Path::to_owned);
    let created = tokio::task::spawn_blocking(move || RunDir::create(base.as_deref())).await;
    let run_dir = match created {
        Ok(Ok(run_dir)) => run_dir,
        Ok(Err(error)) => {
            let fix = "set --run-dir or $SNAKEPIT_RUN_DIR to a private directory with a short path";
            return Check::failed("run directory", error_chain(&error).to_string(), fix);
        }
        Err(error) => return Check::failed("run directory", error.to_string(), "report this defect"),
    };
    let base = run_dir.path().parent().unwrap_or(run_dir.path());
    let mut evidence = format!("{} can be used", base.display());
    if run_dir.killed_leftovers() > 0 {
        evidence.push_str(&format!("; killed {} processes of a crashed daemon", run_dir.killed_leftovers()));
    }
    #[allow(clippy::useless_conversion, reason = "the types differ between systems")]
    let space = statvfs(base)
        .map(|space| u64::from(space.blocks_available()).saturating_mul(u64::from(space.fragment_size())));
    match space {
        Ok(space) if space < MIN_SPACE => {
            let fix = "free some space, or choose another directory with --run-dir";
            Check::failed("run directory", format!("{evidence}, but its file system is full"), fix)
        }
        _ => Check::ok("run directory", evidence),
    }
}

pub(super) fn open_files(workers: usize) -> Check {
    let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => hard,
        Err(error) => return Check::skipped("open files", error.to_string()),
    };
    let needed = DAEMON_FILES + WORKER_FILES * workers as u64;
    let evidence = match limit {
        u64::MAX => "no limit".to_owned(),
        limit => format!("at most {limit} open files; {workers} workers need about {needed}"),
    };
    let fix = "raise the hard limit with `ulimit -Hn` or systemd's LimitNOFILE=";
    match limit {
        _ if limit < needed => Check::failed("open files", evidence, fix),
        _ if limit < FEW_FILES => {
            Check::warning("open files", format!("{evidence}, so few clients can connect"), fix)
        }
        _ => Check::ok("open files", evidence),
    }
}

/// Compares the available memory with the memory that the workers need.
pub(super) fn memory(workers: usize) -> Check {
    let Some(available) = available_memory() else {
        return Check::skipped("memory", "the system does not report the available memory");
    };
    let needed = WORKER_MEMORY.saturating_mul(workers as u64);
    let mebibytes = |bytes: u64| bytes / (1024 * 1024);
    let evidence = format!(
        "{} MiB are available; {workers} workers with numpy use about {} MiB, plus models and data",
        mebibytes(available),
        mebibytes(needed)
    );
    match available < needed {
        true => Check::warning(
            "memory",
            evidence,
            "run fewer workers, or raise the memory limit of the container",
        ),
        false => Check::ok("memory", evidence),
    }
}

/// The available memory in bytes, capped by the limit of the cgroup.
fn available_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit =
        number("/sys/fs/cgroup/memory.max").or_else(|| number("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    let used = number("/sys/fs/cgroup/memory.current")
        .or_else(|| number("/sys/fs/cgroup/memory/memory.usage_in_bytes"));
    let group = limit.map(|limit| limit.saturating_sub(used.unwrap_or_default()));
    Some(group.map_or(machine, |group| group.min(machine)))
}
