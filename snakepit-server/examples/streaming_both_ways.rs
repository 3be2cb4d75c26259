//! Streams in both directions: a Python tool reads the stream of a host tool, and streams its own results to the program.
//!
//! Run it with `cargo run -p snakepit-server --example streaming_both_ways` after `cargo xtask setup`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use futures_util::{Stream, TryStreamExt, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use snakepit_server::{Error, Snakepit};

#[derive(Deserialize, JsonSchema)]
struct Series {
    /// The number of measurements.
    n: u32,
}

/// A host tool that streams. It does not run ahead of the Python reader.
fn measurements(Series { n }: Series) -> impl Stream<Item = u32> {
    stream::iter(1..=n)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let means = run(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/running_mean.py")).await?;
    println!("{means:?}");
    Ok(())
}

/// Returns the results that arrived from Python. `adapter` is the path of `running_mean.py`.
pub(crate) async fn run(adapter: &str) -> Result<Vec<f64>, Error> {
    let snakepit = Snakepit::builder()
        .adapter(adapter)
        .workers(1)
        .host_tool("measurements", measurements)
        .start()
        .await?;

    // Each item passes from Rust to Python and back before the host tool is at its end.
    let means = snakepit.execute_stream::<f64>("running_mean", json!({"n": 4})).await?.try_collect().await?;

    snakepit.shutdown().await?;
    Ok(means)
}
