//! A client of a running host in a few lines: call a tool, stream from it, share a variable.
//!
//! Start a host with `snakepit serve --adapter snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter`, then run
//! `cargo run -p snakepit-client --example client`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use futures_util::TryStreamExt;
use serde_json::{Value, json};
use snakepit_client::{Client, Error, VariableType};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let client = Client::connect(&address).await?;

    let sum: i64 = client.execute("add", json!({"a": 1, "b": 2})).await?;
    println!("add: {sum}");

    let mut counts = client.execute_stream::<Value>("count", json!({"n": 3})).await?;
    while let Some(item) = counts.try_next().await? {
        println!("count: {item}");
    }

    let session = client.session("alice").await?;
    session.register("total", VariableType::integer(), sum).await?;
    let total: i64 = session.update("total", |total: i64| total + 1).await?;
    println!("total: {total}");
    session.delete().await?;
    Ok(())
}
