//! Checks after the faults. The daemon must be idle, and its memory must not have grown. When it stops, no process or file may
//! remain. Each call may have run at most once.

use std::{collections::HashMap, path::Path, time::Duration};

use snakepit_proto::pb;
use snakepit_tests::{is_alive, processes_with};
use tokio::time::{Instant, sleep};

use crate::{
    daemon::{Daemon, WORKERS, resident_kib, workers},
    faults::{call_succeeds, states},
    tally::{Tally, WORKER_LOST_OUTCOMES},
};

/// The time limit for the daemon to become idle after the load.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// The allowed growth of the host's memory after its first round of faults. Fragmentation and larger bursts cause some.
const GROWTH_KIB: u64 = 32 * 1024;
/// The allowed increase of the smallest memory after a round, from the first half of the rounds to the second.
const CREEP_KIB: u64 = 8 * 1024;
/// The number of rounds that the check for a slow increase needs.
const CREEP_ROUNDS: usize = 8;
/// The allowed difference between the memory of a worker and that of a new one.
const WORKER_GROWTH_KIB: u64 = 32 * 1024;
/// Descriptors that a host without load may have beyond those of a new one: the connection of this check, and a connection to
/// Redis that is being replaced.
const SPARE_DESCRIPTORS: usize = 2;
/// The number of restarts after which at least one call must have been lost. Workers run calls of up to 20 ms when they die.
const ENOUGH_RESTARTS: u64 = 8;

/// The resources of the daemon before the load.
#[derive(Debug)]
pub(crate) struct InitialResources {
    descriptors: usize,
    worker_kib: u64,
}

/// The number of executed calls, counted by the marks that the tools write.
#[derive(Debug, Default)]
pub(crate) struct RunCounts {
    pub(crate) ran: usize,
    pub(crate) succeeded: usize,
    pub(crate) duplicated: usize,
    pub(crate) missing: usize,
}

impl InitialResources {
    pub(crate) async fn measure(daemon: &Daemon) -> Self {
        let descriptors = daemon.descriptors();
        let workers = workers(&mut daemon.client().await).await.expect("the daemon is up");
        let worker_kib = workers.iter().map(|worker| resident_kib(worker.pid)).max().unwrap_or_default();
        Self { descriptors, worker_kib }
    }
}

/// Checks the idle daemon. `rounds` is its resident memory after each round of faults, in KiB.
pub(crate) async fn at_rest(daemon: &Daemon, initial: &InitialResources, rounds: &[u64], tally: &Tally) {
    let mut client = daemon.client().await;
    let began = Instant::now();
    let mut listed;
    loop {
        listed = workers(&mut client).await.unwrap_or_default();
        let is_idle = listed.len() == WORKERS && listed.iter().all(|worker| worker.state == "idle");
        let descriptors = daemon.descriptors();
        if is_idle && descriptors <= initial.descriptors + SPARE_DESCRIPTORS {
            break;
        }
        if began.elapsed() > IDLE_TIMEOUT {
            tally.violation(format!(
                "not idle after the load: {descriptors} descriptors (before the load {}), workers {:?}",
                initial.descriptors,
                states(&listed)
            ));
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    if !call_succeeds(&mut client, tally.nonce()).await {
        tally.violation("the last call failed or returned a wrong result".to_owned());
    }
    check_memory(daemon, initial, rounds, &listed, tally);
    check_lost_calls(listed.iter().map(|worker| worker.restarts).sum(), tally);
    daemon.panics().into_iter().for_each(|line| tally.violation(format!("the daemon panicked: {line}")));
}

/// Checks that each worker that died lost at most its running call.
fn check_lost_calls(restarts: u64, tally: &Tally) {
    let lost: u64 = tally
        .outcomes()
        .iter()
        .filter(|((_, outcome), _)| WORKER_LOST_OUTCOMES.contains(&&**outcome))
        .map(|(_, n)| n)
        .sum();
    eprintln!("{restarts} workers replaced, {lost} calls lost");
    if lost > restarts {
        tally.violation(format!("{restarts} replaced workers lost {lost} calls"));
    }
    if lost == 0 && restarts >= ENOUGH_RESTARTS {
        tally.violation(format!("{restarts} workers died without losing a call, so the load is too light"));
    }
}

fn check_memory(
    daemon: &Daemon,
    initial: &InitialResources,
    rounds: &[u64],
    listed: &[pb::WorkerInfo],
    tally: &Tally,
) {
    let at_rest = daemon.resident_kib();
    eprintln!("resident memory: {rounds:?} KiB after each round of faults, {at_rest} KiB at rest");
    if let Some(first) = rounds.first()
        && at_rest > first + GROWTH_KIB
    {
        tally.violation(format!("the host grew from {first} KiB after the first round to {at_rest} KiB"));
    }
    if rounds.len() >= CREEP_ROUNDS {
        let (early, late) = rounds.split_at(rounds.len() / 2);
        let minimum = |rounds: &[u64]| rounds.iter().min().copied().unwrap_or_default();
        if minimum(late) > minimum(early) + CREEP_KIB {
            tally.violation(format!("the host's memory increases slowly: {rounds:?} KiB after each round"));
        }
    }
    for worker in listed {
        let resident = resident_kib(worker.pid);
        if resident > initial.worker_kib + WORKER_GROWTH_KIB {
            let (id, fresh) = (&worker.worker_id, initial.worker_kib);
            tally.violation(format!("worker {id} has {resident} KiB, a new one {fresh} KiB"));
        }
    }
}

/// Stops the daemon, checks that no process or file of it remains, and counts the executed calls.
pub(crate) async fn after_stop(daemon: Daemon, tally: &Tally) -> RunCounts {
    let mut client = daemon.client().await;
    let mut pids: Vec<u32> =
        workers(&mut client).await.unwrap_or_default().iter().map(|worker| worker.pid).collect();
    drop(client);
    let (marks, run_dir) = (daemon.marks(), daemon.run_dir());
    let (code, files, dir) = daemon.stop().await;
    if code != Some(0) {
        tally.violation(format!("the daemon exited with {code:?} after SIGTERM"));
    }
    pids.extend(processes_with(&run_dir.to_string_lossy()));
    let alive: Vec<_> = pids.into_iter().filter(|pid| is_alive(*pid)).collect();
    if !alive.is_empty() {
        tally.violation(format!("processes left behind: {alive:?}"));
    }
    let files: Vec<_> = files.into_iter().filter(|name| name != "lock").collect();
    if !files.is_empty() {
        tally.violation(format!("files left in the run directory: {files:?}"));
    }
    let counted = count_runs(&marks, tally);
    drop(dir);
    counted
}

/// Checks that no call ran twice, and that each call that succeeded ran.
fn count_runs(dir: &Path, tally: &Tally) -> RunCounts {
    let mut runs: HashMap<u64, u32> = HashMap::new();
    for entry in std::fs::read_dir(dir).expect("the marks can be read").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("marks are text");
        text.lines()
            .filter_map(|line| line.parse().ok())
            .for_each(|nonce| *runs.entry(nonce).or_default() += 1);
    }
    let succeeded = tally.take_nonces_of_successes();
    let duplicated = runs.values().filter(|runs| **runs > 1).count();
    let missing = succeeded.iter().filter(|nonce| !runs.contains_key(nonce)).count();
    if duplicated + missing > 0 {
        tally.violation(format!("{duplicated} calls ran twice, {missing} succeeded without running"));
    }
    RunCounts { ran: runs.len(), succeeded: succeeded.len(), duplicated, missing }
}
