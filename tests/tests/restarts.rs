//! `snakepit restart`: the rolling replacement of real workers whose code has changed.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use snakepit_server::{Client, Denied, Error, ErrorKind, Operation, Snakepit};
use snakepit_tests::{EVENT_TIMEOUT, Sandbox, eventually, execute, is_alive, python};

/// Writes the adapter. `slow` waits for the file `go`.
fn write_app(dir: &Path, answer: i32, more: &str) {
    let code = format!(
        r#"import os
import time

def answer() -> int:
    return {answer}

def slow() -> list[int]:
    open("slow-{answer}", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return [{answer}, os.getpid()]

{more}
"#
    );
    std::fs::write(dir.join("app.py"), code).unwrap();
}

async fn tools(sandbox: &Sandbox) -> Vec<Value> {
    let lines = sandbox.cli_ok(&["tools", "--json"]).await;
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn new_code_replaces_the_tools_while_old_calls_finish_and_sessions_stay() {
    let dir = tempfile::tempdir().unwrap();
    write_app(dir.path(), 1, "def old(x: int) -> int:\n    return x\n");
    let sandbox = Sandbox::adapter("app.py", 2)
        .working_dir(dir.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .start()
        .await;
    sandbox.cli_ok(&["call", "answer", "--session", "alice"]).await;
    let before = sandbox.worker_pids().await;
    let slow = sandbox.cli(&["call", "slow"]);
    let restart = async {
        let started = || async { dir.path().join("slow-1").exists() };
        eventually("the call runs", EVENT_TIMEOUT, started).await;
        write_app(dir.path(), 2, "def new(x: int, y: str = '') -> int:\n    return x\n");
        let printed = sandbox.cli_ok(&["restart"]).await;
        assert!(printed.starts_with("replaced 2 workers in "), "{printed}");
        for line in ["  added    new(x: integer, y?: string)", "  removed  old"] {
            assert!(printed.contains(line), "{printed}");
        }
        // The old worker still runs its call.
        let names: Vec<Value> = tools(&sandbox).await.iter().map(|tool| tool["name"].clone()).collect();
        assert_eq!(names, ["answer", "new", "slow"]);
        let mut client = sandbox.client().await;
        assert_eq!(execute(&mut client, "answer", &json!({})).await.unwrap(), 2);
        let sessions = sandbox.cli_ok(&["sessions", "--json"]).await;
        assert!(sessions.contains("alice"), "{sessions}");
        std::fs::write(dir.path().join("go"), "").unwrap();
    };
    let (output, ()) = tokio::join!(slow, restart);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result[0], 1, "{output:?}");
    assert!(before.iter().any(|pid| json!(pid) == result[1]), "{result}: an old worker ran the call");
    let exited = || async { !before.iter().any(|pid| is_alive(*pid)) };
    eventually("the old workers exit", EVENT_TIMEOUT, exited).await;
    assert_eq!(sandbox.worker_pids().await.len(), 2);
    // A changed signature is visible, too.
    write_app(dir.path(), 3, "def new(x: int) -> int:\n    return x\n");
    let report: Value = serde_json::from_str(&sandbox.cli_ok(&["restart", "--json"]).await).unwrap();
    let changed = json!([{"before": "new(x: integer, y?: string)", "after": "new(x: integer)"}]);
    assert_eq!((&report["workers"], &report["tools"]["changed"]), (&json!(2), &changed), "{report}");
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn broken_code_is_reported_and_the_old_workers_keep_serving() {
    let dir = tempfile::tempdir().unwrap();
    write_app(dir.path(), 1, "");
    let sandbox = Sandbox::adapter("app.py", 2)
        .working_dir(dir.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .start()
        .await;
    let before = sandbox.worker_pids().await;
    write_app(dir.path(), 2, "raise ValueError('on purpose')\n");
    let output = sandbox.cli(&["restart"]).await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    for needle in ["the old workers keep serving", "on purpose", "Traceback", "app.py\", line "] {
        assert!(stderr.contains(needle), "no {needle:?} in {stderr}");
    }
    assert_eq!(sandbox.worker_pids().await, before);
    assert_eq!(sandbox.cli_ok(&["call", "answer"]).await, "1\n");
    let error: Value = serde_json::from_slice(&sandbox.cli(&["restart", "--json"]).await.stderr).unwrap();
    assert_eq!((&error["code"], &error["may_have_run"]), (&json!("CANNOT_START"), &json!(false)), "{error}");
    assert!(error["traceback"].as_str().unwrap().contains("on purpose"), "{error}");
    write_app(dir.path(), 3, "");
    sandbox.cli_ok(&["restart"]).await;
    assert_eq!(sandbox.cli_ok(&["call", "answer"]).await, "3\n");
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn the_rust_client_restarts_the_workers_and_reports_broken_code() {
    let dir = tempfile::tempdir().unwrap();
    write_app(dir.path(), 1, "");
    let sandbox = Sandbox::adapter("app.py", 2)
        .working_dir(dir.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .start()
        .await;
    // The request timeout does not apply to restarts.
    let builder = Client::builder().request_timeout(Duration::from_millis(1));
    let client = builder.connect(sandbox.url()).await.unwrap();
    write_app(dir.path(), 2, "");
    client.restart_workers().await.unwrap();
    assert_eq!(client.execute::<i32>("answer", json!({})).await.unwrap(), 2);
    write_app(dir.path(), 3, "raise ValueError('on purpose')\n");
    let error = client.restart_workers().await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::NotStarted, false), "{error:?}");
    let Error::Start(failure) = &error else { panic!("{error:?}") };
    assert!(failure.to_string().contains("the workers were not restarted: "), "{failure}");
    let traceback = failure.source().unwrap().to_string();
    assert!(traceback.contains("on purpose") && traceback.contains("app.py\", line "), "{traceback}");
    assert_eq!(client.execute::<i32>("answer", json!({})).await.unwrap(), 2);
    assert!(client.close(Duration::ZERO).await);
    assert_eq!(client.restart_workers().await.unwrap_err().kind(), ErrorKind::ClientClosed);
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn a_client_without_permission_cannot_restart_the_workers() {
    let dir = tempfile::tempdir().unwrap();
    write_app(dir.path(), 1, "");
    let snakepit = Snakepit::builder()
        .adapter("app")
        .python(python())
        .env("PYTHONPATH", dir.path().display().to_string())
        .run_dir(dir.path().join("run"))
        .workers(1)
        .authorize(|_, operation| match operation {
            Operation::RestartWorkers => Err(Denied::new("ask the operator")),
            _ => Ok(()),
        })
        .start()
        .await
        .unwrap();
    let address = format!("unix:{}", snakepit.socket().display());
    let workers = || snakepit.status().workers.iter().map(|worker| worker.id.to_string()).collect::<Vec<_>>();
    let before = workers();
    let client = Client::connect(&address).await.unwrap();
    let denied = client.restart_workers().await.unwrap_err();
    assert_eq!((denied.kind(), denied.may_have_run()), (ErrorKind::AccessDenied, false), "{denied:?}");
    assert!(denied.to_string().contains("ask the operator"), "{denied}");
    let code = "
import asyncio, sys
from snakepit_bridge import AccessDeniedError, AsyncClient, Client

async def restart():
    async with AsyncClient(sys.argv[1]) as client:
        await client.restart_workers()

for action in (Client(sys.argv[1]).restart_workers, lambda: asyncio.run(restart())):
    try:
        action()
    except AccessDeniedError as error:
        print(error.may_have_run, error)
";
    let output = tokio::process::Command::new(python()).args(["-c", code, &address]).output().await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed, "False access denied: ask the operator\n".repeat(2), "{output:?}");
    assert_eq!(workers(), before);
    snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn no_call_fails_during_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    write_app(dir.path(), 1, "");
    let sandbox = Sandbox::adapter("app.py", 2)
        .working_dir(dir.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .start()
        .await;
    let calls = async |done: &std::cell::Cell<bool>| {
        let (mut client, mut count) = (sandbox.client().await, 0);
        while !done.get() {
            assert_eq!(execute(&mut client, "answer", &json!({})).await.unwrap(), 1);
            count += 1;
        }
        count
    };
    let done = std::cell::Cell::new(false);
    let restarts = async {
        for _ in 0..2 {
            sandbox.cli_ok(&["restart", "--timeout", "60s"]).await;
        }
        done.set(true);
    };
    let (a, b, ()) = tokio::join!(calls(&done), calls(&done), restarts);
    assert!(a > 10 && b > 10, "{a} and {b} calls");
    let unreachable = Sandbox::cli_at("127.0.0.1:1", &["restart"]).await;
    assert_eq!(unreachable.status.code(), Some(4));
    let mut sandbox = sandbox;
    snakepit_tests::signal(sandbox.pid(), snakepit_tests::Signal::SIGTERM);
    assert_eq!(sandbox.wait(Duration::from_secs(20)).await, Some(0));
}

#[tokio::test]
async fn a_client_that_may_list_nothing_can_restart_the_workers_and_call_tools() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("app.py"), "def kind(text: str) -> str:\n    return text\n").unwrap();
    let snakepit = Snakepit::builder()
        .adapter(dir.path().join("app.py").display().to_string())
        .python(python())
        .run_dir(dir.path())
        .workers(1)
        .multiplex(!snakepit_tests::plain_calls())
        .listen(([127, 0, 0, 1], 0).into())
        .authorize(|principal, operation| match operation {
            _ if principal.is_worker() => Ok(()),
            Operation::ListTools | Operation::Observe => Err(Denied::new("listing is denied")),
            _ => Ok(()),
        })
        .start()
        .await
        .unwrap();
    let address = snakepit.address().unwrap().to_string();
    let listed = Sandbox::cli_at(&address, &["tools"]).await;
    assert!(
        String::from_utf8_lossy(&listed.stderr).contains("listing is denied (ACCESS_DENIED)"),
        "{listed:?}"
    );
    let called = Sandbox::cli_at(&address, &["call", "kind", "text=5"]).await;
    assert_eq!(called.stdout, b"\"5\"\n", "{called:?}");
    let restarted = Sandbox::cli_at(&address, &["restart"]).await;
    assert!(restarted.stdout.starts_with(b"replaced 1 worker in "), "{restarted:?}");
    let restarted = Sandbox::cli_at(&address, &["restart", "--json"]).await;
    let report: Value = serde_json::from_slice(&restarted.stdout).unwrap();
    assert_eq!((&report["workers"], &report["tools"]), (&json!(1), &Value::Null), "{report}");
    snakepit.shutdown().await.unwrap();
}
