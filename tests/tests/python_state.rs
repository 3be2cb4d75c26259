//! Session state in Python tools: the scenarios of `tests/adapters/state_checks.py`, and scenarios with several workers or a
//! client.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use snakepit_proto::{headers, pb};
use snakepit_tests::{Client, EVENT_TIMEOUT, Sandbox, eventually, result_of, tool_request};
use tonic::{Code, Request, Status, Streaming};

const TOOLS: &str = "state_tools:StateTools";

async fn open(client: &mut Client, id: &str) {
    let request = pb::InitializeSessionRequest { session_id: id.to_owned(), ..Default::default() };
    client.initialize_session(request).await.unwrap();
}

fn in_session(id: &str, tool: &str, args: &Value) -> pb::ExecuteToolRequest {
    pb::ExecuteToolRequest { session_id: id.to_owned(), ..tool_request(tool, args) }
}

async fn call(client: &mut Client, session: &str, tool: &str, args: &Value) -> Value {
    result_of(client.execute_tool(in_session(session, tool, args)).await.unwrap().into_inner())
}

async fn variable(client: &mut Client, session: &str, name: &str) -> pb::Variable {
    let request = pb::GetVariableRequest {
        session_id: session.to_owned(),
        variable_identifier: name.to_owned(),
        bypass_cache: false,
    };
    client.get_variable(request).await.unwrap().into_inner().variable.unwrap()
}

async fn set(client: &mut Client, session: &str, name: &str, value: u64) {
    let any = pb::Any {
        type_url: "type.googleapis.com/snakepit.integer".to_owned(),
        value: Bytes::from(value.to_string()),
    };
    let request = pb::SetVariableRequest {
        session_id: session.to_owned(),
        variable_identifier: name.to_owned(),
        value: Some(any),
        ..Default::default()
    };
    client.set_variable(request).await.unwrap();
}

async fn next(chunks: &mut Streaming<pb::ToolChunk>) -> Result<Value, Status> {
    let chunk =
        tokio::time::timeout(EVENT_TIMEOUT, chunks.message()).await.expect("a chunk arrives")?.unwrap();
    Ok(serde_json::from_slice(&chunk.data).unwrap())
}

async fn is_idle(sandbox: &Sandbox) -> bool {
    sandbox.workers().await.iter().all(|worker| worker.state == "idle")
}

/// Asserts that the worker with this pid still runs.
async fn assert_not_killed(sandbox: &Sandbox, pid: &[u32]) {
    let pids = sandbox.worker_pids().await;
    assert_eq!(pids, pid, "the worker was killed instead of cancelled:\n{}", sandbox.log());
}

#[tokio::test]
async fn every_scenario_passes_with_a_host() {
    let sandbox = Sandbox::adapter(TOOLS, 2).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "names").await;
    let names = call(&mut client, "names", "checks", &json!({})).await;
    let names: Vec<&str> = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(names.len() > 10, "{names:?}");
    assert_eq!(
        call(&mut client, "names", "collector", &json!({})).await,
        json!([true, true]),
        "the garbage collector"
    );
    for name in names {
        open(&mut client, name).await;
        let response = client.execute_tool(in_session(name, "check", &json!({"name": name}))).await;
        let response = response.unwrap().into_inner();
        let failure = response.failure.unwrap_or_default();
        assert!(response.success, "{name}: {}\n{}", response.error_message, failure.traceback);
    }
}

#[tokio::test]
async fn errors_without_a_session_name_the_alternatives() {
    let sandbox = Sandbox::adapter(TOOLS, 1).start().await;
    let mut client = sandbox.client().await;
    let messages = call(&mut client, "", "without_session", &json!({})).await;
    assert!(messages[0].as_str().unwrap().contains("call the tool with one"), "{messages}");
    assert!(messages[1].as_str().unwrap().contains("global_programs"), "{messages}");
}

#[tokio::test]
async fn concurrent_updates_of_several_workers_all_succeed() {
    const WORKERS: i32 = 4;
    const TIMES: i32 = 50;
    let sandbox = Sandbox::adapter(TOOLS, 4).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s").await;
    call(&mut client, "s", "set_value", &json!({"name": "n", "value": 0})).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let mut client = sandbox.client().await;
        calls.spawn(async move {
            let request = in_session("s", "count_up", &json!({"name": "n", "times": TIMES}));
            let response = client.execute_tool(request).await.unwrap();
            let worker = response.metadata().get(headers::WORKER_ID).unwrap().to_str().unwrap().to_owned();
            let _ = result_of(response.into_inner());
            worker
        });
    }
    let workers: BTreeSet<_> = calls.join_all().await.into_iter().collect();
    assert_eq!(workers.len(), 4, "{workers:?}");
    let counted = variable(&mut client, "s", "n").await;
    assert_eq!(counted.value.clone().unwrap().value, (WORKERS * TIMES).to_string());
    assert_eq!(counted.version, WORKERS * TIMES);
    assert_eq!(counted.source(), pb::variable::Source::Python);
    let request = pb::GetVariableHistoryRequest {
        session_id: "s".to_owned(),
        variable_identifier: "n".to_owned(),
        limit: 1,
    };
    let history = client.get_variable_history(request).await.unwrap().into_inner();
    assert!(workers.contains(&history.entries[0].changed_by), "{:?}", history.entries[0]);
}

