//! Typed variables of a session.
//!
//! Run it with `cargo run -p snakepit-server --example state` after `cargo xtask setup`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints its results")]

use snakepit_server::{Snakepit, VariableType, WatchEvent};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let snakepit = Snakepit::builder()
        .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
        .workers(1)
        .start()
        .await?;

    let session = snakepit.session("alice").await?;
    session.register("rate", VariableType::float().range(0.0..=1.0), 0.1).await?;
    let mut watch = session.watch(["rate"]).await?;

    session.set("rate", 0.2).await?;
    let rejected = session.set("rate", 2).await;
    println!("{}", rejected.unwrap_err()); // variable `rate`: value 2 is above maximum 1
    // Retries if another writer was faster, so no update is lost.
    session.update("rate", |rate: f64| rate / 2.0).await?;

    while let Some(event) = watch.next().await {
        let WatchEvent::Update(update) = event? else { continue };
        println!("version {}: {}", update.variable.version, update.variable.value.to_serde::<f64>()?);
        if update.variable.version == 2 {
            break;
        }
    }

    snakepit.shutdown().await?;
    Ok(())
}
