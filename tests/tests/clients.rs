//! Clients in Python: that of `docs/clients.md`, written with plain grpcio, and that of the package.

use std::{process::Stdio, time::Duration};

use snakepit_tests::{SHOWCASE, Sandbox, Signal, eventually, python, root, signal};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// What a client of this name prints when it is given the host's address and process.
async fn output_of(client: &str, sandbox: &Sandbox) -> String {
    let output = Command::new(python())
        .arg(root().join("tests/clients").join(client))
        .arg(sandbox.url().trim_start_matches("http://"))
        .arg(sandbox.pid().to_string())
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
    assert_eq!(output_of("package_client.py", &sandbox).await, "3.5\n[1, 2, 3]\n3\nalice\n0.2\nset 1 0.2\n");
}

#[tokio::test]
async fn clients_that_compress_are_served_whatever_they_call() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    assert_eq!(output_of("gzip_client.py", &sandbox).await, "ok\n");
}

/// A client that does something for each line that it reads.
struct Asked {
    _client: Child,
    lines: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Asked {
    fn start(client: &str, address: &str) -> Self {
        let mut command = Command::new(python());
        command.arg(root().join("tests/clients").join(client)).arg(address).kill_on_drop(true);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(client.stdout.take().unwrap()).lines();
        Self { lines: client.stdin.take().unwrap(), answers, _client: client }
    }

    async fn ask(&mut self) -> String {
        self.lines.write_all(b"\n").await.unwrap();
        self.says().await
    }

    async fn says(&mut self) -> String {
        let answer = tokio::time::timeout(Duration::from_secs(20), self.answers.next_line()).await;
        answer.expect("the client answers").unwrap().expect("the client runs")
    }
}

#[tokio::test]
async fn the_client_of_the_package_finds_a_host_that_was_restarted() {
    let mut first = Sandbox::adapter(SHOWCASE, 1).start().await;
    let address = first.url().trim_start_matches("http://").to_owned();
    let mut client = Asked::start("restarts.py", &address);
    assert_eq!(client.ask().await, "3");
    signal(first.pid(), Signal::SIGKILL);
    first.wait(Duration::from_secs(10)).await;
    // A call finds the connection broken, if the client has not by then; the next one connects anew.
    let refusal = async {
        loop {
            let refusal = client.ask().await;
            if !refusal.starts_with("unavailable: the connection to the host broke") {
                return refusal;
            }
        }
    };
    let refusal = tokio::time::timeout(Duration::from_secs(10), refusal).await.expect("it connects anew");
    assert!(refusal.starts_with("unavailable: ") && refusal.contains(&address), "{refusal}");
    let _second = Sandbox::adapter(SHOWCASE, 1).listen(address).after(first).start().await;
    assert_eq!(client.ask().await, "3");
}

#[tokio::test]
async fn a_session_of_the_package_says_what_became_of_its_host() {
    let mut first = Sandbox::adapter(SHOWCASE, 1).start().await;
    let address = first.url().trim_start_matches("http://").to_owned();
    let mut client = Asked::start("lost_watches.py", &address);
    assert_eq!(client.ask().await, "1");
    signal(first.pid(), Signal::SIGSTOP);
    let late = client.ask().await;
    assert!(late.starts_with("DeadlineExceededError: "), "{late}");
    signal(first.pid(), Signal::SIGCONT);
    assert_eq!(client.ask().await, "1");
    signal(first.pid(), Signal::SIGKILL);
    first.wait(Duration::from_secs(10)).await;
    for lost in [client.says().await, client.says().await] {
        assert!(lost.starts_with("HostUnavailableError: the connection to the host broke: "), "{lost}");
    }
    // What only reads is sent anew, and finds nobody there.
    let lost = client.ask().await;
    assert!(lost.starts_with("HostUnavailableError: the host cannot be reached: "), "{lost}");
    let _second = Sandbox::adapter(SHOWCASE, 1).listen(address).after(first).start().await;
    let gone = client.ask().await;
    assert!(gone.starts_with("NotFoundError: session `s` not found"), "{gone}");
}

#[tokio::test]
async fn a_session_of_the_package_has_the_state_that_tools_have() {
    let sandbox = Sandbox::adapter("state_tools:StateTools", 2).start().await;
    let mut client = Command::new(python());
    client.arg(root().join("tests/clients/session_client.py")).arg(sandbox.url()).kill_on_drop(true);
    client.env("PYTHONPATH", root().join("tests/adapters"));
    let output = tokio::time::timeout(Duration::from_secs(120), client.output()).await;
    let output = output.expect("the client ends").unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{stderr}");
}

#[tokio::test]
async fn what_a_client_of_the_package_leaves_unread_holds_up_nothing_and_its_calls_outlive_it() {
    // Two of the workers are held by streams that nobody reads for a while.
    let sandbox = Sandbox::adapter(SHOWCASE, 3).start().await;
    assert_eq!(output_of("unread.py", &sandbox).await, "ok\n");
}

#[tokio::test]
async fn requests_that_a_client_gives_up_do_not_end_its_connection() {
    let sandbox = Sandbox::adapter("unlucky:UnluckyTools", 2).start().await;
    assert_eq!(output_of("given_up.py", &sandbox).await, "ok\n");
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
