//! Prints one line for each call that has ended, with its time in the queue and its reason.
//!
//! Run it with `cargo run -p snakepit-server --example call_records` after `cargo xtask setup`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use serde_json::json;
use snakepit_server::{Error, Reason, Snakepit};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<(), Error> {
    for line in run().await? {
        println!("{line}");
    }
    Ok(())
}

/// Makes two calls, and returns their lines.
pub(crate) async fn run() -> Result<Vec<String>, Error> {
    let (lines, mut printed) = mpsc::channel(1000);
    let snakepit = Snakepit::builder()
        .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
        .workers(1)
        .on_call_end(move |record| {
            let waited = record.assigned.unwrap_or_default() - record.queued.unwrap_or_default();
            let reason = record.reason().map_or("OK", Reason::as_str);
            // A reader must not block. If the channel is full, the line is lost.
            let _full = lines.try_send(format!("{} {reason}, waited {waited:?}", record.tool));
        })
        .start()
        .await?;
    let sum: i64 = snakepit.execute("add", json!({"a": 1, "b": 2})).await?;
    let unknown = snakepit.execute::<i64>("ad", json!({"a": 1, "b": sum})).await;
    println!("{sum}, {:?}", unknown.err().map(|error| error.kind()));

    let mut received = Vec::new();
    while let Ok(line) = printed.try_recv() {
        received.push(line);
    }
    snakepit.shutdown().await?;
    Ok(received)
}
