//! Clients behind the proxies of docs/proxies.md, with its settings; and what they say of proxies that stand in the way.

use std::time::Duration;

use futures_util::{TryStreamExt, future::join_all};
use serde_json::{Value, json};
use snakepit_server::{Client, Error, ToolError};
use snakepit_tests::{Proxy, SHOWCASE, Sandbox};

fn host_of(sandbox: &Sandbox) -> String {
    sandbox.url().trim_start_matches("http://").to_owned()
}

/// What the command line says on stderr, with its exit code.
async fn cli(address: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = Sandbox::cli_at(address, args).await;
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

const ADD: &[&str] = &["call", "add", "--args", r#"{"a": 1, "b": 2}"#];

async fn everything_works_behind(proxy: &Proxy) {
    let client = Client::connect(&proxy.address()).await.unwrap();
    // Several megabytes on the stream that calls share, and one that gets a request of its own.
    let text = "x".repeat(100_000);
    for _ in 0..40 {
        let echoed: Value = client.execute("echo", json!({"text": text})).await.unwrap();
        assert_eq!(echoed["text"], *text);
    }
    let text = "x".repeat(5_000_000);
    let echoed: Value = client.execute("echo", json!({"text": text})).await.unwrap();
    assert_eq!(echoed["text"], *text);
    let numbers: Vec<u64> =
        client.execute_stream::<u64>("count", json!({"n": 2000})).await.unwrap().try_collect().await.unwrap();
    assert_eq!(numbers.len(), 2000);
    // More connections at once than a listen backlog of 128 takes.
    let calls = (0..200).map(|_| async {
        let client = Client::connect(&proxy.address()).await?;
        client.execute::<i64>("add", json!({"a": 1, "b": 2})).await
    });
    for sum in join_all(calls).await {
        assert_eq!(sum.unwrap(), 3);
    }
    assert_eq!(cli(&proxy.address(), ADD).await, (Some(0), String::new()));
    // A deadline is the host's own answer.
    let sleep = client.call("sleep_for").args(json!({"seconds": 60})).timeout(Duration::from_millis(300));
    let error = sleep.unary::<Value>().await.unwrap_err();
    assert!(matches!(error, Error::Tool(ToolError::DeadlineExceeded { .. })), "{error}");
}

#[tokio::test]
async fn nginx_with_the_documented_settings_is_transparent() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    everything_works_behind(&Proxy::nginx(&host_of(&sandbox)).await).await;
}

#[tokio::test]
async fn haproxy_with_the_documented_settings_is_transparent() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    everything_works_behind(&Proxy::haproxy(&host_of(&sandbox)).await).await;
}

#[tokio::test]
async fn a_limit_on_bodies_is_named_by_what_it_cuts() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let limited = |settings: String| settings.replace("client_max_body_size 0;", "");
    let proxy = Proxy::nginx_with(&host_of(&sandbox), limited).await;
    let client = Client::connect(&proxy.address()).await.unwrap();
    let text = "x".repeat(100_000);
    let mut lost = None;
    for _ in 0..20 {
        if let Err(error) = client.execute::<Value>("echo", json!({"text": text})).await {
            lost = Some(error.to_string());
            break;
        }
    }
    let lost = lost.expect("nginx limits bodies to a megabyte");
    for needle in ["the proxy (nginx/", "cut the stream", "client_max_body_size 0"] {
        assert!(lost.contains(needle), "no {needle:?} in {lost}");
    }
    // The next call has a stream of its own again.
    let sum: i64 = client.execute("add", json!({"a": 1, "b": 2})).await.unwrap();
    assert_eq!(sum, 3);
    // A single request above the limit is answered by the proxy.
    let file = json!({"text": "x".repeat(100_000)}).to_string();
    let (code, _) = cli(&proxy.address(), &["call", "echo", "--args", &file]).await;
    assert_eq!(code, Some(0));
    let error = client.execute::<Value>("echo", json!({"text": "x".repeat(5_000_000)})).await.unwrap_err();
    assert!(error.to_string().contains("client_max_body_size 0"), "{error}");
}

#[tokio::test]
async fn a_proxy_that_answers_instead_of_the_host_is_named() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let with =
        |text: &'static str| move |settings: String| settings.replace("grpc_pass grpc://snakepit;", text);
    let as_it_is = |settings: String| settings;
    for (proxy, needle) in [
        (Proxy::nginx_with(&nobody, as_it_is).await, "the proxy answered 502 Bad Gateway"),
        (Proxy::haproxy(&nobody).await, "the proxy answered 503 Service Unavailable"),
        (Proxy::nginx_with(&nobody, with("return 404;")).await, "the proxy answered 404 Not Found"),
        (Proxy::nginx_with(&nobody, with("return 504;")).await, "the proxy answered 504 Gateway Timeout"),
        (Proxy::nginx_with(&nobody, with("return 200 '<html>';")).await, "the proxy answered 200 OK"),
        (Proxy::nginx_with(&nobody, with("return 301 https://x.invalid/;")).await, "the proxy answered 301"),
    ] {
        let (code, said) = cli(&proxy.address(), ADD).await;
        assert_eq!(code, Some(4), "{said}");
        assert!(said.contains(needle), "no {needle:?} in {said}");
        assert!(!said.contains("compression"), "{said}");
        let error = Client::connect(&proxy.address()).await.unwrap_err().to_string();
        assert!(error.contains(needle), "no {needle:?} in {error}");
    }
}

#[tokio::test]
async fn a_call_that_outlasts_the_patience_of_a_proxy_says_so() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let hasty = |settings: String| settings.replace("grpc_read_timeout 1d;", "grpc_read_timeout 1s;");
    let proxy = Proxy::nginx_with(&host_of(&sandbox), hasty).await;
    let (code, said) = cli(&proxy.address(), &["call", "sleep_for", "--args", r#"{"seconds": 30}"#]).await;
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("the proxy answered 504") && said.contains("raise that"), "{said}");
    let client = Client::connect(&proxy.address()).await.unwrap();
    let error = client.execute::<Value>("sleep_for", json!({"seconds": 30})).await.unwrap_err();
    assert!(matches!(&error, Error::Tool(ToolError::ConnectionLost { .. })), "{error}");
    assert!(error.to_string().contains("grpc_read_timeout"), "{error}");
}
