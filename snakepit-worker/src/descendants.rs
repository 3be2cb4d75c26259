//! Finds and kills all processes that descend from a worker, however they were daemonized (ADR 25).
//!
//! A worker carries a [`Mark`]: the soft limit `RLIMIT_LOCKS`, which Linux has not enforced since 2.4.25. Children inherit it
//! through `fork`, `exec`, `setsid` and a cleared environment, and it can be read of any process of the same user. Elsewhere
//! nothing is known, and nothing is killed.

use std::{
    collections::HashSet,
    io, thread,
    time::{Duration, Instant},
};

/// How long processes are looked for again, because one of those that were killed may have forked just before.
const SCAN_TIMEOUT: Duration = Duration::from_millis(200);
/// The pause between two looks: a process that was killed takes a moment to end.
const SCAN_INTERVAL: Duration = Duration::from_millis(5);

/// What all descendants of one worker have in common: the run of the host that launched it, and its number in there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

impl Mark {
    /// A mark that no other worker has. `None` if the run's id is none that a host has: eight hexadecimal digits.
    #[must_use]
    pub fn next(run_id: &str) -> Option<Self> {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        open_process_list();
        let run = parse(run_id)?;
        Some(Self(u64::from(run) << 32 | u64::from(NUMBER.fetch_add(1, Relaxed))))
    }

    /// The mark of this process, if a worker of this run is among its ancestors.
    #[must_use]
    pub fn own(run_id: &str) -> Option<Self> {
        let mark = read(std::process::id())?;
        mark.is_of(run_id).then_some(mark)
    }

    /// Whether it is that of a worker of this run.
    #[must_use]
    pub fn is_of(self, run_id: &str) -> bool {
        parse(run_id).is_some_and(|run| self.0 >> 32 == u64::from(run))
    }

    /// Marks a process, and so what it starts from now on.
    ///
    /// # Errors
    /// When it has ended, or may not be marked: somebody limited `RLIMIT_LOCKS`.
    pub fn apply_to(self, pid: u32) -> io::Result<()> {
        write(pid, self)
    }
}

fn parse(run_id: &str) -> Option<u32> {
    let is_id = run_id.len() == 8 && run_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| u32::from_str_radix(run_id, 16).ok()).flatten()
}

/// Opens the system's list of processes and keeps it open, so that later looks need no new descriptor.
pub fn open_process_list() {
    open_proc();
}

/// Kills every process but this one whose mark `is_wanted`, until none is left, and returns their pids.
///
/// Blocks. It gives up after 200 ms, but not before two looks: a process that still runs is in a system call that cannot be
/// interrupted. A look takes milliseconds, or about a second if `/proc` cannot be listed.
#[allow(clippy::disallowed_methods, reason = "it blocks, and also runs in threads without a tokio runtime")]
pub fn kill_marked(is_wanted: impl Fn(Mark) -> bool) -> HashSet<u32> {
    let (began, mut killed) = (Instant::now(), HashSet::new());
    for scan in 1_u32.. {
        let found = kill_once(&is_wanted);
        let none_left = found.is_empty();
        killed.extend(found);
        if none_left || (scan > 1 && began.elapsed() > SCAN_TIMEOUT) {
            break;
        }
        thread::sleep(SCAN_INTERVAL);
    }
    killed
}

