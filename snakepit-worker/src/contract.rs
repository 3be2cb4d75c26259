//! The contract of [`WorkerLauncher`], as a test suite for implementations.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{ExitReason, LaunchRequest, Worker, WorkerId, WorkerLauncher};

/// The timeout of each step. It only detects hangs, so it far exceeds the duration of a launch.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Checks all rules of the contract against a launcher whose launches succeed.
///
/// The requests have no host ([`LaunchRequest::host`] is `None`). A launcher of processes that connect to the host must launch
/// without one, too, for example with a stub process in its tests. Test such a launcher in addition with a complete host
/// (`snakepit_server::Builder::launcher`).
///
/// # Panics
/// Panics at the first rule that the launcher breaks.
pub async fn launcher_contract(launcher: Arc<dyn WorkerLauncher>) {
    a_worker_lives_until_it_is_stopped(&*launcher).await;
    a_killed_worker_exits_with_the_reason(&*launcher).await;
    dropping_the_last_handle_ends_a_worker(&*launcher).await;
    launches_run_concurrently(&launcher).await;
    a_cancelled_launch_does_not_affect_the_next(&*launcher).await;
}

fn request(id: &str) -> LaunchRequest {
    LaunchRequest::new(WorkerId::new(id))
}

async fn launch(launcher: &dyn WorkerLauncher, id: &str) -> Worker {
    let worker = timeout(STEP_TIMEOUT, launcher.launch(request(id))).await.expect("a launch ends");
    let worker = worker.expect("the launcher under test can launch");
    assert_eq!(worker.id().as_str(), id, "a worker carries the id it was launched with");
    worker
}

async fn a_worker_lives_until_it_is_stopped(launcher: &dyn WorkerLauncher) {
    let worker = launch(launcher, "stopped").await;
    assert_eq!(worker.exit(), None, "a launched worker runs");
    assert!(
        timeout(Duration::from_millis(50), worker.exited()).await.is_err(),
        "a launched worker keeps running"
    );
    worker.stop(STOP_GRACE);
    let exit = timeout(STEP_TIMEOUT, worker.exited()).await.expect("a stopped worker ends");
    assert_eq!(exit.reason, ExitReason::Stopped);
    assert_eq!(worker.exit(), Some(exit.clone()), "the exit stays available");
    assert_eq!(worker.exited().await, exit, "a later wait returns the same exit");
    worker.stop(STOP_GRACE);
    worker.kill("commands after the exit have no effect");
}

async fn a_killed_worker_exits_with_the_reason(launcher: &dyn WorkerLauncher) {
    let worker = launch(launcher, "killed").await;
    worker.kill("the contract says so");
    let exit = timeout(STEP_TIMEOUT, worker.exited()).await.expect("a killed worker ends");
    assert_eq!(exit.reason, ExitReason::Killed { reason: "the contract says so".to_owned() });
}

async fn dropping_the_last_handle_ends_a_worker(launcher: &dyn WorkerLauncher) {
    let worker = launch(launcher, "dropped").await;
    // A dropped wait for the exit must not keep the worker alive.
    let exited = {
        let worker = worker.clone();
        async move { worker.exited().await }
    };
    drop(exited);
    let pid = worker.pid();
    drop(worker);
    if let Some(pid) = pid {
        let exited = async {
            while std::path::Path::new(&format!("/proc/{pid}")).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(STEP_TIMEOUT, exited).await.expect("a worker without handles ends");
    }
}

async fn launches_run_concurrently(launcher: &Arc<dyn WorkerLauncher>) {
    let mut launches = tokio::task::JoinSet::new();
    for n in 0..4 {
        let launcher = Arc::clone(launcher);
        launches.spawn(async move { launch(&*launcher, &format!("many-{n}")).await });
    }
    let workers = launches.join_all().await;
    let processes: BTreeSet<_> = workers.iter().filter_map(Worker::pid).collect();
    assert!(processes.is_empty() || processes.len() == workers.len(), "workers share no process");
    workers.iter().for_each(|worker| worker.stop(STOP_GRACE));
    for worker in workers {
        timeout(STEP_TIMEOUT, worker.exited()).await.expect("a stopped worker ends");
    }
}

async fn a_cancelled_launch_does_not_affect_the_next(launcher: &dyn WorkerLauncher) {
    // The timeout drops the launch at one of its first awaits.
    let _ = timeout(Duration::from_millis(1), launcher.launch(request("cancelled"))).await;
    let worker = launch(launcher, "after").await;
    worker.stop(STOP_GRACE);
    timeout(STEP_TIMEOUT, worker.exited()).await.expect("a stopped worker ends");
}
