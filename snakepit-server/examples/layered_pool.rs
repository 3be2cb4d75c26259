//! tower layers around calls: a timeout, load shedding, and a custom layer that measures calls.
//!
//! Run it with `cargo run -p snakepit-server --example layered_pool` after `cargo xtask setup`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::time::Duration;

use serde_json::{Value, json};
use snakepit_server::{CallService, Error, Snakepit, ToolCall, ToolReply};
use tokio::time::Instant;
use tower::{BoxError, ServiceBuilder, ServiceExt, layer::layer_fn, service_fn, timeout::TimeoutLayer};

/// Prints the time of each call.
async fn measure(inner: CallService, call: ToolCall) -> Result<ToolReply, BoxError> {
    let (tool, start) = (call.tool.clone(), Instant::now());
    let reply = inner.oneshot(call).await;
    println!("{tool}: {} after {:?}", if reply.is_ok() { "ok" } else { "error" }, start.elapsed());
    Ok(reply?)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    run().await
}

pub(crate) async fn run() -> Result<(), Error> {
    let measured = layer_fn(|inner: CallService| service_fn(move |call| measure(inner.clone(), call)));
    let snakepit = Snakepit::builder()
        .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
        .workers(2)
        // A call passes these layers from top to bottom.
        .layer(measured)
        .layer(ServiceBuilder::new().load_shed().concurrency_limit(1))
        .layer(TimeoutLayer::new(Duration::from_millis(300)))
        .start()
        .await?;

    let sum: i64 = snakepit.execute("add", json!({"a": 1, "b": 2})).await?;
    println!("add: {sum}");

    // The first call occupies the limit, so the host sheds the second. The timeout ends the first.
    let sleep = || snakepit.execute::<Value>("sleep_for", json!({"seconds": 5}));
    let (slow, shed) = tokio::join!(sleep(), sleep());
    for error in [slow, shed].into_iter().filter_map(Result::err) {
        println!("timeout: {}, overloaded: {}: {error}", error.is_timeout(), error.is_overloaded());
    }

    snakepit.shutdown().await?;
    Ok(())
}
