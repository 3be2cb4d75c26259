//! Tools that break their process: the next call ends with the correct result or an error, and the pool recovers.

use std::time::Duration;

use serde_json::json;
use snakepit_tests::{Client, Sandbox, eventually, execute, execute_within, result_of};
use tokio::time::{Instant, sleep};
use tonic::Code;

const SABOTAGE: &str = "sabotage:SabotageAdapter";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Calls a tool until it succeeds. The result must be correct, and errors must arrive before the deadline.
async fn call_until_success(sandbox: &Sandbox, after: &str, tool: &str) {
    let began = Instant::now();
    loop {
        let problem =
            match execute_within(sandbox.url(), Duration::from_secs(10), tool, &json!({"n": 21})).await {
                Ok(response) if response.success => {
                    let result = result_of(response);
                    assert_eq!((&result["twice"], &result["depth"]), (&json!(42), &json!(30)), "{after}");
                    return;
                }
                Ok(response) => response.error_message,
                Err(status) => {
                    assert_ne!(status.code(), Code::DeadlineExceeded, "{tool} hangs after {after}");
                    status.to_string()
                }
            };
        assert!(began.elapsed() < TIMEOUT, "{tool} still fails after {after}: {problem}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn is_recovered(sandbox: &Sandbox, workers: usize) -> bool {
    let states = sandbox.workers().await;
    states.len() == workers && states.iter().all(|worker| worker.state == "idle")
}

async fn names(client: &mut Client) -> Vec<String> {
    let names = execute(client, "names", &json!({})).await.unwrap();
    names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn calls_succeed_after_a_tool_broke_its_process() {
    let sandbox = Sandbox::adapter(SABOTAGE, 1).start().await;
    let mut client = sandbox.client().await;
    let names = names(&mut client).await;
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        for tool in ["work", "work_async"] {
            let outcome =
                execute_within(sandbox.url(), Duration::from_secs(10), "sabotage", &json!({"how": name}))
                    .await;
            // The tool may succeed, fail, or kill its worker.
            match outcome {
                Ok(response) if response.success => assert_eq!(result_of(response), "sabotaged", "{name}"),
                Ok(response) => assert!(!response.error_message.is_empty(), "{name}"),
                Err(status) => assert_ne!(status.code(), Code::DeadlineExceeded, "{name}: {status:?}"),
            }
            call_until_success(&sandbox, &name, tool).await;
            eventually(&format!("the pool recovers after {name}"), TIMEOUT, async || {
                is_recovered(&sandbox, 1).await
            })
            .await;
            call_until_success(&sandbox, &name, tool).await;
        }
    }
}
