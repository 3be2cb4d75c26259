//! Many calls with a fixed number in flight, and calls that wait for room in a full queue.
//!
//! Run it with `cargo run -p snakepit-server --example call_many` after `cargo xtask setup`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::{pin::pin, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use snakepit_server::{Error, Snakepit};

#[tokio::main]
async fn main() -> Result<(), Error> {
    run().await
}

pub(crate) async fn run() -> Result<(), Error> {
    let snakepit = Snakepit::builder()
        .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
        .workers(2)
        .queue_limit(4)
        .start()
        .await?;

    // Up to eight calls are in flight. The replies arrive in the order of the numbers.
    let doubles = snakepit.call_many(1..=100, 8, |caller, n| {
        let call = caller.call("add").args(json!({"a": n, "b": n}));
        // Two workers run two calls and the queue holds four, so the other two wait for room.
        call.wait_for_room(Duration::from_secs(10))
    });
    let doubles: Vec<i64> = doubles.in_order::<i64>().map_ok(|reply| reply.value).try_collect().await?;
    println!("{} doubles, the last is {}", doubles.len(), doubles[99]);

    // The replies arrive as the calls end. The batch ends early, which cancels the calls in flight.
    let batch = snakepit.call_many([0.5, 0.01, 0.01], 3, |caller, seconds| {
        caller.call("sleep_for").args(json!({"seconds": seconds}))
    });
    {
        let mut completed = pin!(batch.as_completed::<serde_json::Value>().take(2));
        while let Some((index, reply)) = completed.next().await {
            println!("call {index} ended: {:?}", reply?.execution_time);
        }
    }

    snakepit.shutdown().await?;
    Ok(())
}
