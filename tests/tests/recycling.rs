//! Recycling of real workers: soft limits replace them without a failed call, hard ones kill them.

use std::time::Duration;

use serde_json::json;
use snakepit_tests::{EVENT_TIMEOUT, Sandbox, eventually, execute, is_alive};

/// The end of the last worker in slot 0.
async fn last_end(sandbox: &Sandbox) -> String {
    sandbox.workers().await[0].last_end.clone()
}

/// Waits until the last worker of slot 0 has ended for this reason.
async fn ended_with(sandbox: &Sandbox, reason: &str) {
    let has_ended = || async { last_end(sandbox).await.contains(reason) };
    eventually(reason, EVENT_TIMEOUT, has_ended).await;
}

#[tokio::test]
async fn workers_are_replaced_after_their_calls_and_no_call_fails() {
    let sandbox = Sandbox::adapter("recycled:", 2).args(&["--max-worker-calls", "20"]).start().await;
    let mut client = sandbox.client().await;
    let mut pids = std::collections::HashSet::new();
    for _ in 0..400 {
        let pid = execute(&mut client, "pid", &json!({})).await.expect("recycling fails no call");
        pids.insert(pid.as_u64().unwrap());
    }
    assert!(pids.len() > 2, "{} processes ran 400 calls", pids.len());
    ended_with(&sandbox, "it was recycled because it has run ").await;
    let listed = sandbox.cli_ok(&["workers"]).await;
    assert!(listed.contains("LAST END") && listed.contains("`max_worker_calls`"), "{listed}");
    assert!(sandbox.log().contains("recycling worker"), "{}", sandbox.log());
}

#[tokio::test]
async fn a_worker_that_has_been_idle_is_replaced_and_leaves_nothing() {
    let sandbox = Sandbox::adapter("recycled:", 1).args(&["--max-worker-idle", "1s"]).start().await;
    let mut client = sandbox.client().await;
    let first = execute(&mut client, "pid", &json!({})).await.unwrap().as_u64().unwrap();
    ended_with(&sandbox, "it has been idle for ").await;
    assert!(!is_alive(first as u32));
    let second = execute(&mut client, "pid", &json!({})).await.unwrap();
    assert_ne!(second, first);
}

#[tokio::test]
async fn old_workers_are_replaced() {
    let sandbox = Sandbox::adapter("recycled:", 1).args(&["--max-worker-age", "1s"]).start().await;
    ended_with(&sandbox, " old (`max_worker_age`)").await;
    assert!(execute(&mut sandbox.client().await, "pid", &json!({})).await.is_ok());
}

#[tokio::test]
async fn a_soft_memory_limit_finishes_the_call_and_then_replaces_the_worker() {
    let sandbox = Sandbox::adapter("recycled:", 1).args(&["--max-worker-memory", "150MiB"]).start().await;
    let mut client = sandbox.client().await;
    let first = execute(&mut client, "leak", &json!({"mib": 200})).await.unwrap();
    // The limit applies ten seconds after the start of the worker, in the middle of this call.
    let second = execute(&mut client, "leak", &json!({"mib": 0, "seconds": 12.0})).await;
    assert_eq!(second.expect("the call finishes"), first);
    ended_with(&sandbox, "its private memory of ").await;
    let end = last_end(&sandbox).await;
    assert!(end.contains("exceeds 150.0 MiB by ") && end.contains("`max_worker_memory`"), "{end}");
    let third = execute(&mut client, "pid", &json!({})).await.unwrap();
    assert_ne!(third, first);
}

#[tokio::test]
async fn a_hard_memory_limit_kills_the_worker_and_the_error_names_the_excess() {
    let sandbox =
        Sandbox::adapter("recycled:", 2).args(&["--max-worker-memory-hard", "150MiB"]).start().await;
    let mut client = sandbox.client().await;
    let before = tokio::time::Instant::now();
    let error = execute(&mut client, "leak", &json!({"mib": 200, "seconds": 60.0})).await.unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(30), "{:?}", before.elapsed());
    let message = error.message();
    assert!(
        message.contains("private memory of 2") && message.contains("exceeded 150.0 MiB by "),
        "{message}"
    );
    assert!(execute(&mut client, "pid", &json!({})).await.is_ok(), "the other worker serves");
    let has_restarted = || async { sandbox.workers().await.iter().all(|worker| worker.state == "idle") };
    eventually("a new worker is up", EVENT_TIMEOUT, has_restarted).await;
}

#[tokio::test]
async fn limits_that_contradict_each_other_prevent_the_start() {
    let failure = Sandbox::adapter("recycled:", 1)
        .args(&["--max-worker-memory", "2GiB", "--max-worker-memory-hard", "1GiB"])
        .try_start()
        .await
        .unwrap_err();
    assert!(failure.stderr.contains("--max-worker-memory-hard"), "{}", failure.stderr);
}
