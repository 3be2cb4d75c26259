//! The command line, as a person or a script uses it: ready line, results, tables, and one clear line for each error.

use serde_json::{Value, json};
use snakepit_tests::{SHOWCASE, Sandbox};

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn calls_streams_and_listings_work() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;

    assert_eq!(sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#]).await, "3\n");
    let envelope = sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#, "--json"]).await;
    let envelope: Value = serde_json::from_str(&envelope).unwrap();
    assert_eq!(envelope["result"], 3);
    assert!(envelope["worker"].as_str().unwrap().starts_with("default-"), "{envelope}");

    let chunks = json_lines(&sandbox.cli_ok(&["stream", "count", "--args", r#"{"n": 3}"#]).await);
    assert_eq!(chunks.len(), 3);

    let tools = json_lines(&sandbox.cli_ok(&["tools", "--json"]).await);
    let add = tools.iter().find(|tool| tool["name"] == "add").unwrap();
    assert_eq!(add["parameters"][0]["name"], "a");
    assert!(sandbox.cli_ok(&["tools"]).await.contains("train_digits"));

    let workers = json_lines(&sandbox.cli_ok(&["workers", "--json"]).await);
    assert_eq!(workers.len(), 2);
    assert!(workers.iter().all(|worker| worker["state"] == "idle"), "{workers:?}");

    sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#, "--session", "alice"]).await;
    let sessions = json_lines(&sandbox.cli_ok(&["sessions", "--json"]).await);
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0]["session_id"], "alice");
    assert!(sessions[0]["last_worker_id"].as_str().unwrap().starts_with("default-"));
    assert!(sandbox.cli_ok(&["sessions"]).await.contains("alice"));

    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn every_mistake_of_a_caller_gets_one_clear_line_and_the_server_goes_on() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (&["call", "ad", "--args", r#"{"a": 1}"#], 3, &["`ad` not found", "did you mean `add`"]),
        (&["call", "add", "--args", r#"{"a": 1}"#], 3, &["argument `b` of tool `add` is missing"]),
        (&["call", "add", "--args", r#"{"a": "x", "b": 2}"#], 3, &["argument `a` of tool `add` is a string"]),
        (&["call", "add", "--args", r#"{"a": 1, "b": 2, "c": 3}"#], 3, &["argument `c` of tool `add`"]),
        (&["call", "add", "--args", "{a: 1}"], 2, &["--args is not a JSON object"]),
        (&["call", "add", "--args", "[1, 2]"], 2, &["--args is not a JSON object"]),
        (&["call", "fail", "--args", r#"{"message": "on purpose"}"#], 1, &["`fail` failed", "on purpose"]),
        (&["call", "sleep_for", "--args", r#"{"seconds": 5}"#, "--timeout", "200ms"], 3, &["deadline"]),
        (&["call", "add", "--server", "http://127.0.0.1:1"], 4, &["cannot reach", "snakepit serve"]),
    ];
    for (args, code, needles) in cases {
        let output = sandbox.cli(args).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        for needle in needles {
            assert!(stderr.contains(needle), "{args:?}: no {needle:?} in {stderr}");
        }
    }
    assert_eq!(sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#]).await, "3\n");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why_and_leaves_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let root = snakepit_tests::root().display();
    let never_ready = format!("python3 {root}/tests/workers/never_ready.py");
    let exits = format!("python3 {root}/tests/workers/exits_at_once.py");
    let cases = [
        (Sandbox::adapter("no.such.module:Adapter", 2), vec!["no.such.module", "cannot start"]),
        (Sandbox::adapter("broken_import:Adapter", 1), vec!["broken_import"]),
        (Sandbox::adapter("misbehaving:NoSuchClass", 1), vec!["NoSuchClass"]),
        (Sandbox::adapter(SHOWCASE, 1).python("/no/such/python"), vec!["/no/such/python", "--python"]),
        (Sandbox::adapter(SHOWCASE, 1).port(port), vec!["cannot listen on 127.0.0.1", "port 0"]),
        (
            Sandbox::worker_command(&never_ready, 2).args(&["--start-timeout", "500ms"]),
            vec!["not ready within 500ms"],
        ),
        (Sandbox::worker_command(&exits, 1), vec!["before it was ready", "code 3"]),
        (Sandbox::worker_command("/no/such/worker", 1), vec!["/no/such/worker"]),
    ];
    for (builder, needles) in cases {
        let shown = format!("{builder:?}");
        let failure = builder.try_start().await.unwrap_err();
        assert_eq!(failure.code, Some(5), "{shown}: {}", failure.stderr);
        let line = failure.stderr.lines().find(|line| line.starts_with("snakepit: ")).unwrap_or_default();
        for needle in needles {
            assert!(failure.stderr.contains(needle), "{shown}: no {needle:?} in {line}\n{}", failure.stderr);
        }
    }
    drop(taken);
    let left = run_dir_leftovers();
    assert!(left.is_empty(), "left running: {left:?}");
}

/// Workers of this test's scripts that still run.
fn run_dir_leftovers() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let commands = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    commands
        .filter(|command| command.contains("never_ready.py") || command.contains("no.such.module"))
        .collect()
}

#[tokio::test]
async fn remote_addresses_need_to_be_asked_for() {
    let output = Sandbox::adapter(SHOWCASE, 1).args(&["--listen", "0.0.0.0:0"]);
    let failure = output.try_start().await.unwrap_err();
    assert!(
        failure.stderr.contains("--allow-remote") || failure.stderr.contains("cannot be used multiple times")
    );
}

#[tokio::test]
async fn the_stream_of_a_failing_tool_ends_with_its_error() {
    let sandbox = Sandbox::adapter("misbehaving:MisbehavingAdapter", 1).start().await;
    let output = sandbox.cli(&["stream", "fail_midway", "--args", &json!({"after": 2}).to_string()]).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("midway"));
}
