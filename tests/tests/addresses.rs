//! Forms of addresses, and servers that are not Snakepit hosts, with the command line and the clients.

use std::process::Stdio;

use serde_json::json;
use snakepit_server::{Client, Error};
use snakepit_tests::{SHOWCASE, Sandbox, python, root};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
    task::JoinSet,
};

const ADD: &[&str] = &["call", "add", "--args", r#"{"a": 1, "b": 2}"#];

#[tokio::test]
async fn addresses_accept_both_forms_of_unix_sockets_and_surrounding_spaces() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let (path, url) = (sandbox.socket().display(), sandbox.url());
    for address in [format!("unix:{path}"), format!("unix://{path}"), format!("{url}/"), format!(" {url} ")] {
        let output = Sandbox::cli_at(&address, ADD).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (String::from_utf8_lossy(&output.stdout).as_ref(), stderr.as_ref()),
            ("3\n", ""),
            "{address}"
        );
        let client = Client::connect(&address).await.unwrap();
        assert_eq!(client.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap(), 3);
    }
    // The client of docs/clients.md, in plain grpcio.
    let mut client = Command::new(python());
    client.arg(root().join("tests/clients/client.py")).arg(format!("unix:{path}"));
    let output =
        client.env("PYTHONPATH", root().join(".venv/stubs")).kill_on_drop(true).output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3.5\n[1, 2, 3]\n", "{stderr}");
}

#[tokio::test]
async fn a_malformed_address_gets_an_error_that_names_the_problem() {
    for (address, needle) in [
        ("localhost", "port is missing"),
        ("http://localhost", "port is missing"),
        ("grpc://localhost:1", "remove it"),
        ("::1:50051", "brackets"),
        ("/tmp/host.sock", "unix:/tmp/host.sock"),
        ("unix://tmp/host.sock", "unix:///tmp/host.sock"),
        ("local host:1", "' '"),
    ] {
        let output = Sandbox::cli_at(address, ADD).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{address}: {stderr}");
        assert!(stderr.contains(needle) && stderr.contains("unix:/path/to/socket"), "{address}: {stderr}");
        let error = Client::connect(address).await.unwrap_err();
        assert!(matches!(&error, Error::Connect { .. }) && error.to_string().contains(needle), "{error}");
    }
}

/// Starts a server that sends `response` after the first bytes of each connection, and then closes it. With an empty response, it
/// closes connections immediately.
async fn server(response: &'static [u8]) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if !response.is_empty() {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(response).await;
            }
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn the_error_names_the_protocol_of_a_server_that_is_not_a_host() {
    let alert = b"\x15\x03\x01\x00\x02\x02\x46";
    let http = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    for (response, needle) in [(&alert[..], "speaks TLS"), (http, "HTTP/1"), (b"", "without an answer")] {
        let (address, _serving) = server(response).await;
        assert_error_contains(&address, needle).await;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut redis = Command::new("redis-server");
    redis.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).stdout(Stdio::null());
    let _redis = redis.kill_on_drop(true).spawn().unwrap();
    let address = format!("127.0.0.1:{port}");
    snakepit_tests::eventually("redis accepts", std::time::Duration::from_secs(10), async || {
        tokio::net::TcpStream::connect(&address).await.is_ok()
    })
    .await;
    assert_error_contains(&address, "Redis").await;
}

/// Checks the error of the command line and that of the Rust client.
async fn assert_error_contains(address: &str, needle: &str) {
    let output = Sandbox::cli_at(address, ADD).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains(needle) && stderr.contains("snakepit serve"), "no {needle:?} in {stderr}");
    let error = Client::connect(address).await.unwrap_err().to_string();
    assert!(error.contains(needle), "no {needle:?} in {error}");
}
