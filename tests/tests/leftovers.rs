//! A call leaves no trace in the next one: not in the process, not on its event loop, not in what its errors show.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snakepit_proto::pb::ListWorkersRequest;
use snakepit_tests::{Client, Sandbox, eventually, execute, execute_within, result_of, tool_request};

const LEFTOVERS: &str = "leftovers:Leftovers";
const SOON: Duration = Duration::from_secs(10);

async fn looks_the_same(client: &mut Client, suffix: &str) {
    let names = execute(client, &format!("names{suffix}"), &json!({})).await.unwrap();
    let names: Vec<String> = serde_json::from_value(names).unwrap();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        let named = json!({"name": name});
        let look = format!("look{suffix}");
        let before = execute(client, &look, &named).await.unwrap();
        execute(client, &format!("leave{suffix}"), &named).await.unwrap();
        // The first may still stumble over what the second does not see.
        for _ in 0..2 {
            assert_eq!(execute(client, &look, &named).await.unwrap(), before, "{name}");
        }
    }
}

#[tokio::test]
async fn a_call_finds_the_process_as_the_worker_began() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 1).start().await;
    looks_the_same(&mut sandbox.client().await, "").await;
}

#[tokio::test]
async fn a_call_finds_the_event_loop_as_the_worker_began() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 1).start().await;
    looks_the_same(&mut sandbox.client().await, "_async").await;
}

#[tokio::test]
async fn the_error_of_a_call_shows_the_output_of_no_other() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 1).env("PYTHONUNBUFFERED", "").start().await;
    let mut client = sandbox.client().await;
    execute(&mut client, "whisper", &json!({"text": "card 4111"})).await.unwrap();
    execute(&mut client, "start_talking", &json!({})).await.unwrap();
    let status = execute(&mut client, "die", &json!({"text": "my own"})).await.unwrap_err();
    assert!(status.message().contains("its last output: my own"), "{status:?}");
    assert!(!status.message().contains("the worker's own"), "{status:?}");
    // In the log there is all of it.
    eventually("the log has it", SOON, async || sandbox.log().contains("card 4111")).await;
}

#[tokio::test]
async fn a_fork_has_the_fault_handler_that_python_gives_it() {
    for (wanted, has) in [("", false), ("1", true)] {
        let sandbox = Sandbox::adapter(LEFTOVERS, 1).env("PYTHONFAULTHANDLER", wanted).start().await;
        let mut client = sandbox.client().await;
        assert_eq!(execute(&mut client, "child_writes_stacks", &json!({})).await.unwrap(), has);
    }
}

/// Calls that wait for a worker whose last call left tasks go to another one, and the worker is replaced.
#[tokio::test]
async fn what_a_call_leaves_behind_does_not_delay_other_calls() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 2).start().await;
    let mut client = sandbox.client().await;
    // Slow enough for a machine that runs other tests, and far quicker than what the task leaves takes.
    let innocent = Duration::from_secs(3);
    for (tool, args) in [("leave_task", json!({"seconds": 10})), ("leave_blocking_task", json!({}))] {
        for _ in 0..3 {
            assert_eq!(execute(&mut client, tool, &args).await.unwrap(), "done");
            for _ in 0..4 {
                execute_within(sandbox.url(), innocent, "names", &json!({})).await.unwrap();
            }
        }
    }
    eventually("all workers are back", SOON, async || {
        let workers = client.clone().list_workers(ListWorkersRequest {}).await.unwrap().into_inner().workers;
        workers.len() == 2 && workers.iter().all(|worker| worker.state == "idle" && worker.restarts > 0)
    })
    .await;
}

/// The answer does not wait for what its call left behind, and is not lost to a deadline that passes meanwhile.
#[tokio::test]
async fn what_a_call_leaves_behind_does_not_delay_its_answer() {
    let sandbox = Sandbox::adapter(LEFTOVERS, 1).start().await;
    let mut client = sandbox.client().await;
    let slow = json!({"seconds": 1.5});
    for _ in 0..2 {
        let began = Instant::now();
        let answer =
            execute_within(sandbox.url(), Duration::from_secs(1), "leave_task", &slow).await.unwrap();
        assert_eq!(result_of(answer), "done");
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