#[tokio::test]
async fn several_workers_may_write_the_same_new_variable() {
    let sandbox = Sandbox::adapter(TOOLS, 4).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s").await;
    for round in 0..10 {
        let name = format!("n{round}");
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let mut client = sandbox.client().await;
            let arguments = json!({"name": name});
            calls.spawn(async move { call(&mut client, "s", "register_first", &arguments).await });
        }
        calls.join_all().await;
        assert_eq!(variable(&mut client, "s", &name).await.version, 3);
    }
}

#[tokio::test]
async fn a_tool_streams_the_writes_of_a_client_until_its_caller_drops_the_stream() {
    let sandbox = Sandbox::adapter(TOOLS, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s").await;
    for tool in ["relay", "relay_async"] {
        call(&mut client, "s", "set_value", &json!({"name": "n", "value": 0})).await;
        let request = in_session("s", tool, &json!({"name": "n"}));
        let mut chunks = client.execute_streaming_tool(request).await.unwrap().into_inner();
        assert_eq!(next(&mut chunks).await.unwrap(), json!({"kind": "initial", "value": 0, "lost": 0}));
        for value in 1..=100 {
            set(&mut client, "s", "n", value).await;
            assert_eq!(next(&mut chunks).await.unwrap(), json!({"kind": "set", "value": value, "lost": 0}));
        }
        drop(chunks);
        eventually("the worker is idle again", EVENT_TIMEOUT, async || is_idle(&sandbox).await).await;
        let pid = sandbox.worker_pids().await;
        let request = in_session("s", "checks", &json!({}));
        client.execute_tool(request).await.unwrap();
        assert_not_killed(&sandbox, &pid).await;
    }
}

#[tokio::test]
async fn a_deadline_ends_a_watch() {
    let sandbox = Sandbox::adapter(TOOLS, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s").await;
    call(&mut client, "s", "set_value", &json!({"name": "n", "value": 0})).await;
    let pid = sandbox.worker_pids().await;
    for tool in ["relay", "relay_async"] {
        let mut request = Request::new(in_session("s", tool, &json!({"name": "n"})));
        // The first chunk must arrive before, even on a busy machine.
        request.set_timeout(Duration::from_secs(2));
        let mut chunks = client.execute_streaming_tool(request).await.unwrap().into_inner();
        next(&mut chunks).await.unwrap();
        let status = next(&mut chunks).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{tool}: {status:?}");
        eventually("the worker is idle again", EVENT_TIMEOUT, async || is_idle(&sandbox).await).await;
    }
    assert_not_killed(&sandbox, &pid).await;
}

#[tokio::test]
async fn a_watch_stored_beyond_its_call_ends_with_the_call() {
    let sandbox = Sandbox::adapter(TOOLS, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s").await;
    // Ten times the limit of watches per session.
    for round in 1..=100 {
        let count = call(&mut client, "s", "keep_watches", &json!({"count": 100})).await;
        assert_eq!(count, 100 * round);
    }
    assert_eq!(call(&mut client, "s", "read_kept_watches", &json!({})).await, 0);
}

#[tokio::test]
async fn the_error_of_an_unreadable_value_names_the_variable() {
    let sandbox = Sandbox::adapter(TOOLS, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s").await;
    let any = pb::Any {
        type_url: "type.googleapis.com/snakepit.tensor.binary".to_owned(),
        value: br#"{"shape":[1],"dtype":"float64","binary_format":"pickle"}"#.as_slice().into(),
    };
    let request = pb::RegisterVariableRequest {
        session_id: "s".to_owned(),
        name: "pickled".to_owned(),
        r#type: "tensor".to_owned(),
        initial_value: Some(any),
        initial_binary_value: vec![0; 8].into(),
        ..Default::default()
    };
    client.register_variable(request).await.unwrap();
    let messages = call(&mut client, "s", "read_unreadable", &json!({"name": "pickled"})).await;
    let messages = messages.as_array().unwrap();
    assert_eq!(messages.len(), 4);
    for text in messages {
        let text = text.as_str().unwrap();
        assert!(text.contains("variable `pickled` cannot be read: ") && text.contains("pickle"), "{text}");
    }
}

#[tokio::test]
async fn a_fork_of_a_worker_cannot_use_its_watch() {
    let sandbox = Sandbox::adapter(TOOLS, 1).start().await;
    let mut client = sandbox.client().await;
    open(&mut client, "s").await;
    call(&mut client, "s", "set_value", &json!({"name": "n", "value": 0})).await;
    for _ in 0..10 {
        assert_eq!(call(&mut client, "s", "fork_a_watch", &json!({})).await, 0);
    }
}

#[tokio::test]
async fn the_end_of_a_session_ends_its_watches() {
    let sandbox = Sandbox::adapter(TOOLS, 1).start().await;
    let mut client = sandbox.client().await;
    for tool in ["relay", "relay_async"] {
        open(&mut client, "s").await;
        call(&mut client, "s", "set_value", &json!({"name": "n", "value": 0})).await;
        let request = in_session("s", tool, &json!({"name": "n"}));
        let mut chunks = client.execute_streaming_tool(request).await.unwrap().into_inner();
        next(&mut chunks).await.unwrap();
        let cleanup = pb::CleanupSessionRequest { session_id: "s".to_owned(), force: false };
        client.cleanup_session(cleanup).await.unwrap();
        let status = next(&mut chunks).await.unwrap_err();
        assert!(status.message().contains("NotFoundError: session `s` not found"), "{tool}: {status:?}");
    }
}
