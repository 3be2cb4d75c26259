//! What every launcher must keep, as one function that its own tests call.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{ExitReason, Worker, WorkerId, WorkerLauncher};

/// How long any single step may take. Generous: it bounds a hang, not a launch.
const BOUND: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(10);

/// Runs the whole contract against a launcher whose launches succeed.
///
/// # Panics
/// At the first rule that the launcher breaks.
pub async fn launcher_contract(launcher: Arc<dyn WorkerLauncher>) {
    a_worker_lives_until_it_is_stopped(&*launcher).await;
    a_killed_worker_is_gone_and_says_why(&*launcher).await;
    nobody_holding_a_worker_ends_it(&*launcher).await;
    launches_run_at_the_same_time(&launcher).await;
    a_launch_given_up_leaves_the_launcher_sound(&*launcher).await;
}

async fn launch(launcher: &dyn WorkerLauncher, id: &str) -> Worker {
    let worker = timeout(BOUND, launcher.launch(WorkerId::new(id))).await.expect("a launch ends");
    let worker = worker.expect("the launcher under test can launch");
    assert_eq!(worker.id().as_str(), id, "a worker carries the id it was launched with");
    worker
}

async fn a_worker_lives_until_it_is_stopped(launcher: &dyn WorkerLauncher) {
    let worker = launch(launcher, "stopped").await;
    assert_eq!(worker.exit(), None, "a launched worker lives");
    assert!(timeout(Duration::from_millis(50), worker.exited()).await.is_err(), "and goes on living");
    worker.stop(GRACE);
    let exit = timeout(BOUND, worker.exited()).await.expect("a stopped worker ends");
    assert_eq!(exit.reason, ExitReason::Stopped);
    assert_eq!(worker.exit(), Some(exit.clone()), "its end stays known");
    assert_eq!(worker.exited().await, exit, "to everybody who asks");
    worker.stop(GRACE);
    worker.kill("orders to the dead do no harm");
}

async fn a_killed_worker_is_gone_and_says_why(launcher: &dyn WorkerLauncher) {
    let worker = launch(launcher, "killed").await;
    worker.kill("the contract says so");
    let exit = timeout(BOUND, worker.exited()).await.expect("a killed worker ends");
    assert_eq!(exit.reason, ExitReason::Killed { why: "the contract says so".to_owned() });
}

async fn nobody_holding_a_worker_ends_it(launcher: &dyn WorkerLauncher) {
    let worker = launch(launcher, "dropped").await;
    let witness = {
        let held = worker.clone();
        async move { held.exited().await }
    };
    // A future that only waits for the end must not be what keeps the worker alive, so it is made and dropped.
    drop(witness);
    let pid = worker.pid();
    drop(worker);
    if let Some(pid) = pid {
        let gone = async {
            while std::path::Path::new(&format!("/proc/{pid}")).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(BOUND, gone).await.expect("a worker that nobody holds ends");
    }
}

async fn launches_run_at_the_same_time(launcher: &Arc<dyn WorkerLauncher>) {
    let mut launches = tokio::task::JoinSet::new();
    for n in 0..4 {
        let launcher = Arc::clone(launcher);
        launches.spawn(async move { launch(&*launcher, &format!("many-{n}")).await });
    }
    let workers = launches.join_all().await;
    let processes: BTreeSet<_> = workers.iter().filter_map(Worker::pid).collect();
    assert!(processes.is_empty() || processes.len() == workers.len(), "workers share no process");
    workers.iter().for_each(|worker| worker.stop(GRACE));
    for worker in workers {
        timeout(BOUND, worker.exited()).await.expect("a stopped worker ends");
    }
}

async fn a_launch_given_up_leaves_the_launcher_sound(launcher: &dyn WorkerLauncher) {
    // Dropped at its first pause; what it started must not stay, nor get in the way of the next launch.
    let _ = timeout(Duration::from_millis(1), launcher.launch(WorkerId::new("given-up"))).await;
    let worker = launch(launcher, "after").await;
    worker.stop(GRACE);
    timeout(BOUND, worker.exited()).await.expect("a stopped worker ends");
}
