//! Runs the examples of the pages in docs/embedding. They stop with an error if a step fails.

#[allow(dead_code, reason = "the test calls `run`")]
#[path = "../../snakepit-server/examples/call_many.rs"]
mod call_many;
#[allow(dead_code, reason = "the test calls `run`")]
#[path = "../../snakepit-server/examples/call_records.rs"]
mod call_records;
#[allow(dead_code, reason = "the test calls `run`")]
#[path = "../../snakepit-server/examples/cancellation.rs"]
mod cancellation;
#[allow(dead_code, reason = "the test calls `run`")]
#[path = "../../snakepit-server/examples/layered_pool.rs"]
mod layered_pool;
#[allow(dead_code, reason = "the test calls `run`")]
#[path = "../../snakepit-server/examples/permissions.rs"]
mod permissions;
#[allow(dead_code, reason = "the test calls `run`")]
#[path = "../../snakepit-server/examples/streaming_both_ways.rs"]
mod streaming_both_ways;

#[tokio::test]
async fn the_example_with_cancelled_calls_runs() {
    cancellation::run().await.unwrap();
}

#[tokio::test]
async fn the_example_with_streams_runs() {
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/../snakepit-server/examples/running_mean.py");
    assert_eq!(streaming_both_ways::run(adapter).await.unwrap(), [1.0, 1.5, 2.0, 2.5]);
}

#[tokio::test]
async fn the_example_with_layers_runs() {
    layered_pool::run().await.unwrap();
}

#[tokio::test]
async fn the_example_with_many_calls_runs() {
    call_many::run().await.unwrap();
}

#[tokio::test]
async fn the_example_with_records_runs() {
    let lines = call_records::run().await.unwrap();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("add OK, ") && lines[1].starts_with("ad TOOL_NOT_FOUND, "), "{lines:?}");
}

#[tokio::test]
async fn the_example_with_permissions_runs() {
    permissions::run().await.unwrap();
}
