//! Isolation between calls: signals, context variables, the event loop, imports and processes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snakepit_proto::pb;
use snakepit_tests::{
    Client, EVENT_TIMEOUT, Sandbox, Signal, eventually, execute, execute_within, is_alive, signal,
    tool_request,
};
use tonic::Code;

const ISOLATION: &str = "isolation:Isolation";

async fn start() -> (Sandbox, Client) {
    let sandbox = Sandbox::adapter(ISOLATION, 1).start().await;
    let client = sandbox.client().await;
    (sandbox, client)
}

async fn call(client: &mut Client, tool: &str, args: Value) -> Value {
    let outcome = tokio::time::timeout(EVENT_TIMEOUT, execute(client, tool, &args)).await;
    outcome.expect(tool).unwrap_or_else(|status| panic!("{tool}: {status:?}"))
}

/// Calls a tool whose deadline passes while it runs.
async fn let_deadline_pass(sandbox: &Sandbox, tool: &str, args: Value) {
    let status = execute_within(sandbox.url(), Duration::from_millis(300), tool, &args).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn forked_processes_and_pools_can_be_terminated() {
    let (_sandbox, mut client) = start().await;
    for _ in 0..5 {
        assert_eq!(call(&mut client, "fork_and_terminate", json!({})).await, -15);
        assert_eq!(call(&mut client, "pool_of_two", json!({})).await, json!([2, 4, 6]));
    }
}

#[tokio::test]
async fn child_processes_have_the_signal_handlers_of_plain_python() {
    let (_sandbox, mut client) = start().await;
    let children = call(&mut client, "signals_of_children", json!({})).await;
    assert_eq!(children[0], children[1]);
}

#[tokio::test]
async fn context_variables_end_with_their_call() {
    let (_sandbox, mut client) = start().await;
    for (setter, getter) in [("become", "who"), ("become_async", "who_async"), ("become", "who_async")] {
        assert_eq!(call(&mut client, setter, json!({"user": "alice"})).await, "alice");
        assert_eq!(call(&mut client, getter, json!({})).await, "unset", "{setter} {getter}");
    }
}

#[tokio::test]
async fn an_exit_in_a_coroutine_fails_only_its_call() {
    let (_sandbox, mut client) = start().await;
    for _ in 0..3 {
        let failed = client.execute_tool(tool_request("leave", &json!({}))).await.unwrap().into_inner();
        assert!(failed.error_message.contains("SystemExit"), "{failed:?}");
        assert_eq!(call(&mut client, "run_program", json!({})).await, 0);
    }
}

#[tokio::test]
async fn changed_signal_handlers_are_restored_and_logged() {
    let (sandbox, mut client) = start().await;
    let pid = call(&mut client, "ping", json!({})).await;
    call(&mut client, "take_signals", json!({})).await;
    // The worker disabled the timer of the tool, which would have killed it.
    call(&mut client, "sleep", json!({"seconds": 0.4})).await;
    let log = sandbox.log();
    for needle in [
        "the handler of SIGURG",
        "the handler of SIGTERM",
        "the handler of SIGINT",
        "blocked signals",
        "alarm",
    ] {
        assert!(log.contains(needle), "no {needle:?} in {log}");
    }
    // Cancellation and SIGTERM still work.
    let_deadline_pass(&sandbox, "sleep", json!({"seconds": 600})).await;
    assert_eq!(call(&mut client, "ping", json!({})).await, pid);
    call(&mut client, "borrow_sigterm", json!({})).await;
    let pid = u32::try_from(pid.as_u64().unwrap()).unwrap();
    signal(pid, Signal::SIGTERM);
    eventually("the worker exits", EVENT_TIMEOUT, async || sandbox.log().contains("exited with code 0"))
        .await;
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_cancelled_call_inside_a_library_replaces_its_worker_unless_the_tool_keeps_it() {
    let (sandbox, mut client) = start().await;
    let mut pid = call(&mut client, "ping", json!({})).await;
    for (tool, keeps_worker) in [
        ("sleep", true),
        ("wait_in_library", false),
        ("wait_in_library_and_stay", true),
        ("sleep_and_go", false),
        ("start_program", false),
    ] {
        let args = if tool == "sleep" { json!({"seconds": 600}) } else { json!({}) };
        let_deadline_pass(&sandbox, tool, args).await;
        let current = call(&mut client, "ping", json!({})).await;
        assert_eq!(current == pid, keeps_worker, "{tool}: {}", sandbox.log());
        pid = current;
    }
    assert!(sandbox.log().contains("left processes behind"), "{}", sandbox.log());
}

#[tokio::test]
async fn with_the_policy_replace_each_cancelled_call_replaces_its_worker() {
    let sandbox = Sandbox::adapter(ISOLATION, 1).env("SNAKEPIT_AFTER_CANCEL", "replace").start().await;
    let mut client = sandbox.client().await;
    // Replaces more workers than the number of consecutive failures that breaks a pool.
    for _ in 0..5 {
        let_deadline_pass(&sandbox, "sleep", json!({"seconds": 600})).await;
        call(&mut client, "ping", json!({})).await;
    }
    assert_eq!(sandbox.workers().await[0].restarts, 5);
}

#[tokio::test]
async fn a_cancelled_import_does_not_leave_a_partial_module() {
    let (sandbox, mut client) = start().await;
    let pid = call(&mut client, "ping", json!({})).await;
    let_deadline_pass(&sandbox, "import_lazily", json!({})).await;
    assert_eq!(call(&mut client, "import_lazily", json!({})).await, 7);
    assert_eq!(call(&mut client, "ping", json!({})).await, pid, "{}", sandbox.log());
}

#[tokio::test]
async fn a_cancelled_tool_may_clean_up_within_the_grace_period() {
    let (sandbox, _client) = start().await;
    let file = sandbox.run_dir().join("cleaned");
    let_deadline_pass(&sandbox, "clean_up", json!({"path": file})).await;
    eventually("the tool has cleaned up", EVENT_TIMEOUT, async || file.exists()).await;
}

#[tokio::test]
async fn tasks_left_by_a_call_are_logged_and_worker_tasks_run_between_calls() {
    let (sandbox, mut client) = start().await;
    call(&mut client, "leave_task", json!({})).await;
    eventually("the task is named", EVENT_TIMEOUT, async || sandbox.log().contains("`forgotten`")).await;
    call(&mut client, "start_ticker", json!({})).await;
    assert_ticks_between_calls(&mut client).await;

    let sandbox = Sandbox::adapter("isolation:Ticking", 1).start().await;
    assert_ticks_between_calls(&mut sandbox.client().await).await;
}

/// Checks that the ticker runs between calls. The only calls read the count five times per second.
async fn assert_ticks_between_calls(client: &mut Client) {
    let before = call(client, "ticked", json!({})).await.as_u64().unwrap();
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = call(client, "ticked", json!({})).await.as_u64().unwrap();
        // The calls themselves may cause a few ticks.
        if now > before + 30 {
            break;
        }
        // The time is too short for the ticks of the calls alone.
        assert!(began.elapsed() < Duration::from_secs(10), "{now} ticks, {before} before");
    }
}

#[tokio::test]
async fn the_error_of_a_crash_contains_the_python_stack() {
    let (_sandbox, mut client) = start().await;
    let status = execute(&mut client, "crash_here", &json!({})).await.unwrap_err();
    assert!(status.message().contains("SIGSEGV"), "{status:?}");
    assert!(status.message().contains("crash_here"), "{status:?}");
}

#[tokio::test]
async fn an_adapter_that_cannot_be_constructed_fails_the_start() {
    let failure = Sandbox::adapter("isolation:NeedsArguments", 1).try_start().await.unwrap_err();
    assert!(
        failure.stderr.contains("adapter argument `path` is missing, which `__init__` of"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn arguments_have_their_annotated_types() {
    let (_sandbox, mut client) = start().await;
    let types = |args: Value| json!({"args": args})["args"].clone();
    let names = call(&mut client, "types", types(json!({"f": 5, "i": 5.0}))).await;
    assert_eq!(names, json!(["float", "int", "NoneType"]));
    let error = execute(&mut client, "types", &json!({"i": 5.5})).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    for ty in ["integer", "float", "boolean", "null", "map", "list", "tensor", "embedding", "bytes"] {
        for name in ["anything", "i"] {
            let mut request = tool_request("types", &json!({}));
            let any =
                pb::Any { type_url: format!("type.googleapis.com/snakepit.{ty}"), value: "\"abc\"".into() };
            request.parameters.insert(name.into(), any);
            let status = client.execute_tool(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{ty} {status:?}");
            assert!(status.message().contains(name), "{ty} {status:?}");
        }
    }
    let argv = call(&mut client, "argv", json!({})).await;
    assert!(
        argv.as_array().unwrap().len() == 1 && argv[0].as_str().unwrap().ends_with("isolation.py"),
        "{argv}"
    );
}
