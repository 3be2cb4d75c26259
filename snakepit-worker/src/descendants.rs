//! Finds and kills all descendants of a worker, including daemonized ones (ADR 25).
//!
//! A worker carries a [`Mark`] in its soft limit `RLIMIT_LOCKS`, which Linux has not enforced since 2.4.25. Children inherit
//! the limit through `fork`, `exec`, `setsid` and a cleared environment, and the host can read the limits of all processes of
//! the same user. On other systems, this module does not find or kill processes.

use std::{
    collections::HashSet,
    io, thread,
    time::{Duration, Instant},
};

/// How long to repeat the scan. A process may fork just before it is killed, so one scan can miss its child.
const SCAN_TIMEOUT: Duration = Duration::from_millis(200);
/// The pause between two scans, in which killed processes exit.
const SCAN_INTERVAL: Duration = Duration::from_millis(5);

/// The mark that a worker and its descendants carry: the run id of the host in the upper 32 bits, a number of the worker in
/// the lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

impl Mark {
    /// Creates a new mark. Returns `None` if the run id does not consist of eight hexadecimal digits.
    #[must_use]
    pub fn next(run_id: &str) -> Option<Self> {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        open_process_list();
        let run = parse_run_id(run_id)?;
        Some(Self(u64::from(run) << 32 | u64::from(NUMBER.fetch_add(1, Relaxed))))
    }

    /// The mark of this process, if it is a worker of this run or descends from one.
    #[must_use]
    pub fn own(run_id: &str) -> Option<Self> {
        let mark = read(std::process::id())?;
        mark.belongs_to_run(run_id).then_some(mark)
    }

    /// Whether the mark belongs to a worker of this run.
    #[must_use]
    pub fn belongs_to_run(self, run_id: &str) -> bool {
        parse_run_id(run_id).is_some_and(|run| self.0 >> 32 == u64::from(run))
    }

    /// Marks a process. Children that it starts from now on inherit the mark.
    ///
    /// # Errors
    /// If the process has exited, or its hard limit for `RLIMIT_LOCKS` is too low.
    pub fn apply_to(self, pid: u32) -> io::Result<()> {
        write(pid, self)
    }
}

fn parse_run_id(run_id: &str) -> Option<u32> {
    let is_run_id = run_id.len() == 8 && run_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_run_id.then(|| u32::from_str_radix(run_id, 16).ok()).flatten()
}

/// Opens `/proc` and keeps it open, so that later scans need no new file descriptor.
pub fn open_process_list() {
    open_proc();
}

/// Kills all processes except this one whose mark satisfies `is_wanted`, and returns their pids.
///
/// Repeats the scan until it finds no more processes. Gives up after 200 ms and at least two scans, because the remaining
/// processes may be in uninterruptible system calls. Blocks: a scan takes milliseconds, or about a second if `/proc` cannot be
/// listed.
#[allow(clippy::disallowed_methods, reason = "blocks, and also runs on threads without a tokio runtime")]
pub fn kill_marked(is_wanted: impl Fn(Mark) -> bool) -> HashSet<u32> {
    let (start, mut killed) = (Instant::now(), HashSet::new());
    for scan in 1_u32.. {
        let killed_now = kill_in_one_scan(&is_wanted);
        let is_done = killed_now.is_empty();
        killed.extend(killed_now);
        if is_done || (scan > 1 && start.elapsed() > SCAN_TIMEOUT) {
            break;
        }
        thread::sleep(SCAN_INTERVAL);
    }
    killed
}

