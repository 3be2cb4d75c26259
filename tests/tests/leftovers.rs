//! State that a call leaves in its process does not affect the next call: signal handlers, tasks, output and others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snakepit_proto::pb::ListWorkersRequest;
use snakepit_tests::{
    Client, EVENT_TIMEOUT, Sandbox, eventually, execute, execute_within, result_of, tool_request,
};

const LEFTOVERS: &str = "leftovers:Leftovers";

/// Checks that each kind of leftover of one call is invisible to the next calls.
async fn check_leftovers(client: &mut Client, suffix: &str) {
    let names = execute(client, &format!("names{suffix}"), &json!({})).await.unwrap();
    let names: Vec<String> = serde_json::from_value(names).unwrap();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        let arguments = json!({"name": name});
        let look = format!("look{suffix}");
        let before = execute(client, &look, &arguments).await.unwrap();
        execute(client, &format!("leave{suffix}"), &arguments).await.unwrap();
        // The first call after a leftover may behave differently from the second, so both are checked.
        for _ in 0..2 {
            assert_eq!(execute(client, &look, &arguments).await.unwrap(), before, "{name}");
        }
    }
}

#[tokio::test]
async fn changes_to_the_process_do_not_reach_the_next_call() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 1).start().await;
    check_leftovers(&mut sandbox.client().await, "").await;
}

#[tokio::test]
async fn changes_to_the_event_loop_do_not_reach_the_next_call() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 1).start().await;
    check_leftovers(&mut sandbox.client().await, "_async").await;
}

#[tokio::test]
async fn the_error_of_a_call_contains_only_the_output_of_that_call() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 1).env("PYTHONUNBUFFERED", "").start().await;
    let mut client = sandbox.client().await;
    execute(&mut client, "whisper", &json!({"text": "card 4111"})).await.unwrap();
    execute(&mut client, "start_talking", &json!({})).await.unwrap();
    let status = execute(&mut client, "die", &json!({"text": "my own"})).await.unwrap_err();
    assert!(status.message().contains("its last output: my own"), "{status:?}");
    assert!(!status.message().contains("the worker's own"), "{status:?}");
    // The log contains the output of all calls.
    eventually("the log contains the output", EVENT_TIMEOUT, async || sandbox.log().contains("card 4111"))
        .await;
}

#[tokio::test]
async fn a_fork_has_a_fault_handler_only_if_python_enables_it() {
    for (setting, is_enabled) in [("", false), ("1", true)] {
        let sandbox = Sandbox::adapter(LEFTOVERS, 1).env("PYTHONFAULTHANDLER", setting).start().await;
        let mut client = sandbox.client().await;
        assert_eq!(execute(&mut client, "child_writes_stacks", &json!({})).await.unwrap(), is_enabled);
    }
}

/// Waiting calls move to another worker if the last call of their worker left tasks, and the worker is replaced.
#[tokio::test]
async fn tasks_left_by_a_call_do_not_delay_other_calls() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 2).start().await;
    let mut client = sandbox.client().await;
    // The limit is long enough for a busy machine, and much shorter than the tasks.
    let limit = Duration::from_secs(3);
    for (tool, args) in [("leave_task", json!({"seconds": 10})), ("leave_blocking_task", json!({}))] {
        for _ in 0..3 {
            assert_eq!(execute(&mut client, tool, &args).await.unwrap(), "done");
            for _ in 0..4 {
                execute_within(sandbox.url(), limit, "names", &json!({})).await.unwrap();
            }
        }
    }
    eventually("all workers are replaced and idle", EVENT_TIMEOUT, async || {
        let workers = client.clone().list_workers(ListWorkersRequest {}).await.unwrap().into_inner().workers;
        workers.len() == 2 && workers.iter().all(|worker| worker.state == "idle" && worker.restarts > 0)
    })
    .await;
}

/// The response does not wait for the tasks, and a deadline that passes while they run does not discard it.
#[tokio::test]
async fn tasks_left_by_a_call_do_not_delay_its_response() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 1).start().await;
    let mut client = sandbox.client().await;
    let slow = json!({"seconds": 1.5});
    for _ in 0..2 {
        let began = Instant::now();
        let response =
            execute_within(sandbox.url(), Duration::from_secs(1), "leave_task", &slow).await.unwrap();
        assert_eq!(result_of(response), "done");
        assert!(began.elapsed() < Duration::from_secs(1));
        execute(&mut client, "names", &json!({})).await.unwrap();
    }
    let began = Instant::now();
    let chunks = client.execute_streaming_tool(tool_request("leave_task_in_stream", &slow)).await.unwrap();
    let mut chunks = chunks.into_inner();
    let first = chunks.message().await.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&first.data).unwrap(), "done");
    while chunks.message().await.unwrap().is_some() {}
    assert!(began.elapsed() < Duration::from_secs(1));
}
