//! Python clients: the examples of docs/clients.md, which use plain grpcio, and the client of the package.

use std::{process::Stdio, time::Duration};

use serde_json::json;
use snakepit_proto::status::details_of;
use snakepit_server::Client;
use snakepit_tests::{SHOWCASE, Sandbox, Signal, eventually, python, root, signal, tool_request};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};
use tonic::Code;

/// Runs a client with the host's address and pid, and returns what it prints.
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
async fn the_clients_on_the_documentation_page_work() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    assert_eq!(output_of("client.py", &sandbox).await, "3.5\n[1, 2, 3]\n");
    let state = "1\ninitial 0 0.1\nset 1 0.2\nABORTED variable `rate` is at version 1, not at the expected version 7; read it again\n";
    assert_eq!(output_of("state.py", &sandbox).await, state);
    assert_eq!(output_of("package_client.py", &sandbox).await, "3.5\n[1, 2, 3]\n3\nalice\n0.2\nset 1 0.2\n");
    assert_eq!(output_of("async_client.py", &sandbox).await, "3.5\n[1, 2, 3]\n[3, 7]\n0.2\ninitial 0.2\n");
}

#[tokio::test]
async fn all_kinds_of_rpcs_accept_compressed_requests() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    assert_eq!(output_of("gzip_client.py", &sandbox).await, "ok\n");
}

