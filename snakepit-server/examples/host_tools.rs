//! Host tools: parameters from a struct, shared state, the session of the call, calls to other tools, streams and counters.
//!
//! Run it with `cargo run -p snakepit-server --example host_tools`. It needs no Python.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::sync::Arc;

use futures_util::{Stream, TryStreamExt, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use snakepit_server::{Error, FnTool, Host, SessionHandle, Snakepit, State};

/// The arguments of the tools. Parameters have the types, descriptions and defaults of the fields.
#[derive(Deserialize, JsonSchema)]
struct Order {
    /// The name of the item.
    #[serde(alias = "product")]
    item: String,
    /// The number of items.
    #[serde(default = "one")]
    count: u32,
}

fn one() -> u32 {
    1
}

/// The state that the tools share. Each call gets a clone.
#[derive(Clone)]
struct Shop {
    prices: Arc<[(&'static str, f64)]>,
}

async fn price(order: Order, State(shop): State<Shop>) -> Result<f64, String> {
    let price = shop.prices.iter().find(|(item, _)| *item == order.item);
    let (_, price) = price.ok_or_else(|| format!("there is no {}", order.item))?;
    Ok(price * f64::from(order.count))
}

/// Calls another tool, in the session of the current call.
async fn sale(order: Order, session: SessionHandle) -> Result<String, Error> {
    let price: f64 = session.execute("price", json!({"item": order.item, "count": order.count})).await?;
    Ok(format!("{} pays {:.2}", session.id(), price / 2.0))
}

/// A tool that returns a stream streams its results.
fn catalogue(State(shop): State<Shop>) -> impl Stream<Item = String> {
    stream::iter((0..shop.prices.len()).map(move |index| shop.prices[index].0.to_owned()))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    // Python tools do not see this tool.
    let audit = FnTool::new("audit", |host: Host| async move {
        host.execute::<f64>("price", json!({"item": "tea"})).await
    });
    let snakepit = Snakepit::builder()
        .without_workers()
        .state(Shop { prices: Arc::new([("tea", 4.5), ("milk", 1.25)]) })
        .host_tool("price", price)
        .host_tool("sale", sale)
        .host_tool("catalogue", catalogue)
        .fn_tool(audit.exposed(false))
        .start()
        .await?;

    let price: f64 = snakepit.execute("price", json!({"product": "tea", "count": 2})).await?;
    assert!((price - 9.0).abs() < 1e-9);
    let session = snakepit.session("alice").await?;
    let sale: String = session.execute("sale", json!({"item": "milk", "count": 4})).await?;
    println!("{sale}");
    assert_eq!(sale, "alice pays 2.50");
    let names: Vec<String> = snakepit.execute_stream("catalogue", ()).await?.try_collect().await?;
    assert_eq!(names, ["tea", "milk"]);
    assert!((snakepit.execute::<f64>("audit", ()).await? - 4.5).abs() < 1e-9);

    // The host rejects these arguments before the tool runs, and names both problems.
    let rejected = snakepit.execute::<f64>("price", json!({"itm": "tea"})).await;
    println!("{}", rejected.err().map(|error| error.to_string()).unwrap_or_default());

    for tool in snakepit.host_tool_status() {
        println!("{}: {} calls, {} failed, {:?}", tool.name, tool.calls, tool.failures, tool.total_time);
    }
    snakepit.shutdown().await
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
