//! Runs the examples of docs/embedding.md. They stop with an error if a step fails.

#[allow(dead_code, reason = "the test calls `run`")]
#[path = "../../snakepit-server/examples/call_many.rs"]
mod call_many;
#[allow(dead_code, reason = "the test calls `run`")]
#[path = "../../snakepit-server/examples/layered_pool.rs"]
mod layered_pool;

#[tokio::test]
async fn the_example_with_layers_runs() {
    layered_pool::run().await.unwrap();
}

#[tokio::test]
async fn the_example_with_many_calls_runs() {
    call_many::run().await.unwrap();
}