/// A Python client that performs one request for each line on its stdin.
struct LineClient {
    _process: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl LineClient {
    fn start(client: &str, address: &str) -> Self {
        let mut command = Command::new(python());
        command.arg(root().join("tests/clients").join(client)).arg(address).kill_on_drop(true);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { stdin: process.stdin.take().unwrap(), lines, _process: process }
    }

    /// Triggers a request and returns the line that reports its outcome.
    async fn request(&mut self) -> String {
        self.stdin.write_all(b"\n").await.unwrap();
        self.next_line().await
    }

    async fn next_line(&mut self) -> String {
        let line = tokio::time::timeout(Duration::from_secs(20), self.lines.next_line()).await;
        line.expect("the client prints a line").unwrap().expect("the client runs")
    }
}

#[tokio::test]
async fn the_package_client_reconnects_to_a_restarted_host() {
    let mut first = Sandbox::adapter(SHOWCASE, 1).start().await;
    let address = first.url().trim_start_matches("http://").to_owned();
    let mut client = LineClient::start("restarts.py", &address);
    assert_eq!(client.request().await, "3");
    signal(first.pid(), Signal::SIGKILL);
    first.wait(Duration::from_secs(10)).await;
    // The first call may still use the broken connection. The next call opens a new connection.
    let error = async {
        loop {
            let error = client.request().await;
            if !error.starts_with("unavailable: the connection to the host broke") {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(10), error).await.expect("the client reconnects");
    assert!(error.starts_with("unavailable: ") && error.contains(&address), "{error}");
    let _second = Sandbox::adapter(SHOWCASE, 1).listen(address).after(first).start().await;
    assert_eq!(client.request().await, "3");
}

#[tokio::test]
async fn sessions_of_the_package_client_report_a_stopped_killed_and_restarted_host() {
    let mut first = Sandbox::adapter(SHOWCASE, 1).start().await;
    let address = first.url().trim_start_matches("http://").to_owned();
    let mut client = LineClient::start("lost_watches.py", &address);
    assert_eq!(client.request().await, "1");
    signal(first.pid(), Signal::SIGSTOP);
    let expired = client.request().await;
    assert!(expired.starts_with("DeadlineExceededError: "), "{expired}");
    signal(first.pid(), Signal::SIGCONT);
    assert_eq!(client.request().await, "1");
    signal(first.pid(), Signal::SIGKILL);
    first.wait(Duration::from_secs(10)).await;
    for end in [client.next_line().await, client.next_line().await] {
        assert!(end.starts_with("HostUnavailableError: the connection to the host broke: "), "{end}");
    }
    // The client repeats a read, and then finds that the port is closed.
    let rejected = client.request().await;
    let expected = format!("HostUnavailableError: cannot reach a host at {address}: ");
    assert!(rejected.starts_with(&expected), "{rejected}");
    let _second = Sandbox::adapter(SHOWCASE, 1).listen(address).after(first).start().await;
    let missing = client.request().await;
    assert!(missing.starts_with("NotFoundError: session `s` not found"), "{missing}");
}

#[tokio::test]
async fn sessions_of_the_package_client_offer_the_same_state_as_tools() {
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
async fn unread_streams_of_the_package_client_delay_no_other_call_and_outlive_the_client() {
    // Unread streams occupy two of the workers for a while.
    let sandbox = Sandbox::adapter(SHOWCASE, 3).start().await;
    assert_eq!(output_of("unread.py", &sandbox).await, "ok\n");
}

#[tokio::test]
async fn requests_that_expire_or_are_cancelled_do_not_end_the_connection() {
    let sandbox = Sandbox::adapter("unlucky:UnluckyTools", 2).start().await;
    assert_eq!(output_of("given_up.py", &sandbox).await, "ok\n");
}

#[tokio::test]
async fn the_package_client_works_over_tcp_and_unix_sockets() {
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
    eventually("no call is running", Duration::from_secs(10), idle).await;
}

#[tokio::test]
async fn the_package_client_raises_the_classes_of_tools() {
    let sandbox = Sandbox::adapter("quotas:Quotas", 2).start().await;
    let mut client = Command::new(python());
    client.arg(root().join("tests/clients/own_exceptions.py")).arg(sandbox.url()).kill_on_drop(true);
    client.env("PYTHONPATH", root().join("tests/adapters"));
    let output = tokio::time::timeout(Duration::from_secs(60), client.output()).await;
    let output = output.expect("the client ends").unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "ok\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn codes_and_causes_of_tools_reach_grpc_and_rust() {
    let sandbox = Sandbox::adapter("quotas:Quotas", 1).start().await;
    let client = Client::connect(sandbox.url()).await.unwrap();
    let error = client.call("shelf").arg("item", "milk").unary::<i64>().await.unwrap_err();
    assert_eq!((error.http_status(), error.error_type()), (404, Some("quotas.UnknownItemError")));
    let failure = error.failure().unwrap();
    assert_eq!(
        (&*failure.code, &failure.notes[..]),
        ("not_found", &["first note".into(), "second note".into()][..])
    );
    let cause = failure.causes().next().unwrap();
    assert_eq!((cause.to_string(), cause.notes.len()), ("KeyError: 'milk'".into(), 1));
    assert!(cause.traceback.contains("in lookup"), "{}", cause.traceback);
    let group = client.call("several").unary::<i64>().await.unwrap_err();
    let members: Vec<_> =
        group.failure().unwrap().exceptions.iter().map(|member| &*member.error_type).collect();
    assert_eq!(members, ["quotas.QuotaError", "KeyError", "ExceptionGroup"]);

    let request = tool_request("counted", &json!({"limit": 1}));
    let mut chunks = sandbox.client().await.execute_streaming_tool(request).await.unwrap().into_inner();
    assert!(chunks.message().await.unwrap().is_some());
    let status = chunks.message().await.unwrap_err();
    let details = details_of(&status);
    assert_eq!((status.code(), details.reason.as_deref()), (Code::ResourceExhausted, Some("TOOL_FAILED")));
    assert_eq!(details.failure.unwrap().code, "resource_exhausted");
}

#[tokio::test]
async fn a_daemon_can_hide_tracebacks_from_all_clients() {
    let sandbox = Sandbox::adapter("quotas:Quotas", 1).args(&["--tracebacks", "never"]).start().await;
    let request = tool_request("clean_up", &json!({}));
    let failure = sandbox.client().await.execute_tool(request).await.unwrap().into_inner().failure.unwrap();
    assert_eq!((&*failure.r#type, &*failure.traceback), ("quotas.QuotaError", ""));
    let details = String::from_utf8(failure.details_json.to_vec()).unwrap();
    assert!(details.contains("alice") && !details.contains("context"), "{details}");
}