/// Scans all processes once, and kills those whose mark satisfies `is_wanted`, except this one. Returns their pids without those
/// of zombies.
pub fn kill_in_one_scan(is_wanted: impl Fn(Mark) -> bool) -> Vec<u32> {
    let is_wanted = |pid: &u32| read(*pid).is_some_and(&is_wanted) && *pid != std::process::id();
    // Lists all of them before killing any.
    let pids: Vec<u32> = pids().filter(is_wanted).collect();
    let kill_and_check = |pid: &u32| {
        let was_running = !is_zombie(*pid);
        // Kills zombies too. A process looks like a zombie when its main thread has exited but other threads still run.
        kill(*pid);
        was_running
    };
    pids.into_iter().filter(kill_and_check).collect()
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
use linux::{is_zombie, kill, open_proc, pids, read, write};

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod linux {
    use std::{
        fs, io, process, ptr,
        sync::{Mutex, PoisonError},
    };

    use nix::{
        dir::Dir,
        errno::Errno,
        fcntl::OFlag,
        libc::{self, RLIMIT_LOCKS, rlimit},
        sys::{
            signal::{Signal, kill as send},
            stat::Mode,
        },
        unistd::Pid,
    };

    use super::Mark;

    /// The upper bound of `kernel.pid_max`.
    const MAX_PID: u32 = 1 << 22;

    /// The directory `/proc`.
    static PROC_DIR: Mutex<Option<Dir>> = Mutex::new(None);

    pub(super) fn open_proc() {
        let mut dir = PROC_DIR.lock().unwrap_or_else(PoisonError::into_inner);
        if dir.is_none() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            *dir = Dir::open("/proc", flags, Mode::empty()).ok();
        }
    }

    /// The pids of all processes, or all possible pids if `/proc` cannot be listed.
    pub(super) fn pids() -> Box<dyn Iterator<Item = u32>> {
        if let Some(pids) = pids_from_open_dir() {
            return Box::new(pids.into_iter());
        }
        match fs::read_dir("/proc") {
            Ok(entries) => {
                Box::new(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
            }
            Err(_) => Box::new(1..MAX_PID),
        }
    }

    /// Reads the open `/proc`. Returns `None` if a tool closed the descriptor, which may refer to another file by now.
    fn pids_from_open_dir() -> Option<Vec<u32>> {
        let mut dir = PROC_DIR.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = dir.as_mut()?.iter().map_while(Result::ok);
        let pids: Vec<u32> =
            entries.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect();
        pids.contains(&process::id()).then_some(pids)
    }

    pub(super) fn read(pid: u32) -> Option<Mark> {
        let limit = swap_limit(pid, None).ok()?;
        (limit.rlim_cur != libc::RLIM_INFINITY).then_some(Mark(limit.rlim_cur))
    }

    pub(super) fn write(pid: u32, mark: Mark) -> io::Result<()> {
        let rlimit { rlim_max, .. } = swap_limit(pid, None)?;
        swap_limit(pid, Some(&rlimit { rlim_cur: mark.0, rlim_max })).map(drop)
    }

    /// Returns the limit of a process, and sets it to `new` if given.
    #[allow(unsafe_code)]
    fn swap_limit(pid: u32, new: Option<&rlimit>) -> io::Result<rlimit> {
        let mut old = rlimit { rlim_cur: 0, rlim_max: 0 };
        let new = new.map_or(ptr::null(), ptr::from_ref);
        // SAFETY: `new` is null or points to a valid limit, and `old` points to a writable one.
        Errno::result(unsafe { libc::prlimit(pid.cast_signed(), RLIMIT_LOCKS, new, &raw mut old) })?;
        Ok(old)
    }

    /// Whether the process is a zombie, which has no executable. Unlike reading the state, this needs no file descriptor.
    pub(super) fn is_zombie(pid: u32) -> bool {
        let is_missing = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        let program = fs::read_link(format!("/proc/{pid}/exe"));
        program.is_err_and(is_missing) && fs::symlink_metadata(format!("/proc/{pid}")).is_ok()
    }

    pub(super) fn kill(pid: u32) {
        // The process may have exited meanwhile.
        let _ = send(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
use elsewhere::{is_zombie, kill, open_proc, pids, read, write};

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
mod elsewhere {
    use std::{io, iter};

    use super::Mark;

    pub(super) fn open_proc() {}

    pub(super) fn pids() -> impl Iterator<Item = u32> {
        iter::empty()
    }

    pub(super) fn read(_: u32) -> Option<Mark> {
        None
    }

    pub(super) fn write(_: u32, _: Mark) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn is_zombie(_: u32) -> bool {
        false
    }

    pub(super) fn kill(_: u32) {}
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[allow(clippy::disallowed_methods, reason = "stand-ins for workers")]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// Starts a shell, marks it, and then lets it run a script. Returns the number that the script prints.
    fn spawn_marked(mark: Option<Mark>, script: &str) -> (Child, u32) {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("read -r go; {script}")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        if let Some(mark) = mark {
            mark.apply_to(child.id()).unwrap();
        }
        drop(child.stdin.take());
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (child, line.trim().parse().unwrap())
    }

    /// Starts a daemon in a new session, with another parent and an empty environment, and prints its pid.
    const DAEMON: &str = "(env -i setsid sh -c 'echo $$; exec sleep 600' >&1 &) ; exit 0";

    #[test]
    fn only_marked_daemons_are_killed() {
        let [ours, other] = [Mark::next("dead00aa").unwrap(), Mark::next("dead00aa").unwrap()];
        let (mut worker, daemon) = spawn_marked(Some(ours), DAEMON);
        worker.wait().unwrap();
        let (mut other_worker, other_daemon) = spawn_marked(Some(other), DAEMON);
        other_worker.wait().unwrap();
        let (mut unmarked_shell, unmarked_daemon) = spawn_marked(None, DAEMON);
        unmarked_shell.wait().unwrap();
        assert_eq!(kill_marked(|mark| mark == ours), HashSet::from([daemon]));
        assert!(is_zombie(daemon) || read(daemon).is_none());
        assert!(kill_marked(|mark| mark == ours).is_empty());
        assert!(read(other_daemon) == Some(other) && read(unmarked_daemon).is_none());
        assert_eq!(kill_marked(|mark| mark.belongs_to_run("dead00aa")), HashSet::from([other_daemon]));
        assert!(!is_zombie(unmarked_daemon));
        kill(unmarked_daemon);
    }

    #[test]
    fn processes_that_fork_faster_than_a_scan_are_killed() {
        let mark = Mark::next("dead00ab").unwrap();
        // Each process starts the next one and exits.
        let chain = "next() { (setsid sh -c \"$1\" next \"$1\" >/dev/null 2>&1 &); }; echo $$; \
                     LINK='sleep 0.001; (setsid sh -c \"$1\" next \"$1\" >/dev/null 2>&1 &)'; next \"$LINK\" ; exit 0";
        let (mut first, _) = spawn_marked(Some(mark), chain);
        first.wait().unwrap();
        let _ = kill_marked(|other| other == mark);
        assert!(kill_in_one_scan(|other| other == mark).is_empty());
    }

    /// Set in the subprocess that runs a single test.
    const IN_SUBPROCESS: &str = "SNAKEPIT_TEST_IN_SUBPROCESS";

    #[test]
    fn zombies_need_one_scan_and_no_descriptor() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};

        // Runs in a separate process, because the limit would affect other tests.
        if std::env::var_os(IN_SUBPROCESS).is_none() {
            let name = "descendants::tests::zombies_need_one_scan_and_no_descriptor";
            let mut subprocess = Command::new(std::env::current_exe().unwrap());
            let output = subprocess.args(["--exact", name]).env(IN_SUBPROCESS, "1").output().unwrap();
            assert!(output.status.success(), "{output:?}");
            return;
        }
        let mark = Mark::next("dead00ac").unwrap();
        // The test reaps it at the end.
        let mut zombie = Command::new("sleep").arg("600").spawn().unwrap();
        mark.apply_to(zombie.id()).unwrap();
        zombie.kill().unwrap();
        while !is_zombie(zombie.id()) {
            thread::yield_now();
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        let (start, is_limited) = (Instant::now(), std::fs::File::open("/proc").is_err());
        let killed = kill_marked(|other| other == mark);
        let elapsed = start.elapsed();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        zombie.wait().unwrap();
        assert!(is_limited && killed.is_empty(), "{is_limited} {killed:?}");
        assert!(elapsed < Duration::from_millis(200), "{elapsed:?}");
    }

    #[test]
    fn a_run_id_must_have_eight_hexadecimal_digits() {
        assert!(Mark::next("12345678").unwrap().belongs_to_run("12345678"));
        assert!(!Mark::next("12345678").unwrap().belongs_to_run("12345679"));
        for invalid in ["", "1234567", "123456789", "+1234567", "lock"] {
            assert_eq!(Mark::next(invalid), None, "{invalid}");
        }
        assert_eq!(Mark::own("12345678"), None);
    }
}
