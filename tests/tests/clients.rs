//! Clients in Python: that of `docs/clients.md`, written with plain grpcio, and that of the package.

use std::{process::Stdio, time::Duration};

use snakepit_tests::{SHOWCASE, Sandbox, Signal, eventually, python, root, signal};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

/// What a client of this name prints when it is given the host's address.
async fn output_of(client: &str, sandbox: &Sandbox) -> String {
    let output = Command::new(python())
        .arg(root().join("tests/clients").join(client))
        .arg(sandbox.url().trim_start_matches("http://"))
        .env("PYTHONPATH", root().join(".venv/stubs"))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn the_documented_clients_work() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    assert_eq!(output_of("client.py", &sandbox).await, "3.5\n[1, 2, 3]\n");
    let state = "1\ninitial 0 0.1\nset 1 0.2\nABORTED variable `rate` is at version 1, not at the expected version 7; read it again\n";
    assert_eq!(output_of("state.py", &sandbox).await, state);
    assert_eq!(output_of("package_client.py", &sandbox).await, "3.5\n[1, 2, 3]\n3\nalice\n");
}

#[tokio::test]
async fn the_client_of_the_package_finds_a_host_that_was_restarted() {
    let mut first = Sandbox::adapter(SHOWCASE, 1).start().await;
    let address = first.url().trim_start_matches("http://").to_owned();
    let mut client = Command::new(python());
    client.arg(root().join("tests/clients/restarts.py")).arg(&address).kill_on_drop(true);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ask = client.stdin.take().unwrap();
    let mut answers = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut call = async || {
        ask.write_all(b"\n").await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(20), answers.next_line()).await;
        answer.expect("the client answers").unwrap().expect("the client runs")
    };
    assert_eq!(call().await, "3");
    signal(first.pid(), Signal::SIGKILL);
    first.wait(Duration::from_secs(10)).await;
    let refusal = call().await;
    assert!(refusal.starts_with("unavailable: ") && refusal.contains(&address), "{refusal}");
    let _second = Sandbox::adapter(SHOWCASE, 1).listen(address).after(first).start().await;
    assert_eq!(call().await, "3");
}

#[tokio::test]
async fn the_client_of_the_package_works_over_tcp_and_unix() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    for address in [sandbox.url().to_owned(), format!("unix:{}", sandbox.socket().display())] {
        let mut client = Command::new(python());
        client.arg(root().join("tests/clients/bridge_client.py")).arg(&address).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(60), client.output()).await;
        let output = output.expect("the client ends").unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{address}: {stderr}");
    }
    let idle = async || sandbox.workers().await.iter().all(|worker| worker.state == "idle");
    eventually("no call was left running", Duration::from_secs(10), idle).await;
}
