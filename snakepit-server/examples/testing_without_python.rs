//! Tests of an application without Python: workers run Rust closures, and fail when a test asks them to.
//!
//! Run it with `cargo test -p snakepit-server --example testing_without_python`.

use serde_json::json;
use snakepit_server::{Builder, Error, Snakepit};

/// The application: it asks Python for a price, and applies a discount.
#[derive(Debug)]
struct Shop {
    snakepit: Snakepit,
}

impl Shop {
    /// Takes a builder, so that tests can choose the workers.
    async fn open(builder: Builder) -> Result<Self, Error> {
        Ok(Self { snakepit: builder.workers(2).start().await? })
    }

    async fn price(&self, item: &str, count: u32) -> Result<f64, Error> {
        let price: f64 = self.snakepit.execute("price", json!({"item": item, "count": count})).await?;
        Ok(if count >= 10 { price * 0.9 } else { price })
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let shop = Shop::open(Snakepit::builder().adapter("shop:Shop")).await?;
    shop.price("tea", 10).await?;
    shop.snakepit.shutdown().await
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use serde::Deserialize;
    use snakepit_server::{FnTool, ToolError, ToolSpec, error_chain, testing::InProcessWorkers};

    use super::*;

    #[derive(Deserialize)]
    struct Order {
        item: String,
        count: u32,
    }

    /// Workers with a substitute for the Python tool.
    fn workers() -> InProcessWorkers {
        let price = FnTool::typed("price", |order: Order| async move {
            match order.item.as_str() {
                "tea" => Ok(2.0 * f64::from(order.count)),
                // Slow, but a test on paused time does not wait.
                "rare" => {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    Ok(1000.0)
                }
                _ => Err("not sold here"),
            }
        });
        InProcessWorkers::new().fn_tool(price.describe(ToolSpec::idempotent))
    }

    fn builder(workers: &InProcessWorkers) -> Builder {
        Snakepit::builder().launcher(Arc::new(workers.clone()))
    }

    #[tokio::test(start_paused = true)]
    async fn ten_are_cheaper() {
        let shop = Shop::open(builder(&workers())).await.unwrap();
        assert_eq!(shop.price("tea", 1).await.unwrap(), 2.0);
        assert_eq!(shop.price("tea", 10).await.unwrap(), 18.0);
        let unknown = shop.price("gold", 1).await.unwrap_err();
        assert!(unknown.to_string().contains("not sold here"), "{unknown}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_price_ends_at_the_deadline() {
        let builder = builder(&workers()).default_timeout(Some(Duration::from_secs(5)));
        let shop = Shop::open(builder).await.unwrap();
        let late = shop.price("rare", 1).await.unwrap_err();
        assert!(matches!(late, Error::Tool(ToolError::DeadlineExceeded { .. })), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_of_a_worker_is_not_visible() {
        let workers = workers();
        let shop = Shop::open(builder(&workers)).await.unwrap();
        workers.crash_in_calls("price", 1);
        assert_eq!(shop.price("tea", 1).await.unwrap(), 2.0);
        assert_eq!(workers.calls("price"), 2, "the pool repeats the call");
        // Two initial workers, and a replacement.
        workers.launched(3).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_cannot_start_fails_the_start() {
        let workers = workers();
        workers.fail_launches(1, "no memory");
        let error = Shop::open(builder(&workers)).await.unwrap_err();
        assert!(error_chain(&error).to_string().ends_with("worker cannot start: no memory"), "{error:?}");
    }
}
