//! Tests that the run directory is private, removed on drop, and cleaned up after a crash.

use std::os::unix::{fs::PermissionsExt, process::CommandExt};

use super::*;

#[test]
fn the_directory_is_private_and_removed_on_drop() {
    let base = tempfile::tempdir().unwrap();
    let run = RunDir::create(Some(base.path())).unwrap();
    let path = run.path().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    drop(run);
    assert!(!path.exists());
}

#[test]
fn a_base_that_others_can_write_to_is_rejected() {
    let base = tempfile::tempdir().unwrap();
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = RunDir::create(Some(base.path())).unwrap_err().to_string();
    assert!(error.contains("other users"), "{error}");
}

#[test]
fn unusable_defaults_are_skipped() {
    let base = tempfile::tempdir().unwrap();
    let (file, shared) = (base.path().join("file"), base.path().join("shared"));
    std::fs::write(&file, "").unwrap();
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let long = base.path().join("x".repeat(90));
    let last = base.path().join("usable");
    let bases = [file.join("no-directory"), shared, long.clone(), last.clone()];
    let run_dir = RunDir::create_in_first(&bases).unwrap();
    assert_eq!(run_dir.path().parent(), Some(&*last.canonicalize().unwrap()));
    assert!(!long.exists(), "nothing is created in an unusable base");
    let error = RunDir::create_in_first(&bases[..3]).unwrap_err().to_string();
    assert!(error.contains("other users") && error.contains("too long"), "{error}");
    let error = RunDir::create(Some(&long)).unwrap_err().to_string();
    assert!(error.contains("too long"), "a chosen base is not skipped: {error}");
    assert!(!long.exists(), "nothing is created in it");
}

#[test]
fn a_missing_directory_of_a_default_is_skipped_and_not_created() {
    let base = tempfile::tempdir().unwrap();
    let (missing, last) = (base.path().join("missing"), base.path().join("usable"));
    let run_dir = RunDir::create_in_first(&[missing.join("snakepit"), last.clone()]).unwrap();
    assert_eq!(run_dir.path().parent(), Some(&*last.canonicalize().unwrap()));
    assert!(!missing.exists());
    let error = RunDir::create_in_first(&[missing.join("snakepit")]).unwrap_err().to_string();
    assert!(error.contains("missing does not exist"), "{error}");
    // A chosen directory is created with its parents.
    RunDir::create(Some(&missing.join("chosen"))).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_path_that_is_not_utf8_is_rejected_before_anything_is_created() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let base = tempfile::tempdir().unwrap();
    let odd = base.path().join(OsStr::from_bytes(b"caf\xe9"));
    let rejected = |base: &Path| RunDir::create(Some(base)).unwrap_err().to_string();
    assert!(
        rejected(&odd).contains("its path is not UTF-8; choose another one with `Builder::run_dir`"),
        "{}",
        rejected(&odd)
    );
    assert!(!odd.exists());
    std::fs::create_dir(&odd).unwrap();
    let link = base.path().join("link");
    std::os::unix::fs::symlink(&odd, &link).unwrap();
    for base in [&odd, &link] {
        assert!(rejected(base).contains("not UTF-8"), "{}", rejected(base));
    }
    assert_eq!(std::fs::read_dir(&odd).unwrap().count(), 0, "nothing is created in it");
    let last = base.path().join("usable");
    let run_dir = RunDir::create_in_first(&[odd, last.clone()]).unwrap();
    assert_eq!(run_dir.path().parent(), Some(&*last.canonicalize().unwrap()));
}

