//! Long error messages, statuses of foreign workers, empty results and rejected arguments reach every kind of client, and lose
//! neither a worker nor a connection.

use std::{collections::BTreeMap, process::Stdio};

use serde_json::{Value, json};
use snakepit_proto::{
    mux::{CallEnd, CallEvent, Multiplexer, STREAM_CREDIT},
    pb,
    status::{Details, TOOL_FAILED, WORKER_LOST, details_of},
    value,
};
use snakepit_server::ToolError;
use snakepit_tests::{Client, SHOWCASE, Sandbox, execute, python, result_of, root, tool_request};
use tokio::process::Command;
use tonic::{Code, Status};

const FAILING: &str = "failing:FailingAdapter";

/// Returns the arguments twice: as they are, for the multiplexed stream, and with padding, so that the call becomes a plain RPC.
fn small_and_large(args: &Value) -> [Value; 2] {
    let mut large = args.clone();
    large["pad"] = "p".repeat(300 * 1024).into();
    [args.clone(), large]
}

/// Reads a stream until its error. Returns the number of chunks and the error.
async fn stream_to_error(client: &mut Client, tool: &str, args: &Value) -> (usize, Status) {
    let mut chunks = 0;
    match client.execute_streaming_tool(tool_request(tool, args)).await {
        Err(status) => (chunks, status),
        Ok(stream) => {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(_)) => chunks += 1,
                    Ok(None) => panic!("the stream ended without an error"),
                    Err(status) => return (chunks, status),
                }
            }
        }
    }
}

/// Runs a call on a new multiplexed stream.
async fn multiplexed(client: &Client, tool: &str, args: &Value, stream: bool) -> pb::CallReply {
    let (multiplexer, incoming) = Multiplexer::open(client.clone()).await.unwrap();
    let incoming = tokio::task::spawn(incoming);
    let arguments = args.as_object().unwrap().iter().map(|(name, argument)| {
        let ty = if argument.is_string() { pb::CallValueType::String } else { pb::CallValueType::Integer };
        let value = pb::CallValue {
            r#type: ty.into(),
            json: argument.to_string().into(),
            ..pb::CallValue::default()
        };
        pb::CallArgument { name: name.clone(), value: Some(value) }
    });
    let start = pb::CallStart {
        tool_name: tool.to_owned(),
        arguments: arguments.collect(),
        stream,
        credit: STREAM_CREDIT,
        ..pb::CallStart::default()
    };
    let mut call = multiplexer.start(start, 1);
    let reply = loop {
        match call.event().await {
            CallEvent::End(CallEnd::Reply(reply)) => break reply,
            CallEvent::End(end) => panic!("the call ended without a reply: {end:?}"),
            _ => {}
        }
    };
    incoming.abort();
    reply
}

