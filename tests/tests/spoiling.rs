//! Tools that break their process for the calls that follow: the next call gets the right answer or a clear end, and the pool comes
//! back to full strength.

use std::time::Duration;

use serde_json::json;
use snakepit_tests::{Client, Sandbox, eventually, execute, execute_within, result_of};
use tokio::time::{Instant, sleep};
use tonic::Code;

const SPOILING: &str = "spoiling:SpoilingAdapter";
const WITHIN: Duration = Duration::from_secs(20);

/// Calls a tool until it answers. What it answers must be right, and what fails must not take long.
async fn works(sandbox: &Sandbox, after: &str, tool: &str) {
    let began = Instant::now();
    loop {
        let problem =
            match execute_within(sandbox.url(), Duration::from_secs(10), tool, &json!({"n": 21})).await {
                Ok(response) if response.success => {
                    let answer = result_of(response);
                    assert_eq!((&answer["twice"], &answer["depth"]), (&json!(42), &json!(30)), "{after}");
                    return;
                }
                Ok(response) => response.error_message,
                Err(status) => {
                    assert_ne!(status.code(), Code::DeadlineExceeded, "{tool} hangs after {after}");
                    status.to_string()
                }
            };
        assert!(began.elapsed() < WITHIN, "{tool} fails for ever after {after}: {problem}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn is_whole(sandbox: &Sandbox, workers: usize) -> bool {
    let states = sandbox.workers().await;
    states.len() == workers && states.iter().all(|worker| worker.state == "idle")
}

async fn names(client: &mut Client) -> Vec<String> {
    let names = execute(client, "names", &json!({})).await.unwrap();
    names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn whatever_a_tool_breaks_the_next_calls_work() {
    let sandbox = Sandbox::adapter(SPOILING, 1).start().await;
    let mut client = sandbox.client().await;
    let names = names(&mut client).await;
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        for tool in ["work", "work_async"] {
            let spoiled =
                execute_within(sandbox.url(), Duration::from_secs(10), "spoil", &json!({"how": name})).await;
            // The worker may die of it.
            match spoiled {
                Ok(response) if response.success => assert_eq!(result_of(response), "spoiled", "{name}"),
                // Nor need it succeed.
                Ok(response) => assert!(!response.error_message.is_empty(), "{name}"),
                Err(status) => assert_ne!(status.code(), Code::DeadlineExceeded, "{name}: {status:?}"),
            }
            works(&sandbox, &name, tool).await;
            eventually(&format!("the pool is whole after {name}"), WITHIN, async || {
                is_whole(&sandbox, 1).await
            })
            .await;
            works(&sandbox, &name, tool).await;
        }
    }
}
