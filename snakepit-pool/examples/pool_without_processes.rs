//! A pool without processes, gRPC and sessions: its workers run Rust closures in this process.
//!
//! Run it with `cargo run -p snakepit-pool --example pool_without_processes`. It needs no Python.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use snakepit_pool::{Pool, PoolConfig};
use snakepit_registry::{FnTool, ReplyBody, ToolCall, ToolHandler};
use snakepit_worker::testing::InProcessWorkers;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let double = FnTool::typed("double", |args: HashMap<String, i64>| async move { args["x"] * 2 });
    let workers = InProcessWorkers::new().fn_tool(double);
    let pool = Pool::start(PoolConfig::default().workers(2), Arc::new(workers.clone()))?;
    pool.ready().await?;

    // A worker crashes during the call. The pool replaces the worker, and repeats the call if its caller permits it.
    workers.crash_in_calls("double", 1);
    let mut call = ToolCall::new("double").try_with_argument("x", &21)?;
    call.idempotent = true;
    let reply = pool.tool().call(call).await?;
    let ReplyBody::Value(value) = reply.body else { return Err("the tool does not stream".into()) };
    println!("{} after {} attempts", value.to_serde::<i64>()?, workers.calls("double"));
    assert_eq!((value.to_serde::<i64>()?, workers.calls("double")), (42, 2));

    pool.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
