//! What must hold once the faults are over: nothing is busy, nothing has grown, nothing is left behind, and every call
//! ran as often as it should.

use std::{collections::HashMap, path::Path, time::Duration};

use snakepit_tests::{is_alive, processes_with};
use tokio::time::{Instant, sleep};

use crate::{
    daemon::{Daemon, WORKERS, workers},
    faults::{answers, states},
    tally::Tally,
};

/// How long the daemon may take until nothing of the load is left.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// How much more memory it may use than after the first seconds of load: what the allocator keeps.
const GROWTH_KIB: u64 = 64 * 1024;
/// Descriptors beyond those of the start: connections that are just closing.
const SPARE_DESCRIPTORS: usize = 8;
/// Load without faults before memory and descriptors are looked at.
const WARM_UP: Duration = Duration::from_secs(3);

/// The daemon under load, before any fault.
#[derive(Debug)]
pub(crate) struct Baseline {
    descriptors: usize,
    resident_kib: u64,
}

/// How often the calls ran, by the marks they left.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) ran: usize,
    pub(crate) succeeded: usize,
    pub(crate) duplicated: usize,
    pub(crate) missing: usize,
}

impl Baseline {
    pub(crate) async fn warm(daemon: &Daemon) -> Self {
        sleep(WARM_UP).await;
        Self { descriptors: daemon.descriptors(), resident_kib: daemon.resident_kib() }
    }
}

/// Checks the daemon after the load has ended.
pub(crate) async fn at_rest(daemon: &Daemon, baseline: &Baseline, tally: &Tally) {
    let mut client = daemon.client().await;
    let began = Instant::now();
    loop {
        let listed = workers(&mut client).await.unwrap_or_default();
        let is_idle = listed.len() == WORKERS && listed.iter().all(|worker| worker.state == "idle");
        let descriptors = daemon.descriptors();
        if is_idle && descriptors <= baseline.descriptors + SPARE_DESCRIPTORS {
            break;
        }
        if began.elapsed() > SETTLES_WITHIN {
            tally.violation(format!(
                "after the load: {descriptors} descriptors (at first {}), workers {:?}",
                baseline.descriptors,
                states(&listed)
            ));
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    if !answers(&mut client, tally.nonce()).await {
        tally.violation("a last call was not answered".to_owned());
    }
    let (before, after) = (baseline.resident_kib, daemon.resident_kib());
    if after > before + GROWTH_KIB {
        tally.violation(format!("resident memory grew from {before} to {after} KiB"));
    }
    eprintln!("resident memory: {before} KiB before the faults, {after} KiB after");
    daemon.panics().into_iter().for_each(|line| tally.violation(format!("the daemon panicked: {line}")));
}

/// Stops the daemon and checks that nothing of it is left, then counts the marks of its calls.
pub(crate) async fn after_stop(daemon: Daemon, tally: &Tally) -> Marks {
    let mut client = daemon.client().await;
    let mut pids: Vec<u32> =
        workers(&mut client).await.unwrap_or_default().iter().map(|worker| worker.pid).collect();
    drop(client);
    let (marks, run_dir) = (daemon.marks(), daemon.run_dir());
    let (code, left, dir) = daemon.stop().await;
    if code != Some(0) {
        tally.violation(format!("the daemon ended with {code:?} after SIGTERM"));
    }
    pids.extend(processes_with(&run_dir.to_string_lossy()));
    let alive: Vec<_> = pids.into_iter().filter(|pid| is_alive(*pid)).collect();
    if !alive.is_empty() {
        tally.violation(format!("processes left behind: {alive:?}"));
    }
    let left: Vec<_> = left.into_iter().filter(|name| name != "lock").collect();
    if !left.is_empty() {
        tally.violation(format!("files left in the run directory: {left:?}"));
    }
    let counted = count(&marks, tally);
    drop(dir);
    counted
}

/// No call may have run twice, and every one that succeeded must have run.
fn count(dir: &Path, tally: &Tally) -> Marks {
    let mut runs: HashMap<u64, u32> = HashMap::new();
    for entry in std::fs::read_dir(dir).expect("the marks can be read").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("marks are text");
        text.lines()
            .filter_map(|line| line.parse().ok())
            .for_each(|nonce| *runs.entry(nonce).or_default() += 1);
    }
    let succeeded = tally.take_succeeded();
    let duplicated = runs.values().filter(|runs| **runs > 1).count();
    let missing = succeeded.iter().filter(|nonce| !runs.contains_key(nonce)).count();
    if duplicated + missing > 0 {
        tally.violation(format!("{duplicated} calls ran twice, {missing} succeeded without running"));
    }
    Marks { ran: runs.len(), succeeded: succeeded.len(), duplicated, missing }
}
