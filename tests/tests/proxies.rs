//! Clients behind nginx and HAProxy with the settings of docs/proxies.md, and the errors with other settings.

use std::time::Duration;

use futures_util::{TryStreamExt, future::join_all};
use serde_json::{Value, json};
use snakepit_server::{Client, Error, ToolError};
use snakepit_tests::{Proxy, SHOWCASE, Sandbox};

fn host_of(sandbox: &Sandbox) -> String {
    sandbox.url().trim_start_matches("http://").to_owned()
}

/// Runs a command, and returns its exit code and stderr.
async fn cli(address: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = Sandbox::cli_at(address, args).await;
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

const ADD: &[&str] = &["call", "add", "--args", r#"{"a": 1, "b": 2}"#];

async fn check_clients_behind(proxy: &Proxy) {
    let client = Client::connect(&proxy.address()).await.unwrap();
    // Several megabytes on the multiplexed stream, then a call that is too large for it.
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
    // More simultaneous connections than a listen backlog of 128 holds.
    let calls = (0..200).map(|_| async {
        let client = Client::connect(&proxy.address()).await?;
        client.execute::<i64>("add", json!({"a": 1, "b": 2})).await
    });
    for sum in join_all(calls).await {
        assert_eq!(sum.unwrap(), 3);
    }
    assert_eq!(cli(&proxy.address(), ADD).await, (Some(0), String::new()));
    // The host ends the call, not the proxy.
    let sleep = client.call("sleep_for").args(json!({"seconds": 60})).timeout(Duration::from_millis(300));
    let error = sleep.unary::<Value>().await.unwrap_err();
    assert!(matches!(error, Error::Tool(ToolError::DeadlineExceeded { .. })), "{error}");
}

#[tokio::test]
async fn clients_work_behind_nginx_with_the_documented_settings() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    check_clients_behind(&Proxy::nginx(&host_of(&sandbox)).await).await;
}

#[tokio::test]
async fn clients_work_behind_haproxy_with_the_documented_settings() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    check_clients_behind(&Proxy::haproxy(&host_of(&sandbox)).await).await;
}

#[tokio::test]
async fn errors_name_the_body_limit_of_nginx() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let with_body_limit = |settings: String| settings.replace("client_max_body_size 0;", "");
    let proxy = Proxy::nginx_with(&host_of(&sandbox), with_body_limit).await;
    let client = Client::connect(&proxy.address()).await.unwrap();
    let text = "x".repeat(100_000);
    let mut cut_error = None;
    for _ in 0..20 {
        if let Err(error) = client.execute::<Value>("echo", json!({"text": text})).await {
            cut_error = Some(error.to_string());
            break;
        }
    }
    let cut_error = cut_error.expect("nginx cuts the stream after a body of one megabyte");
    for needle in ["the proxy (nginx/", "cut the stream", "client_max_body_size 0"] {
        assert!(cut_error.contains(needle), "no {needle:?} in {cut_error}");
    }
    // The next call opens a new stream.
    let sum: i64 = client.execute("add", json!({"a": 1, "b": 2})).await.unwrap();
    assert_eq!(sum, 3);
    // The command line sends each call as a separate request. The proxy forwards requests below its limit.
    let args = json!({"text": "x".repeat(100_000)}).to_string();
    let (code, _) = cli(&proxy.address(), &["call", "echo", "--args", &args]).await;
    assert_eq!(code, Some(0));
    // The client also sends such a large call as a separate request, which exceeds the limit.
    let error = client.execute::<Value>("echo", json!({"text": "x".repeat(5_000_000)})).await.unwrap_err();
    assert!(error.to_string().contains("client_max_body_size 0"), "{error}");
}

#[tokio::test]
async fn errors_name_a_proxy_that_answers_instead_of_the_host() {
    let closed_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let answering = |directive: &'static str| {
        move |settings: String| settings.replace("grpc_pass grpc://snakepit;", directive)
    };
    let unchanged = |settings: String| settings;
    for (proxy, needle) in [
        (Proxy::nginx_with(&closed_port, unchanged).await, "the proxy answered 502 Bad Gateway"),
        (Proxy::haproxy(&closed_port).await, "the proxy answered 503 Service Unavailable"),
        (
            Proxy::nginx_with(&closed_port, answering("return 404;")).await,
            "the server or a proxy answered 404 Not Found",
        ),
        (
            Proxy::nginx_with(&closed_port, answering("return 504;")).await,
            "the proxy answered 504 Gateway Timeout",
        ),
        (
            Proxy::nginx_with(&closed_port, answering("return 200 '<html>';")).await,
            "the proxy answered 200 OK",
        ),
        (
            Proxy::nginx_with(&closed_port, answering("return 301 https://x.invalid/;")).await,
            "the proxy answered 301",
        ),
    ] {
        let (code, stderr) = cli(&proxy.address(), ADD).await;
        assert_eq!(code, Some(4), "{stderr}");
        assert!(stderr.contains(needle), "no {needle:?} in {stderr}");
        assert!(!stderr.contains("compression"), "{stderr}");
        let error = Client::connect(&proxy.address()).await.unwrap_err().to_string();
        assert!(error.contains(needle), "no {needle:?} in {error}");
    }
}

#[tokio::test]
async fn errors_name_the_read_timeout_of_nginx() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let short_timeout = |settings: String| settings.replace("grpc_read_timeout 1d;", "grpc_read_timeout 1s;");
    let proxy = Proxy::nginx_with(&host_of(&sandbox), short_timeout).await;
    let (code, stderr) = cli(&proxy.address(), &["call", "sleep_for", "--args", r#"{"seconds": 30}"#]).await;
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains("the proxy answered 504") && stderr.contains("raise that timeout"), "{stderr}");
    let client = Client::connect(&proxy.address()).await.unwrap();
    let error = client.execute::<Value>("sleep_for", json!({"seconds": 30})).await.unwrap_err();
    assert!(matches!(&error, Error::Tool(ToolError::ConnectionLost { .. })), "{error}");
    assert!(error.to_string().contains("grpc_read_timeout"), "{error}");
}
