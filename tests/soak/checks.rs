//! What must hold once the faults are over: nothing is busy, nothing has grown, nothing is left behind, and every call
//! ran as often as it should.

use std::{collections::HashMap, path::Path, time::Duration};

use snakepit_proto::pb;
use snakepit_tests::{is_alive, processes_with};
use tokio::time::{Instant, sleep};

use crate::{
    daemon::{Daemon, WORKERS, resident_kib, workers},
    faults::{answers, states},
    tally::{LOST, Tally},
};

/// How long the daemon may take until nothing of the load is left.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// The host's memory after its first round of faults may grow by this much: fragmentation, and larger bursts later on.
const GROWTH_KIB: u64 = 32 * 1024;
/// The least memory after a round must not rise by more than this from the first half of the rounds to the second.
const CREEP_KIB: u64 = 8 * 1024;
/// Rounds of faults that it takes to see the memory creep.
const ROUNDS: usize = 8;
/// A worker's memory may differ by this much from that of a fresh one.
const WORKER_GROWTH_KIB: u64 = 32 * 1024;
/// Descriptors beyond those of a fresh host without clients: the connection that asks, and one to Redis that is being replaced.
const SPARE_DESCRIPTORS: usize = 2;
/// Losses must show after this many restarts: workers die while they run calls of up to 20 ms.
const ENOUGH_RESTARTS: u64 = 8;

/// The daemon before any load.
#[derive(Debug)]
pub(crate) struct Baseline {
    descriptors: usize,
    worker_kib: u64,
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
    pub(crate) async fn of(daemon: &Daemon) -> Self {
        let descriptors = daemon.descriptors();
        let workers = workers(&mut daemon.client().await).await.expect("the daemon is up");
        let worker_kib = workers.iter().map(|worker| resident_kib(worker.pid)).max().unwrap_or_default();
        Self { descriptors, worker_kib }
    }
}

/// Checks the daemon after the load has ended. `rounds` is its resident memory after each round of faults, in KiB.
pub(crate) async fn at_rest(daemon: &Daemon, baseline: &Baseline, rounds: &[u64], tally: &Tally) {
    let mut client = daemon.client().await;
    let began = Instant::now();
    let mut listed;
    loop {
        listed = workers(&mut client).await.unwrap_or_default();
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
    memory(daemon, baseline, rounds, &listed, tally);
    losses(listed.iter().map(|worker| worker.restarts).sum(), tally);
    daemon.panics().into_iter().for_each(|line| tally.violation(format!("the daemon panicked: {line}")));
}

/// A worker that dies takes one call with it at most, the one that it runs.
fn losses(restarts: u64, tally: &Tally) {
    let lost: u64 =
        tally.outcomes().iter().filter(|((_, outcome), _)| LOST.contains(&&**outcome)).map(|(_, n)| n).sum();
    eprintln!("{restarts} workers replaced, {lost} calls lost with them");
    if lost > restarts {
        tally.violation(format!("{lost} calls were lost with {restarts} workers"));
    }
    if lost == 0 && restarts >= ENOUGH_RESTARTS {
        tally.violation(format!(
            "{restarts} workers died, and none of them ran a call: the load is too light"
        ));
    }
}

fn memory(daemon: &Daemon, baseline: &Baseline, rounds: &[u64], listed: &[pb::WorkerInfo], tally: &Tally) {
    let now = daemon.resident_kib();
    eprintln!("resident memory: {rounds:?} KiB after each round of faults, {now} KiB at rest");
    if let Some(first) = rounds.first()
        && now > first + GROWTH_KIB
    {
        tally.violation(format!("the host grew from {first} KiB after the first round to {now} KiB"));
    }
    if rounds.len() >= ROUNDS {
        let (early, late) = rounds.split_at(rounds.len() / 2);
        let least = |rounds: &[u64]| rounds.iter().min().copied().unwrap_or_default();
        if least(late) > least(early) + CREEP_KIB {
            tally.violation(format!("the host's memory creeps: {rounds:?} KiB after each round"));
        }
    }
    for worker in listed {
        let now = resident_kib(worker.pid);
        if now > baseline.worker_kib + WORKER_GROWTH_KIB {
            let (id, fresh) = (&worker.worker_id, baseline.worker_kib);
            tally.violation(format!("worker {id} has {now} KiB, a fresh one {fresh} KiB"));
        }
    }
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
