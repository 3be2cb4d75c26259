//! A host that has only host tools and does not start workers.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::json;
use snakepit_client::Client;
use snakepit_server::{
    Builder, Error, ErrorKind, FnTool, MemoryBackend, Readiness, SessionLimits, Snakepit, StartErrorKind,
    ToolError, VariableType, testing::InProcessWorkers,
};

fn builder(dir: &tempfile::TempDir) -> Builder {
    let double = FnTool::typed("double", |args: HashMap<String, i64>| async move { args["n"] * 2 });
    Snakepit::builder().without_workers().fn_tool(double).run_dir(dir.path())
}

#[tokio::test]
async fn a_host_without_workers_runs_its_own_tools_for_the_program_and_for_clients() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).start().await.unwrap();
    let status = snakepit.status();
    let readiness = *snakepit.readiness().borrow();
    assert!(matches!(readiness, Readiness::Ready { workers: 0, .. }), "{readiness:?}");
    assert!(status.workers.is_empty(), "{status:?}");
    let client = Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    let session = client.session("s").await.unwrap();
    session.register("n", VariableType::integer(), 4).await.unwrap();

    let (local, remote) = (snakepit.call("double").arg("n", 4), client.call("double").arg("n", 5));
    assert_eq!(local.unary::<i64>().await.unwrap().value, 8);
    assert_eq!(remote.unary::<i64>().await.unwrap().value, 10);
    let misspelled = snakepit.call("doubel").args(json!({})).unary::<i64>().await.unwrap_err();
    assert_eq!(misspelled.to_string(), "tool `doubel` not found; did you mean `double`?");
    let unknown = client.call("predict").unary::<i64>().await.unwrap_err();
    assert_eq!((unknown.kind(), unknown.is_retryable()), (ErrorKind::ToolNotFound, false), "{unknown}");

    snakepit.shutdown().await.unwrap();
    let late = snakepit.call("double").arg("n", 4).unary::<i64>().await.unwrap_err();
    assert_eq!((late.kind(), late.is_retryable()), (ErrorKind::ShuttingDown, false), "the host has ended");
}

#[tokio::test]
async fn a_remote_host_that_shuts_down_may_start_again() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = builder(&dir).start().await.unwrap();
    let client = Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    assert_eq!(client.call("double").arg("n", 1).unary::<i64>().await.unwrap().value, 2);
    snakepit.shutdown().await.unwrap();
    let late = client.call("double").arg("n", 4).unary::<i64>().await.unwrap_err();
    assert!(late.is_retryable(), "{late:?}");
}

#[tokio::test]
async fn workers_and_no_workers_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let with_launcher = builder(&dir).launcher(Arc::new(InProcessWorkers::new()));
    for wrong in [with_launcher, builder(&dir).adapter("shop:Shop"), builder(&dir).worker_command(["worker"])]
    {
        let error = wrong.start().await.unwrap_err();
        assert_eq!(error.kind(), StartErrorKind::Configuration);
        assert!(error.to_string().contains("`Builder::without_workers` excludes"), "{error}");
    }
}

#[test]
fn several_hosts_share_sessions_and_serve_callers_on_other_runtimes() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let sessions = Arc::new(MemoryBackend::new(SessionLimits::default()));
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let start = |dir| builder(dir).sessions(sessions.clone()).start();
    let here = first.block_on(start(&dirs[0])).unwrap();
    let there = second.block_on(start(&dirs[1])).unwrap();
    first.block_on(async {
        let session = here.session("s").await.unwrap();
        session.register("n", VariableType::integer(), 4).await.unwrap();
        assert_eq!(there.session("s").await.unwrap().get::<i64>("n").await.unwrap(), 4);
        let call = there.call("double").arg("n", 4).timeout(Duration::from_secs(30));
        assert_eq!(call.unary::<i64>().await.unwrap().value, 8);
    });
    drop(second);
    let ended = first.block_on(there.call("double").arg("n", 4).unary::<i64>()).unwrap_err();
    assert!(matches!(ended, Error::Tool(ToolError::RuntimeEnded { .. })), "{ended:?}");
    assert_eq!(first.block_on(here.call("double").arg("n", 2).unary::<i64>()).unwrap().value, 4);
    first.block_on(here.shutdown()).unwrap();
}
