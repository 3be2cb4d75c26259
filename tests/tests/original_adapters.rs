//! Adapters with the API of the original Snakepit: they start unmodified, and calls to any tool go through `execute_tool`.

use serde_json::{Value, json};
use snakepit_proto::pb;
use snakepit_tests::{
    Client, EVENT_TIMEOUT, Sandbox, SandboxBuilder, arguments, eventually, execute, result_of, tool_request,
};
use tonic::Code;

fn sandbox(adapter: &str) -> SandboxBuilder {
    // The original names adapters with dots.
    Sandbox::adapter(&format!("first_generation.{adapter}"), 1)
}

/// Calls a tool in the session `s`.
async fn call(client: &mut Client, tool: &str, args: &Value) -> Value {
    let request = pb::ExecuteToolRequest { session_id: "s".to_owned(), ..tool_request(tool, args) };
    result_of(client.execute_tool(request).await.unwrap().into_inner())
}

async fn with_session(sandbox: &Sandbox) -> Client {
    let mut client = sandbox.client().await;
    let session = pb::InitializeSessionRequest { session_id: "s".to_owned(), ..Default::default() };
    client.initialize_session(session).await.unwrap();
    client
}

/// Streams a tool and returns its chunks.
async fn stream(client: &mut Client, tool: &str, args: &Value) -> Vec<Value> {
    let request = pb::ExecuteToolRequest {
        session_id: "s".to_owned(),
        tool_name: tool.to_owned(),
        parameters: arguments(args),
        ..Default::default()
    };
    let mut chunks = client.execute_streaming_tool(request).await.unwrap().into_inner();
    let mut values = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        if !chunk.data.is_empty() {
            values.push(serde_json::from_slice(&chunk.data).unwrap());
        }
    }
    values
}

