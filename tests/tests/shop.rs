//! The shop adapter of the README, called from Rust and from the command line.

use futures_util::TryStreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_server::{Builder, Snakepit, error_chain};
use snakepit_tests::{Sandbox, python, root};

const SHOP: &str = "shop:Shop";

#[derive(Deserialize, JsonSchema)]
struct Discount {
    item: String,
}

fn shop(dir: &tempfile::TempDir) -> Builder {
    Snakepit::builder()
        .adapter("shop:Shop")
        .host_tool("discount", |order: Discount| async move { if order.item == "tea" { 0.5 } else { 0.0 } })
        .python(python())
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .run_dir(dir.path())
        .workers(1)
}

#[tokio::test]
async fn the_shop_works_from_rust_with_its_host_tool() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = shop(&dir).start().await.unwrap();
    let price: f64 = snakepit.execute("price", json!({"item": "tea", "count": 2})).await.unwrap();
    assert!((price - 19.98).abs() < 1e-9, "{price}");
    assert_eq!(snakepit.execute::<i64>("stock", json!({"item": "tea"})).await.unwrap(), 3);
    let lines = snakepit.execute_stream("receipt", json!({"items": ["tea", "milk"]})).await.unwrap();
    let lines: Vec<Value> = lines.try_collect().await.unwrap();
    assert_eq!(lines, [json!({"item": "tea", "price": 9.99}), json!({"item": "milk", "price": 9.99})]);
    let sale: f64 = snakepit.execute("sale", json!({"item": "tea"})).await.unwrap();
    assert!((sale - 4.995).abs() < 1e-9, "{sale}");

    let error = snakepit.execute::<Value>("receipt", json!({"items": []})).await.unwrap_err().to_string();
    assert!(error.contains("`receipt` streams its results; call it with `execute_stream`"), "{error}");
    assert!(!error.contains("Execute"), "{error}");
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_shop_works_from_the_command_line_except_for_its_host_tool() {
    let sandbox = Sandbox::adapter(SHOP, 1).start().await;
    assert_eq!(sandbox.cli_ok(&["call", "price", "--args", r#"{"item": "tea"}"#]).await, "9.99\n");
    assert_eq!(sandbox.cli_ok(&["call", "stock", "--args", r#"{"item": "tea"}"#]).await, "3\n");
    let receipt = sandbox.cli_ok(&["stream", "receipt", "--args", r#"{"items": ["tea", "milk"]}"#]).await;
    assert_eq!(receipt.lines().count(), 2);
    let sale = sandbox.cli(&["call", "sale", "--args", r#"{"item": "tea"}"#]).await;
    let stderr = String::from_utf8(sale.stderr).unwrap();
    assert_eq!(sale.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("NotFoundError") && stderr.contains("host tool `discount` not found"),
        "{stderr}"
    );
}

#[tokio::test]
async fn a_host_tool_with_the_name_of_a_python_tool_fails_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let taken = shop(&dir).host_tool("price", |_: Value| async move { 1 });
    let error = error_chain(&taken.start().await.unwrap_err()).to_string();
    assert!(error.contains("tool name `price` is taken by host; rename one of the two"), "{error}");
}
