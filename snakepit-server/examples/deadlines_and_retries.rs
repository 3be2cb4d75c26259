//! Deadlines of calls, retries by the pool, and retries by the program.
//!
//! Run it with `cargo run -p snakepit-server --example deadlines_and_retries`. It needs no Python.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::{future::Future, sync::Arc, time::Duration};

use snakepit_server::{Error, FnTool, Snakepit, ToolSpec, testing::InProcessWorkers};

/// The most attempts of [`until_done`].
const ATTEMPTS: u32 = 5;

/// Makes a call again after errors that make a retry safe and useful. An idempotent call may repeat every transient error instead:
/// `error.kind().is_transient()`.
async fn until_done<T, F: Future<Output = Result<T, Error>>>(call: impl Fn() -> F) -> Result<T, Error> {
    for _ in 1..ATTEMPTS {
        match call().await {
            Err(error) if error.is_retryable() => {
                println!("retrying after: {error}");
                tokio::time::sleep(error.retry_after().unwrap_or(Duration::from_millis(100))).await;
            }
            done => return done,
        }
    }
    call().await
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let price = FnTool::new("price", || async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        4
    })
    .describe(ToolSpec::idempotent);
    let order = FnTool::new("order", || async { 1 });
    let slow = FnTool::new("slow", || async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        0
    });
    let workers = InProcessWorkers::new().fn_tool(price).fn_tool(order).fn_tool(slow);
    let snakepit = Snakepit::builder()
        .launcher(Arc::new(workers.clone()))
        .workers(1)
        .queue_limit(1)
        // The deadline of calls that set none.
        .default_timeout(Some(Duration::from_secs(10)))
        .start()
        .await?;

    // The deadline covers the wait in the queue and all attempts.
    let late = snakepit.call("slow").timeout(Duration::from_millis(100)).unary::<i64>().await;
    let is_timeout = late.as_ref().is_err_and(Error::is_timeout);
    println!("timeout: {is_timeout}");
    assert!(is_timeout);

    // The worker crashes during the call. The pool repeats the call on another worker, because the tool is idempotent.
    workers.crash_in_calls("price", 1);
    let price: i64 = snakepit.execute("price", ()).await?;
    println!("the price is {price} after {} attempts", workers.calls("price"));
    assert_eq!(workers.calls("price"), 2);

    // The pool does not repeat this call, because it may have run. The program decides.
    workers.crash_in_calls("order", 1);
    let lost = snakepit.execute::<i64>("order", ()).await.err();
    println!("{}", lost.as_ref().map(ToString::to_string).unwrap_or_default());
    assert!(lost.is_some_and(|error| error.may_have_run() && !error.is_retryable()));

    // One call runs and one is queued, so the host rejects the third until there is room.
    let price = || until_done(|| snakepit.execute::<i64>("price", ()));
    let prices = tokio::try_join!(price(), price(), price())?;
    assert_eq!(prices, (4, 4, 4));

    snakepit.shutdown().await
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
