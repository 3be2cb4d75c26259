//! How to cancel a call: drop its future, or its stream. The Python tool stops, and its worker runs the next call.
//!
//! Run it with `cargo run -p snakepit-server --example cancellation` after `cargo xtask setup`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::{Value, json};
use snakepit_server::{Error, Snakepit};
use tokio::time::timeout;

#[tokio::main]
async fn main() -> Result<(), Error> {
    run().await
}

pub(crate) async fn run() -> Result<(), Error> {
    let snakepit = Snakepit::builder()
        .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
        .workers(1)
        .start()
        .await?;
    let worker: Value = snakepit.execute("whoami", ()).await?;

    // `timeout`, `select!` and `JoinHandle::abort` drop the future of the call, which cancels it.
    let call = snakepit.execute::<f64>("sleep_for", json!({"seconds": 600}));
    let cancelled = timeout(Duration::from_millis(200), call).await;
    println!("the program dropped the call: {}", cancelled.is_err());
    assert!(cancelled.is_err());

    // A stream that is dropped before its end cancels the call, too.
    let mut numbers = snakepit.execute_stream::<i64>("count", json!({"n": 1_000_000, "delay": 0.01})).await?;
    println!("the first number: {:?}", numbers.try_next().await?);
    drop(numbers);

    // Both tools stopped within the grace period, so the only worker is still the same process.
    let next: Value = snakepit.execute("whoami", ()).await?;
    println!("the same worker: {}", worker["pid"] == next["pid"]);
    assert_eq!(worker["pid"], next["pid"]);

    snakepit.shutdown().await
}
