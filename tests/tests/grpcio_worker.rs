//! A foreign worker, written with plain grpcio, serves calls over TCP.

use std::time::Duration;

use serde_json::json;
use snakepit_proto::pb;
use snakepit_tests::{
    Sandbox, Signal, eventually, execute, execute_within, is_alive, python, root, signal, tool_request,
};
use tonic::Code;

fn command(ready: &str) -> String {
    format!("{} {}/tests/workers/grpcio_worker.py --ready {ready}", python().display(), root().display())
}

#[tokio::test]
async fn a_foreign_worker_may_signal_readiness_on_stdout_or_in_a_file() {
    for ready in ["stdout", "file"] {
        let sandbox = Sandbox::worker_command(&command(ready), 2).start().await;
        let mut client = sandbox.client().await;
        assert_eq!(execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap(), 3, "{ready}");

        let mut chunks = client
            .execute_streaming_tool(tool_request("count", &json!({"n": 3})))
            .await
            .unwrap()
            .into_inner();
        let mut count = 0;
        while let Some(chunk) = chunks.message().await.unwrap() {
            count += usize::from(!chunk.data.is_empty());
        }
        assert_eq!(count, 3, "{ready}");

        let failed =
            client.execute_tool(tool_request("fail", &json!({"message": "no"}))).await.unwrap().into_inner();
        assert!(!failed.success && failed.error_message.contains("no"), "{failed:?}");

        let pids = sandbox.worker_pids().await;
        assert_eq!(sandbox.stop().await, Some(0));
        assert!(pids.iter().all(|pid| !is_alive(*pid)));
    }
}

#[tokio::test]
async fn tools_of_a_dead_foreign_worker_run_on_another_one() {
    let sandbox = Sandbox::worker_command(&command("stdout"), 2).start().await;
    let mut client = sandbox.client().await;
    let session_id = "with-session".to_owned();
    let open = pb::InitializeSessionRequest { session_id: session_id.clone(), ..Default::default() };
    client.initialize_session(open).await.unwrap();
    let call = pb::ExecuteToolRequest { session_id, ..tool_request("add", &json!({"a": 1, "b": 2})) };
    client.execute_tool(call.clone()).await.unwrap();
    let tools = client.list_tools(pb::ListToolsRequest {}).await.unwrap().into_inner().tools;
    assert!(tools.iter().any(|tool| tool.spec.as_ref().unwrap().name == "add"), "{tools:?}");

    // After the worker that registered the tool has died, another worker serves it.
    let first = sandbox.worker_pids().await[0];
    signal(first, Signal::SIGKILL);
    eventually("the call is served again", Duration::from_secs(10), async || {
        client.clone().execute_tool(call.clone()).await.is_ok_and(|response| response.into_inner().success)
    })
    .await;
}

#[tokio::test]
async fn a_foreign_worker_is_replaced_after_a_call_that_it_cannot_cancel() {
    let sandbox = Sandbox::worker_command(&command("stdout"), 1).start().await;
    let mut client = sandbox.client().await;
    let status =
        execute_within(sandbox.url(), Duration::from_millis(300), "sleep_for", &json!({"seconds": 60}))
            .await
            .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // The worker cannot stop its threads, so only a new worker is known to be idle.
    assert_eq!(execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    assert_eq!(sandbox.workers().await[0].restarts, 1);
}

#[tokio::test]
async fn foreign_workers_end_with_a_killed_host() {
    let mut sandbox = Sandbox::worker_command(&command("file"), 2).start().await;
    let pids = sandbox.worker_pids().await;
    signal(sandbox.pid(), Signal::SIGKILL);
    sandbox.wait(Duration::from_secs(5)).await;
    eventually("every worker has ended", Duration::from_secs(2), async || {
        pids.iter().all(|pid| !is_alive(*pid))
    })
    .await;
}