#[tokio::test]
async fn an_adapter_that_delegates_to_handlers_answers_declared_and_other_tools() {
    let sandbox = sandbox("delegating.DelegatingAdapter").start().await;
    let mut client = with_session(&sandbox).await;
    let ping = call(&mut client, "ping", &json!({"message": "hi"})).await;
    assert_eq!(ping, json!({"message": "hi", "session": "s"}));
    assert_eq!(call(&mut client, "count_up", &json!({})).await, 1);
    assert_eq!(call(&mut client, "count_up", &json!({})).await, 2, "the worker keeps the state of classes");
    let echo = call(&mut client, "echo", &json!({"a": [1], "b": null})).await;
    assert_eq!(echo, json!({"echoed": {"a": [1], "b": null}, "session": "s"}));
    // The hints of methods describe, and neither convert nor reject.
    assert_eq!(call(&mut client, "again", &json!({"message": 5})).await, json!({"again": 5}));
    let missing = client.execute_tool(tool_request("again", &json!({}))).await.unwrap().into_inner();
    assert!(!missing.success && missing.error_message.contains("message"), "{missing:?}");
    let unknown = client.execute_tool(tool_request("nothing", &json!({}))).await.unwrap().into_inner();
    assert!(unknown.error_message.contains("tool `nothing` not found"), "{unknown:?}");

    let steps =
        |count: i32| (1..=count).map(|step| json!({"step": step, "session": "s"})).collect::<Vec<_>>();
    assert_eq!(stream(&mut client, "steps", &json!({"count": 3})).await, steps(3));
    assert_eq!(stream(&mut client, "streamed", &json!({})).await, steps(2));
    let unary = execute(&mut client, "steps", &json!({})).await.unwrap_err();
    assert_eq!(unary.code(), Code::Unimplemented, "{unary:?}");

    assert_eq!(call(&mut client, "call_host", &json!({"name": "multiply"})).await, json!({"known": []}));
    let request = pb::ExecuteToolRequest {
        metadata: [("user".to_owned(), "ann".to_owned())].into(),
        ..tool_request("describe", &json!({"extra": "any"}))
    };
    let described = result_of(client.execute_tool(request).await.unwrap().into_inner());
    let tools = json!(["again", "call_host", "describe", "echo", "streamed"]);
    assert_eq!(described["marked"], tools);
    let mut registered: Vec<String> = serde_json::from_value(described["registered"].clone()).unwrap();
    registered.sort();
    assert_eq!(json!(registered), tools);
    assert_eq!(described["description"], "Return all arguments");
    assert_eq!(described["request_metadata"]["user"], "ann");

    let listed = client.list_tools(pb::ListToolsRequest {}).await.unwrap().into_inner().tools;
    let call_host = listed.iter().filter_map(|tool| tool.spec.as_ref()).find(|spec| spec.name == "call_host");
    let call_host = call_host.unwrap();
    assert_eq!(call_host.description, "Call a tool of the host");
    assert_eq!(call_host.required_variables, ["enabled"]);
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn a_thread_safe_adapter_counts_its_requests_and_keeps_values_of_its_threads() {
    let sandbox = sandbox("threaded.ThreadedAdapter").env("SNAKEPIT_LOG_LEVEL", "warning").start().await;
    let log = sandbox.log_handle();
    let mut client = with_session(&sandbox).await;
    let count = json!({"text": "a cup of tea"});
    let first = call(&mut client, "count", &count).await;
    assert_eq!(first, json!({"words": 8, "cached": false, "active": 2, "session": "s"}));
    assert_eq!(call(&mut client, "count", &count).await["cached"], true);
    assert_eq!(call(&mut client, "forget", &json!({})).await, "forgotten");
    assert_eq!(call(&mut client, "count", &count).await["cached"], false);
    let stats = call(&mut client, "stats", &json!({})).await;
    // Each call counts twice, for `execute_tool` and for the method. The last counts a block, too.
    assert_eq!(stats["tracker"]["total_requests"], 11, "{stats}");
    assert_eq!(stats["tracker"]["total_active_requests"], 3, "{stats}");
    assert_eq!(
        (&stats["thread_safe"], &stats["valid"], &stats["checked"]),
        (&json!(true), &json!(true), &json!(true))
    );
    eventually("the logger wrote a line", EVENT_TIMEOUT, async || {
        let lines = log.lock().unwrap();
        lines
            .iter()
            .any(|line| line.contains("snakepit.first_generation.threaded") && line.contains("stats of s"))
    })
    .await;
}

#[tokio::test]
async fn an_adapter_without_a_base_class_answers_any_name() {
    for concurrency in ["1", "4"] {
        answers_any_name(sandbox("plain.PlainAdapter").args(&["--concurrency", concurrency])).await;
    }
}

async fn answers_any_name(sandbox: SandboxBuilder) {
    let sandbox = sandbox.start().await;
    let mut client = with_session(&sandbox).await;
    let any = call(&mut client, "any name at all", &json!({"x": 1.5})).await;
    assert_eq!(any, json!({"tool": "any name at all", "arguments": {"x": 1.5}, "session": "s"}));
    assert_eq!(
        stream(&mut client, "letters", &json!({"text": "ab"})).await,
        [json!({"letter": "a"}), json!({"letter": "b"})]
    );
    assert_eq!(
        call(&mut client, "cleaned", &json!({})).await,
        json!(["s", "s"]),
        "cleanup ran after both calls"
    );
    let refused = client.execute_tool(tool_request("refuse", &json!({}))).await.unwrap().into_inner();
    assert!(!refused.success && refused.error_message.contains("NotImplementedError"), "{refused:?}");
    let marker =
        json!({"__snakepit_unserializable__": true, "__type__": "first_generation.plain.PlainAdapter"});
    assert_eq!(
        call(&mut client, "opaque", &json!({})).await,
        json!({"value": marker, "items": [{"name": "tea"}]})
    );
    // The name still has a limit.
    let long = execute(&mut client, &"n".repeat(300), &json!({})).await.unwrap_err();
    assert_eq!(long.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn the_stub_of_a_context_sends_messages_of_the_adapter() {
    let sandbox = sandbox("registering.RegisteringAdapter").start().await;
    let mut client = with_session(&sandbox).await;
    let rate = pb::RegisterVariableRequest {
        session_id: "s".to_owned(),
        name: "rate".to_owned(),
        r#type: "integer".to_owned(),
        initial_value: arguments(&json!({"v": 7})).remove("v"),
        ..Default::default()
    };
    client.register_variable(rate).await.unwrap();
    assert_eq!(call(&mut client, "read", &json!({"name": "rate"})).await, "rate=7");
    let missing =
        pb::ExecuteToolRequest { session_id: "s".to_owned(), ..tool_request("read", &json!({"name": "x"})) };
    let missing = client.execute_tool(missing).await.unwrap().into_inner();
    assert!(missing.error_message.contains("VariableNotFoundError"), "{missing:?}");
    // Leaving the context deletes the session, as in the original.
    assert_eq!(call(&mut client, "tools_by_stub", &json!({})).await, json!(["a"]));
    let deleted = client.get_session(pb::GetSessionRequest { session_id: "s".to_owned() }).await.unwrap_err();
    assert_eq!(deleted.code(), Code::NotFound);
}