#[tokio::test]
async fn removed_parts_are_restored() {
    let base = tempfile::tempdir().unwrap();
    let below = base.path().join("below");
    let run_dir = Arc::new(RunDir::create(Some(&below)).unwrap());
    run_dir.serve_host_socket(|path| std::fs::write(path, "")).unwrap();
    run_dir.ledger().insert(1).unwrap();
    let tasks = TaskTracker::new();
    for removed in [below.clone(), run_dir.path().to_owned(), run_dir.host_socket().to_owned()] {
        if removed.is_dir() {
            std::fs::remove_dir_all(&removed).unwrap();
        } else {
            std::fs::remove_file(&removed).unwrap();
        }
        run_dir.restore(&tasks).await.unwrap();
        assert!(run_dir.host_socket().exists(), "{}", removed.display());
        let ledger = std::fs::read_to_string(run_dir.path().join("ledger")).unwrap();
        assert!(ledger.contains(r#""started":{"pid":1,"#), "{ledger}");
        assert_eq!(std::fs::metadata(run_dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }
    // The next host sees that this one is alive, although its first ledger was removed.
    assert_eq!(RunDir::create(Some(&below)).unwrap().killed_leftovers(), 0);
    run_dir.ledger().remove(1);
}

#[test]
fn live_hosts_do_not_clean_up_each_other() {
    let base = tempfile::tempdir().unwrap();
    let first = RunDir::create(Some(base.path())).unwrap();
    let second = RunDir::create(Some(base.path())).unwrap();
    assert_ne!(first.id(), second.id());
    assert!(first.path().exists());
    assert_eq!(second.killed_leftovers(), 0);
}

/// Starts a process group leader in place of a worker whose host has died.
#[allow(clippy::disallowed_methods, reason = "a stand-in for a worker of a dead host")]
fn spawn_leftover(run_id: &str) -> std::process::Child {
    let mut command = std::process::Command::new("sleep");
    command.arg("60").env("SNAKEPIT_RUN_ID", run_id).process_group(0).spawn().unwrap()
}

/// Creates the run directory of a dead host, with these lines in its ledger.
fn dead_run(base: &Path, run_id: &str, lines: &[String]) -> PathBuf {
    let run = base.join(run_id);
    std::fs::create_dir(&run).unwrap();
    let host = format!(
        r#"{{"host":{{"pid":1,"start_time":424242,"boot":"{}"}}}}"#,
        super::super::os_process::boot_id()
    );
    std::fs::write(run.join("ledger"), format!("{host}\n{}\n", lines.join("\n"))).unwrap();
    run
}

fn started_line(pid: u32, start_time: u64) -> String {
    format!(r#"{{"started":{{"pid":{pid},"start_time":{start_time}}}}}"#)
}

#[test]
#[cfg(target_os = "linux")]
fn a_zombie_does_not_count_as_killed() {
    let base = tempfile::tempdir().unwrap();
    let mut zombie = spawn_leftover("dead0002");
    let start = super::super::os_process::start_time(zombie.id()).unwrap();
    zombie.kill().unwrap();
    let pid = nix::unistd::Pid::from_raw(zombie.id().cast_signed());
    // Waits for its exit, but leaves its exit status uncollected.
    let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
    nix::sys::wait::waitid(nix::sys::wait::Id::Pid(pid), flags).unwrap();
    dead_run(base.path(), "dead0002", &[started_line(zombie.id(), start)]);
    let host = RunDir::create(Some(base.path())).unwrap();
    assert_eq!(host.killed_leftovers(), 0);
    zombie.wait().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn only_workers_of_a_dead_host_are_killed() {
    let base = tempfile::tempdir().unwrap();
    let (mut leftover, mut foreign, mut ended) =
        (spawn_leftover("dead0001"), spawn_leftover("other"), spawn_leftover("other"));
    let start_time = |child: &std::process::Child| super::super::os_process::start_time(child.id()).unwrap();
    let lines = [
        started_line(leftover.id(), start_time(&leftover)),
        // The pid of an earlier worker, now of another process: the start times differ.
        started_line(foreign.id(), start_time(&foreign) - 1),
        started_line(ended.id(), start_time(&ended)),
        format!(r#"{{"ended":{{"pid":{}}}}}"#, ended.id()),
        r#"{"started":{"pid":1"#.to_owned(),
    ];
    let run = dead_run(base.path(), "dead0001", &lines);
    let host = RunDir::create(Some(base.path())).unwrap();
    assert_eq!(host.killed_leftovers(), 1);
    assert!(!run.exists());
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(leftover.wait().unwrap().signal(), Some(9));
    for child in [&mut foreign, &mut ended] {
        assert!(
            child.try_wait().unwrap().is_none(),
            "a process that is not a worker of the dead host was killed"
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn only_run_directories_without_a_written_ledger_are_removed() {
    let base = tempfile::tempdir().unwrap();
    let without_ledger = base.path().join("dead0005");
    let with_empty_ledger = base.path().join("dead0007");
    let (foreign, full) = (base.path().join("projects"), base.path().join("dead0006"));
    for dir in [&without_ledger, &with_empty_ledger, &foreign, &full] {
        std::fs::create_dir(dir).unwrap();
    }
    for dir in [&with_empty_ledger, &foreign, &full] {
        std::fs::write(dir.join("ledger"), "").unwrap();
    }
    std::fs::write(full.join("notes"), "foreign").unwrap();
    let host = RunDir::create(Some(base.path())).unwrap();
    assert_eq!(host.killed_leftovers(), 0);
    assert!(!without_ledger.exists() && !with_empty_ledger.exists() && foreign.exists() && full.exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_torn_line_does_not_hide_later_lines() {
    let base = tempfile::tempdir().unwrap();
    let mut leftover = spawn_leftover("dead0003");
    let start_time = super::super::os_process::start_time(leftover.id()).unwrap();
    dead_run(
        base.path(),
        "dead0003",
        &[r#"{"started":{"pid":1"#.to_owned(), started_line(leftover.id(), start_time)],
    );
    assert_eq!(RunDir::create(Some(base.path())).unwrap().killed_leftovers(), 1);
    leftover.wait().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_host_is_alive_while_it_locks_its_ledger() {
    let base = tempfile::tempdir().unwrap();
    let live = RunDir::create(Some(base.path())).unwrap();
    // The pid in the ledger is that of another PID namespace, so the host looks dead from here.
    let ledger = live.path().join("ledger");
    let pid = std::process::id().to_string();
    // The replacement has the same length, so the slots keep their places.
    let other_pid = format!("{:<width$}", 1, width = pid.len());
    let text = std::fs::read_to_string(&ledger).unwrap().replace(&pid, &other_pid);
    std::fs::write(&ledger, text).unwrap();
    let mut worker = spawn_leftover(live.id());
    live.ledger().insert(worker.id()).unwrap();
    assert_eq!(RunDir::create(Some(base.path())).unwrap().killed_leftovers(), 0);
    assert!(worker.try_wait().unwrap().is_none() && live.path().exists());

    // The host has released its lock, but its process, this one, still exists, as if it were a zombie.
    let (path, locked) = (live.path().to_owned(), live);
    drop(locked);
    assert!(path.join("ledger").exists(), "the ledger still lists a process");
    assert_eq!(RunDir::create(Some(base.path())).unwrap().killed_leftovers(), 1);
    worker.wait().unwrap();
    assert!(!path.exists());
}

#[test]
#[cfg(target_os = "linux")]
fn runs_of_another_pid_namespace_are_ignored() {
    let base = tempfile::tempdir().unwrap();
    let mut foreign = spawn_leftover("dead0004");
    let start_time = super::super::os_process::start_time(foreign.id()).unwrap();
    let run = dead_run(base.path(), "dead0004", &[started_line(foreign.id(), start_time)]);
    let ledger = std::fs::read_to_string(run.join("ledger")).unwrap();
    let in_another_namespace = ledger.replacen(r#""pid":1,"#, r#""pid":1,"pid_namespace":"pid:[1]","#, 1);
    std::fs::write(run.join("ledger"), in_another_namespace).unwrap();
    assert_eq!(RunDir::create(Some(base.path())).unwrap().killed_leftovers(), 0);
    assert!(foreign.try_wait().unwrap().is_none() && run.exists());
    foreign.kill().unwrap();
    foreign.wait().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn members_of_a_leaderless_group_are_found_by_their_run_id() {
    let base = tempfile::tempdir().unwrap();
    let (mut ours, mut foreign) = (spawn_leftover("dead0002"), spawn_leftover("other"));
    // Both entries list a start time that differs from that of the current process with this pid.
    let lines = [started_line(ours.id(), 1), started_line(foreign.id(), 1)];
    dead_run(base.path(), "dead0002", &lines);
    let host = RunDir::create(Some(base.path())).unwrap();
    assert_eq!(host.killed_leftovers(), 1);
    ours.wait().unwrap();
    assert!(foreign.try_wait().unwrap().is_none());
    foreign.kill().unwrap();
    foreign.wait().unwrap();
}