/// Makes calls with grpcio on one channel, and returns their outcomes.
async fn grpcio(sandbox: &Sandbox, calls: &[String]) -> Vec<Value> {
    let output = Command::new(python())
        .arg(root().join("tests/clients/grpcio_client.py"))
        .arg(sandbox.url().trim_start_matches("http://"))
        .args(calls)
        .env("SNAKEPIT_TEST_STUBS", root().join(".venv/stubs"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn assert_no_worker_was_lost(sandbox: &Sandbox) {
    let workers = sandbox.workers().await;
    assert!(workers.iter().all(|worker| worker.restarts == 0), "{workers:?}");
}

#[tokio::test]
async fn unary_callers_receive_long_exceptions_completely() {
    let sandbox = Sandbox::adapter(FAILING, 1).start().await;
    let mut client = sandbox.client().await;
    for args in small_and_large(&json!({"length": 200_000})) {
        let response = client.execute_tool(tool_request("fail_at_length", &args)).await.unwrap().into_inner();
        assert!(!response.success);
        assert!(response.error_message.len() > 200_000 && response.error_message.ends_with(" end"));
        let failure = response.failure.unwrap();
        assert!(failure.message.len() > 200_000 && failure.message.ends_with(" end"));
        assert!(failure.traceback.contains("fail_at_length"));
    }
    // Messages of megabytes are truncated, with a note.
    let huge = json!({"length": 5_000_000});
    let response = client.execute_tool(tool_request("fail_at_length", &huge)).await.unwrap().into_inner();
    assert!(response.error_message.len() < 1_000_000 && response.error_message.ends_with(" bytes cut]"));
    let failure = multiplexed(&client, "fail_at_length", &huge, false).await.failure.unwrap();
    assert!(failure.message.starts_with("begin xxx") && failure.message.ends_with(" bytes cut]"));
    assert_eq!(execute(&mut client, "answer", &json!({})).await.unwrap(), 42);
    assert_no_worker_was_lost(&sandbox).await;
}

#[tokio::test]
async fn a_long_exception_ends_only_its_stream() {
    let sandbox = Sandbox::adapter(FAILING, 1).start().await;
    let mut client = sandbox.client().await;
    for length in [3_000, 20_000, 200_000] {
        for args in small_and_large(&json!({"length": length})) {
            let (chunks, status) = stream_to_error(&mut client, "stream_and_fail_at_length", &args).await;
            assert_eq!((chunks, status.code()), (1, Code::Internal), "{status:?}");
            assert!(status.message().contains("begin xxx"), "{status:?}");
            let Details { reason, failure, .. } = details_of(&status);
            let failure = failure.unwrap();
            assert_eq!((reason.as_deref(), failure.r#type.as_str()), (Some(TOOL_FAILED), "ValueError"));
            assert!(failure.message.starts_with("begin xxx"), "{failure:?}");
            assert!(!failure.traceback.is_empty(), "{failure:?}");
        }
        let args = json!({"length": length});
        let failure = multiplexed(&client, "stream_and_fail_at_length", &args, true).await.failure.unwrap();
        assert!(
            failure.message.len() > length && failure.message.ends_with(" end"),
            "the multiplexed stream has no trailers, so the message is not truncated"
        );
    }
    assert_eq!(execute(&mut client, "answer", &json!({})).await.unwrap(), 42);
    assert_no_worker_was_lost(&sandbox).await;
}

#[tokio::test]
async fn grpcio_clients_receive_long_exceptions() {
    let sandbox = Sandbox::adapter(FAILING, 1).start().await;
    let mut calls = Vec::new();
    for length in [3_000, 200_000] {
        calls.push(format!(r#"unary:fail_at_length:{{"length": {length}}}"#));
        calls.push(format!(r#"stream:stream_and_fail_at_length:{{"length": {length}}}"#));
    }
    calls.push("unary:answer:{}".to_owned());
    let outcomes = grpcio(&sandbox, &calls).await;
    for pair in outcomes[..4].chunks(2) {
        let [unary, stream] = pair else { unreachable!() };
        assert!(unary["success"] == false && unary["message"].as_str().unwrap().ends_with(" end"), "{unary}");
        assert_eq!((&stream["code"], &stream["details"]), (&json!("INTERNAL"), &json!(true)), "{stream}");
        assert!(stream["message"].as_str().unwrap().contains("begin xxx"), "{stream}");
        assert_eq!(stream["chunks"], 1, "{stream}");
    }
    assert_eq!(outcomes[4]["success"], true, "{:?}", outcomes[4]);
    assert_no_worker_was_lost(&sandbox).await;
}

#[tokio::test]
async fn long_output_of_a_dying_worker_does_not_break_the_connection() {
    let sandbox = Sandbox::adapter(FAILING, 1).start().await;
    let mut client = sandbox.client().await;
    for args in small_and_large(&json!({})) {
        let status = client.execute_tool(tool_request("die_talking", &args)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().contains("exited with code 3"), "{status:?}");
        let Details { reason, failure, .. } = details_of(&status);
        assert_eq!(reason.as_deref(), Some(WORKER_LOST));
        let failure = failure.unwrap();
        assert!(failure.worker_id.starts_with("default-0-"), "{failure:?}");
        assert!(failure.output_lines.last().unwrap().ends_with("yyy"), "{failure:?}");
        assert_eq!(execute(&mut client, "answer", &json!({})).await.unwrap(), 42);
    }
    let outcomes = grpcio(&sandbox, &["unary:die_talking:{}".to_owned(), "unary:answer:{}".to_owned()]).await;
    assert_eq!(outcomes[0]["code"], "UNAVAILABLE", "{outcomes:?}");
    assert!(outcomes[0]["message"].as_str().unwrap().contains("exited with code 3"), "{outcomes:?}");
    assert_eq!(outcomes[1]["success"], true, "{outcomes:?}");
}

fn aborting_worker() -> String {
    format!("{} {}/tests/workers/aborting_worker.py", python().display(), root().display())
}

#[tokio::test]
async fn a_malformed_stream_of_a_foreign_worker_ends_the_call_and_replaces_the_worker() {
    let sandbox = Sandbox::worker_command(&aborting_worker(), 1).start().await;
    let mut client = sandbox.client().await;
    let (chunks, status) = stream_to_error(&mut client, "garble", &json!({})).await;
    assert_eq!((chunks, status.code()), (1, Code::Unavailable), "{status:?}");
    assert!(status.message().contains("cannot be read"), "{status:?}");
    // The tool still runs, and this worker cannot cancel it, so the pool replaces the worker.
    let response = client.execute_tool(tool_request("abort", &json!({"code": "ABORTED"}))).await.unwrap();
    assert_eq!(response.into_inner().error_message, "ABORTED: reason ");
    assert_eq!(sandbox.workers().await[0].restarts, 1);
}

#[tokio::test]
async fn statuses_of_a_foreign_worker_are_failures_of_its_tool() {
    let sandbox = Sandbox::worker_command(&aborting_worker(), 1).start().await;
    let mut client = sandbox.client().await;
    for code in ["NOT_FOUND", "DEADLINE_EXCEEDED", "UNAVAILABLE", "INVALID_ARGUMENT", "CANCELLED"] {
        let args = json!({"code": code});
        let response = client.execute_tool(tool_request("abort", &args)).await.unwrap().into_inner();
        assert_eq!(response.error_message, format!("{code}: reason "));
        let (chunks, status) = stream_to_error(&mut client, "abort", &args).await;
        assert_eq!((chunks, status.code()), (1, Code::Internal), "{status:?}");
        assert_eq!(details_of(&status).failure.unwrap().message, format!("{code}: reason "));
    }
    // The message exceeds the default header limits of HTTP/2 implementations.
    let args = json!({"code": "INTERNAL", "length": 100_000});
    let response = client.execute_tool(tool_request("abort", &args)).await.unwrap().into_inner();
    assert!(response.error_message.starts_with("reason zzz"), "{}", response.error_message);
    let (_, status) = stream_to_error(&mut client, "abort", &args).await;
    assert!(details_of(&status).failure.unwrap().message.starts_with("reason zzz"), "{status:?}");
    assert_no_worker_was_lost(&sandbox).await;
}

#[tokio::test]
async fn a_worker_rejects_arguments_with_the_same_status_as_the_host() {
    let sandbox = Sandbox::adapter(FAILING, 1).start().await;
    let mut client = sandbox.client().await;
    // The host does not check the contents of arrays. The worker does.
    for args in small_and_large(&json!({})) {
        let mut request = tool_request("shape_of", &args);
        let array = pb::Any {
            type_url: "type.googleapis.com/snakepit.tensor.binary".to_owned(),
            value: br#"{"shape":[2],"dtype":"float64","binary_format":"raw"}"#.as_slice().into(),
        };
        request.parameters.insert("value".to_owned(), array);
        request.binary_parameters = BTreeMap::from([("value".to_owned(), vec![0; 3].into())]);
        let status = client.execute_tool(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with("argument `value` of tool `shape_of` "), "{status:?}");
        assert_eq!(status.message().matches("argument").count(), 1, "{status:?}");
        assert_eq!(details_of(&status).violations[0].field, "value");
    }
}

#[tokio::test]
async fn arguments_that_contradict_type_hints_are_rejected_with_the_path_of_each_problem() {
    let sandbox = Sandbox::adapter("orders:Orders", 1).start().await;
    let mut client = sandbox.client().await;
    let total = async |client: &mut Client, args: Value| {
        client
            .execute_tool(tool_request("total", &args))
            .await
            .map(|response| result_of(response.into_inner()))
    };
    let valid = json!({"items": [{"name": "tea", "price": 9.99, "count": 2.0}], "due": "2026-11-30"});
    assert_eq!(total(&mut client, valid).await.unwrap(), "19.98");

    let invalid =
        json!({"items": [{"name": "tea", "price": "x"}, {"price": 1, "count": 0}], "currency": "GBP"});
    let problems = [
        ("items[0].price", "is 'x', expected a number, or a decimal number as text"),
        ("items[1].name", "is missing"),
        ("items[1].count", "is 0, below minimum 1"),
        ("currency", "is 'GBP', expected 'EUR' or 'USD'"),
    ];
    let status = total(&mut client, invalid.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let start = "argument `items[0].price` of tool `total` is 'x', ";
    let end = "`items[1].name` is missing, `items[1].count` is 0, below minimum 1, and `currency` is 'GBP', expected 'EUR' or 'USD'";
    assert!(status.message().starts_with(start) && status.message().ends_with(end), "{status:?}");
    let violations = details_of(&status).violations;
    let found: Vec<_> =
        violations.iter().map(|each| (each.field.as_str(), each.description.as_str())).collect();
    assert_eq!(found, problems);

    let client = snakepit_server::Client::connect(sandbox.url()).await.unwrap();
    let error = client.execute::<Value>("total", invalid).await.unwrap_err();
    let snakepit_server::Error::Tool(ToolError::InvalidArguments { violations, .. }) = &error else {
        panic!("{error}")
    };
    let found: Vec<_> =
        violations.iter().map(|each| (each.field.as_str(), each.description.as_str())).collect();
    assert_eq!(found, problems);
    assert!(!error.may_have_run());

    // Wrong types, missing and unknown arguments, and problems inside others.
    let wrong = json!({"items": [{"price": 1}, 5], "due": 6, "extra": 1});
    let error = client.execute::<Value>("total", wrong).await.unwrap_err();
    let snakepit_server::Error::Tool(ToolError::InvalidArguments { violations, .. }) = &error else {
        panic!("{error}")
    };
    let found: Vec<_> = violations.iter().map(|each| each.field.as_str()).collect();
    assert_eq!(found, ["items[0].name", "items[1]", "due", "extra"]);
    let takes = "is unknown; the tool takes items (list), due (";
    assert!(violations[3].description.starts_with(takes), "{error}");
    let missing = client.execute::<Value>("total", json!({"currency": "GBP"})).await.unwrap_err();
    let message = missing.to_string();
    assert!(message.contains("argument `currency` of tool `total` is 'GBP'"), "{message}");
    assert!(message.contains("and `items` is missing; the tool takes"), "{message}");

    let listed = sandbox.cli_ok(&["tools", "total", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let item = &listed["input_schema"]["$defs"]["Item"]["properties"]["count"];
    assert_eq!(item, &json!({"type": "integer", "minimum": 1, "default": 1}));
    assert_eq!(listed["input_schema"]["properties"]["items"]["description"], "The items of one order.");
    assert_eq!((&listed["result_schema"]["type"], &listed["item_schema"]), (&json!("string"), &Value::Null));
    let text = sandbox.cli_ok(&["tools", "total"]).await;
    assert!(
        text.starts_with("total (call, default)\nAdd the prices of all items.\n\nArguments:\n{\n"),
        "{text}"
    );
    let missing = sandbox.cli(&["tools", "totl"]).await;
    assert_eq!(missing.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("did you mean `total`?"), "{missing:?}");
}

#[tokio::test]
async fn json_arguments_become_arrays_or_are_rejected() {
    let sandbox = Sandbox::adapter(FAILING, 1).start().await;
    let mut client = sandbox.client().await;
    let mut shape_of = async |json: &str| {
        let mut request = tool_request("shape_of", &json!({}));
        let value = json.as_bytes().to_vec().into();
        let array = pb::Any { type_url: "type.googleapis.com/snakepit.tensor".to_owned(), value };
        request.parameters.insert("value".to_owned(), array);
        client.execute_tool(request).await.map(|response| result_of(response.into_inner()))
    };
    for (json, shape) in [
        ("[[1, 2], [3, 4]]", json!([2, 2])),
        ("[]", json!([0])),
        (r#"{"shape": [2], "data": [1, 2]}"#, json!([2])),
        (r#"{"shape": [2, 1], "data": [1.5, 2], "dtype": "float32"}"#, json!([2, 1])),
        (r#"{"shape": [1], "data": "AAAAAAAA8D8=", "dtype": "float64", "binary_format": "raw"}"#, json!([1])),
    ] {
        assert_eq!(shape_of(json).await.unwrap(), shape, "{json}");
    }
    for (json, problem) in [
        ("{}", "cannot be converted to an array"),
        (r#"{"a": 1}"#, "cannot be converted to an array"),
        (r#"{"shape": [2]}"#, "cannot be converted to an array"),
        (r#"{"shape": "x", "data": [1, 2]}"#, "cannot be converted to an array"),
        (r#"{"shape": [3], "data": [1, 2]}"#, "do not match the shape [3]"),
        (r#"{"shape": [2], "data": ["x", "y"]}"#, "dtype"),
        (r#"{"shape": [2], "data": [1, 2], "dtype": "object"}"#, "which is not numeric"),
        ("[[1, 2], [3]]", "of equal length"),
    ] {
        let status = shape_of(json).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{json}: {status:?}");
        assert!(status.message().contains(problem), "{json}: {status:?}");
    }
}

#[tokio::test]
async fn a_readiness_line_printed_by_an_adapter_is_ignored() {
    let sandbox = Sandbox::adapter("premature:PrematureAdapter", 1).start().await;
    let mut client = sandbox.client().await;
    assert_eq!(execute(&mut client, "answer", &json!({})).await.unwrap(), 42);
    assert!(sandbox.workers().await[0].address.starts_with("unix:"));
    assert_no_worker_was_lost(&sandbox).await;
}

#[tokio::test]
async fn empty_buffers_are_valid_results_and_arguments() {
    let sandbox = Sandbox::adapter(FAILING, 1).start().await;
    let mut client = sandbox.client().await;
    for args in small_and_large(&json!({})) {
        for (tool, type_name) in [("no_bytes", "bytes"), ("no_rows", "tensor")] {
            let response = client.execute_tool(tool_request(tool, &args)).await.unwrap().into_inner();
            assert!(response.success, "{response:?}");
            let typed = value::decode(response.result.unwrap(), None).unwrap();
            assert_eq!((&*typed.type_name, typed.binary.unwrap().len()), (type_name, 0));
        }
        // An empty array as an argument.
        let mut request = tool_request("shape_of", &args);
        let array = pb::Any {
            type_url: "type.googleapis.com/snakepit.tensor.binary".to_owned(),
            value: br#"{"shape":[0,3],"dtype":"float64","binary_format":"raw"}"#.as_slice().into(),
        };
        request.parameters.insert("value".to_owned(), array);
        let response = client.execute_tool(request).await.unwrap().into_inner();
        let typed = value::decode(response.result.unwrap(), None).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&typed.json).unwrap(), json!([0, 3]));
    }
    let reply = multiplexed(&client, "no_bytes", &json!({}), false).await;
    assert_eq!(reply.value.unwrap().binary.unwrap().len(), 0);
    assert_no_worker_was_lost(&sandbox).await;
}

#[tokio::test]
#[allow(clippy::needless_update, reason = "some of the requests have no other fields")]
async fn ids_and_names_of_megabytes_are_rejected_with_their_limit() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    let open = |session_id| pb::InitializeSessionRequest { session_id, ..Default::default() };
    client.initialize_session(open("s".to_owned())).await.unwrap();
    let (long, session_id) = ("x".repeat(3 * 1024 * 1024), "s".to_owned());
    let value = || pb::Any { type_url: "type.googleapis.com/snakepit.integer".into(), value: "1".into() };

    macro_rules! rejected {
        ($($rpc:ident($request:ident { $($field:ident: $value:expr),* });)*) => {
            [$((
                stringify!($rpc),
                client
                    .$rpc(pb::$request { $($field: $value,)* ..Default::default() })
                    .await
                    .map(drop)
                    .expect_err(stringify!($rpc)),
            )),*]
        };
    }
    let program = |name| Some(pb::Program { name, ..Default::default() });
    let rejected = rejected! {
        initialize_session(InitializeSessionRequest { session_id: long.clone() });
        get_session(GetSessionRequest { session_id: long.clone() });
        cleanup_session(CleanupSessionRequest { session_id: long.clone() });
        get_exposed_elixir_tools(GetExposedElixirToolsRequest { session_id: long.clone() });
        list_variables(ListVariablesRequest { session_id: long.clone() });
        list_variables(ListVariablesRequest { session_id: session_id.clone(), pattern: long.clone() });
        register_variable(RegisterVariableRequest {
            session_id: session_id.clone(), name: long.clone(), r#type: "integer".to_owned(), initial_value: Some(value())
        });
        get_variable(GetVariableRequest { session_id: session_id.clone(), variable_identifier: long.clone() });
        set_variable(SetVariableRequest {
            session_id: session_id.clone(), variable_identifier: long.clone(), value: Some(value())
        });
        delete_variable(DeleteVariableRequest { session_id: session_id.clone(), variable_identifier: long.clone() });
        get_variables(BatchGetVariablesRequest {
            session_id: session_id.clone(), variable_identifiers: vec![long.clone()]
        });
        set_variables(BatchSetVariablesRequest {
            session_id: session_id.clone(), updates: [(long.clone(), value())].into()
        });
        watch_variables(WatchVariablesRequest {
            session_id: session_id.clone(), variable_identifiers: vec![long.clone()]
        });
        get_variable_history(GetVariableHistoryRequest {
            session_id: session_id.clone(), variable_identifier: long.clone()
        });
        rollback_variable(RollbackVariableRequest {
            session_id: session_id.clone(), variable_identifier: long.clone()
        });
        put_program(PutProgramRequest { session_id: session_id.clone(), program: program(long.clone()) });
        get_program(GetProgramRequest { session_id: session_id.clone(), name: long.clone() });
        delete_program(DeleteProgramRequest { session_id: session_id.clone(), name: long.clone() });
        list_programs(ListProgramsRequest { session_id: long.clone() });
        execute_tool(ExecuteToolRequest { tool_name: long.clone() });
        execute_tool(ExecuteToolRequest { session_id: long.clone(), tool_name: "add".to_owned() });
        execute_tool(ExecuteToolRequest {
            tool_name: "add".to_owned(), parameters: [(long.clone(), value())].into()
        });
        execute_streaming_tool(ExecuteToolRequest { tool_name: long.clone() });
        execute_elixir_tool(ExecuteElixirToolRequest { tool_name: long.clone() });
    };
    for (rpc, status) in rejected {
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{rpc}: {}", status.message());
        let has_limit = status.message().contains("3145728 bytes, the limit is ");
        assert!(has_limit && status.message().len() < 500, "{rpc}: {}", status.message());
    }
}
