//! Permits each principal only the tools that it has a grant for.
//!
//! Run it with `cargo run -p snakepit-server --example permissions` after `cargo xtask setup`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use snakepit_server::{Denied, Operation, Principal, Snakepit, ToolCall};
use tower::Service;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    run().await
}

pub(crate) async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let snakepit = Snakepit::builder()
        .adapter("snakepit_bridge.adapters.showcase.showcase_adapter:ShowcaseAdapter")
        .workers(1)
        .authorize(|principal, operation| match operation {
            // Tools may use sessions and host tools, whoever calls them.
            _ if principal.worker_id().is_some() => Ok(()),
            Operation::Call { tool, .. } if principal.has_grant(tool) => Ok(()),
            _ => Err(Denied::new(format!("{principal} has no grant for this"))),
        })
        .start()
        .await?;

    let mut call = ToolCall::new("add").try_with_argument("a", &1)?.try_with_argument("b", &2)?;
    call.principal = Principal::new("alice", "token").with_grants(["add"]);
    let reply = snakepit.service().call(call).await?;
    println!("{:?}", reply.body);

    let mut call = ToolCall::new("add");
    call.principal = Principal::new("bob", "token");
    let denied = snakepit.service().call(call).await.map(drop);
    if !denied.as_ref().is_err_and(|error| error.http_status() == 403) {
        return Err(format!("bob has no grant: {denied:?}").into());
    }
    snakepit.shutdown().await?;
    Ok(())
}