/// Kills the processes that are found in one look, and returns the pids of those that had not ended.
pub fn kill_once(is_wanted: impl Fn(Mark) -> bool) -> Vec<u32> {
    let is_wanted = |pid: &u32| read(*pid).is_some_and(&is_wanted) && *pid != std::process::id();
    let found: Vec<u32> = pids().filter(is_wanted).collect();
    let lives = |pid: &u32| {
        let lives = !is_zombie(*pid);
        // Zombies too: a process looks like one after its first thread has ended, while other threads still run.
        kill(*pid);
        lives
    };
    found.into_iter().filter(lives).collect()
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

    /// The largest pid that Linux can be told to give.
    const MAX_PID: u32 = 1 << 22;

    /// The directory `/proc`.
    static PROC_DIR: Mutex<Option<Dir>> = Mutex::new(None);

    pub(super) fn open_proc() {
        let mut list = PROC_DIR.lock().unwrap_or_else(PoisonError::into_inner);
        if list.is_none() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            *list = Dir::open("/proc", flags, Mode::empty()).ok();
        }
    }

    /// All processes. Without a list of them, all that there could be.
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

    /// Reads the open list. `None` if a tool closed its descriptor, which may name another file by now.
    fn pids_from_open_dir() -> Option<Vec<u32>> {
        let mut list = PROC_DIR.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = list.as_mut()?.iter().map_while(Result::ok);
        let pids: Vec<u32> =
            entries.filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect();
        pids.contains(&process::id()).then_some(pids)
    }

    pub(super) fn read(pid: u32) -> Option<Mark> {
        let limit = limit(pid, None).ok()?;
        (limit.rlim_cur != libc::RLIM_INFINITY).then_some(Mark(limit.rlim_cur))
    }

    pub(super) fn write(pid: u32, mark: Mark) -> io::Result<()> {
        let rlimit { rlim_max, .. } = limit(pid, None)?;
        limit(pid, Some(&rlimit { rlim_cur: mark.0, rlim_max })).map(drop)
    }

    #[allow(unsafe_code)]
    fn limit(pid: u32, new: Option<&rlimit>) -> io::Result<rlimit> {
        let mut old = rlimit { rlim_cur: 0, rlim_max: 0 };
        let new = new.map_or(ptr::null(), ptr::from_ref);
        // SAFETY: `new` is null or points to a limit, and `old` to one that may be written.
        Errno::result(unsafe { libc::prlimit(pid.cast_signed(), RLIMIT_LOCKS, new, &raw mut old) })?;
        Ok(old)
    }

    /// Checks whether the process still has a program. Unlike reading its state, this needs no descriptor.
    pub(super) fn is_zombie(pid: u32) -> bool {
        let is_missing = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        let program = fs::read_link(format!("/proc/{pid}/exe"));
        program.is_err_and(is_missing) && fs::symlink_metadata(format!("/proc/{pid}")).is_ok()
    }

    pub(super) fn kill(pid: u32) {
        // That it has ended meanwhile is as well.
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

    /// A shell that is told by a line to go on, once it is marked.
    fn marked(mark: Option<Mark>, script: &str) -> (Child, u32) {
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

    /// Starts a process that is in a session of its own, has another parent, and no environment. Tells its pid.
    const DAEMON: &str = "(env -i setsid sh -c 'echo $$; exec sleep 600' >&1 &) ; exit 0";

    #[test]
    fn daemons_are_killed_and_nobody_else() {
        let [ours, other] = [Mark::next("dead00aa").unwrap(), Mark::next("dead00aa").unwrap()];
        let (mut worker, daemon) = marked(Some(ours), DAEMON);
        worker.wait().unwrap();
        let (mut neighbour, neighbours) = marked(Some(other), DAEMON);
        neighbour.wait().unwrap();
        let (mut stranger, strangers) = marked(None, DAEMON);
        stranger.wait().unwrap();
        assert_eq!(kill_marked(|mark| mark == ours), HashSet::from([daemon]));
        assert!(is_zombie(daemon) || read(daemon).is_none());
        assert!(kill_marked(|mark| mark == ours).is_empty());
        assert!(read(neighbours) == Some(other) && read(strangers).is_none());
        assert_eq!(kill_marked(|mark| mark.is_of("dead00aa")), HashSet::from([neighbours]));
        assert!(!is_zombie(strangers));
        kill(strangers);
    }

    #[test]
    fn processes_that_fork_faster_than_they_are_found_end_too() {
        let mark = Mark::next("dead00ab").unwrap();
        // Each of them starts the next one and ends.
        let chain = "next() { (setsid sh -c \"$1\" next \"$1\" >/dev/null 2>&1 &); }; echo $$; \
                     LINK='sleep 0.001; (setsid sh -c \"$1\" next \"$1\" >/dev/null 2>&1 &)'; next \"$LINK\" ; exit 0";
        let (mut first, _) = marked(Some(mark), chain);
        first.wait().unwrap();
        let _ = kill_marked(|other| other == mark);
        assert!(kill_once(|other| other == mark).is_empty());
    }

    /// Set in the process of a test that changes its process.
    const ALONE: &str = "SNAKEPIT_TEST_ALONE";

    #[test]
    fn zombies_cost_one_look_and_no_descriptor() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};

        // In a separate process: the limit must not affect other tests.
        if std::env::var_os(ALONE).is_none() {
            let name = "descendants::tests::zombies_cost_one_look_and_no_descriptor";
            let mut alone = Command::new(std::env::current_exe().unwrap());
            let output = alone.args(["--exact", name]).env(ALONE, "1").output().unwrap();
            assert!(output.status.success(), "{output:?}");
            return;
        }
        let mark = Mark::next("dead00ac").unwrap();
        // Not reaped before the end.
        let mut zombie = Command::new("sleep").arg("600").spawn().unwrap();
        mark.apply_to(zombie.id()).unwrap();
        zombie.kill().unwrap();
        while !is_zombie(zombie.id()) {
            thread::yield_now();
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        let (began, refused) = (Instant::now(), std::fs::File::open("/proc").is_err());
        let killed = kill_marked(|other| other == mark);
        let took = began.elapsed();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        zombie.wait().unwrap();
        assert!(refused && killed.is_empty(), "{refused} {killed:?}");
        assert!(took < Duration::from_millis(200), "{took:?}");
    }

    #[test]
    fn a_run_is_eight_digits() {
        assert!(Mark::next("12345678").unwrap().is_of("12345678"));
        assert!(!Mark::next("12345678").unwrap().is_of("12345679"));
        for odd in ["", "1234567", "123456789", "+1234567", "lock"] {
            assert_eq!(Mark::next(odd), None, "{odd}");
        }
        assert_eq!(Mark::own("12345678"), None);
    }
}
