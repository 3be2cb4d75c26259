//! A worker written with plain grpcio from the wire contract alone serves calls in the pool, over TCP.

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
async fn it_serves_with_either_readiness_signal() {
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
async fn tools_it_registers_go_to_a_live_worker() {
    let sandbox = Sandbox::worker_command(&command("stdout"), 2).start().await;
    let mut client = sandbox.client().await;
    let session_id = "with-session".to_owned();
    let open = pb::InitializeSessionRequest { session_id: session_id.clone(), ..Default::default() };
    client.initialize_session(open).await.unwrap();
    let call = pb::ExecuteToolRequest { session_id, ..tool_request("add", &json!({"a": 1, "b": 2})) };
    client.execute_tool(call.clone()).await.unwrap();
    let tools = client.list_tools(pb::ListToolsRequest {}).await.unwrap().into_inner().tools;
    assert!(tools.iter().any(|tool| tool.spec.as_ref().unwrap().name == "add"), "{tools:?}");

    // The worker that registered it dies; another one serves.
    let first = sandbox.worker_pids().await[0];
    signal(first, Signal::SIGKILL);
    eventually("the call is served again", Duration::from_secs(10), async || {
        client.clone().execute_tool(call.clone()).await.is_ok_and(|response| response.into_inner().success)
    })
    .await;
}

#[tokio::test]
async fn a_call_it_cannot_cancel_costs_the_worker() {
    let sandbox = Sandbox::worker_command(&command("stdout"), 1).start().await;
    let mut client = sandbox.client().await;
    let status =
        execute_within(sandbox.url(), Duration::from_millis(300), "sleep_for", &json!({"seconds": 60}))
            .await
            .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    // It runs calls in threads that nobody can stop, so only a fresh worker is provably idle.
    assert_eq!(execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    assert_eq!(sandbox.workers().await[0].restarts, 1);
}

#[tokio::test]
async fn a_killed_host_takes_it_along() {
    let mut sandbox = Sandbox::worker_command(&command("file"), 2).start().await;
    let pids = sandbox.worker_pids().await;
    signal(sandbox.pid(), Signal::SIGKILL);
    sandbox.wait(Duration::from_secs(5)).await;
    eventually("every worker is gone", Duration::from_secs(2), async || {
        pids.iter().all(|pid| !is_alive(*pid))
    })
    .await;
}
