//! The embedding API in a few lines: start workers, call Python, stream from Python, let Python call Rust.
//!
//! Run it with `cargo run -p snakepit-server --example embed` after `cargo xtask setup`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use futures_util::TryStreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_server::{Error, Snakepit};

#[derive(Deserialize, JsonSchema)]
struct Greeting {
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let snakepit = Snakepit::builder()
        .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
        .workers(2)
        .host_tool("greet", |g: Greeting| async move { format!("hello, {}", g.name) })
        .start()
        .await?;

    let sum: i64 = snakepit.execute("add", json!({"a": 1, "b": 2})).await?;
    println!("add: {sum}");

    let mut counts = snakepit.execute_stream::<Value>("count", json!({"n": 3})).await?;
    while let Some(item) = counts.try_next().await? {
        println!("count: {item}");
    }

    let session = snakepit.session("alice").await?;
    let arguments = json!({"tool_name": "greet", "arguments": {"name": "Alice"}});
    let greeting: Value = session.execute("call_host", arguments).await?;
    println!("Python called Rust: {greeting}");

    snakepit.shutdown().await?;
    Ok(())
}
