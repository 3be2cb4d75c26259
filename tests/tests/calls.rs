//! Calls over gRPC: kinds of tools and values, deadlines, overload, affinity, health, reflection and telemetry.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use snakepit_proto::{headers, pb, value};
use snakepit_tests::{
    Client, EVENT_TIMEOUT, SHOWCASE, Sandbox, eventually, execute, execute_within, tool_request,
};
use tonic::Code;
use tonic_types::StatusExt;

async fn chunks(client: &mut Client, tool: &str, args: &Value) -> Vec<pb::ToolChunk> {
    let mut stream = client.execute_streaming_tool(tool_request(tool, args)).await.unwrap().into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        chunks.push(chunk);
    }
    chunks
}

#[tokio::test]
async fn functions_coroutines_and_generators_are_tools() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let mut client = sandbox.client().await;
    assert_eq!(execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    assert_eq!(execute(&mut client, "async_add", &json!({"a": 1.5, "b": 2})).await.unwrap(), 3.5);
    for tool in ["count", "async_count"] {
        let chunks = chunks(&mut client, tool, &json!({"n": 3})).await;
        let ids: Vec<_> = chunks.iter().map(|chunk| chunk.chunk_id.as_str()).collect();
        assert_eq!(ids, [format!("{tool}-1"), format!("{tool}-2"), format!("{tool}-3"), String::new()]);
        assert!(chunks[3].is_final && chunks[3].data.is_empty());
        assert!(chunks[..3].iter().all(|chunk| !chunk.is_final));
    }
    let rejected = client.execute_tool(tool_request("count", &json!({"n": 3}))).await.unwrap_err();
    assert_eq!(rejected.code(), Code::Unimplemented, "{rejected:?}");
    assert!(rejected.message().contains("count"), "{rejected:?}");
}

#[tokio::test]
async fn all_chunks_of_a_burst_arrive_while_the_tool_computes_the_next_one() {
    let sandbox = Sandbox::adapter("unlucky:UnluckyTools", 1).start().await;
    let mut client = sandbox.client().await;
    let files = tempfile::tempdir().unwrap();
    for n in [1, 7, 300, 5000] {
        let path = files.path().join(n.to_string());
        let request = tool_request("burst", &json!({"n": n, "path": path}));
        let mut chunks = client.execute_streaming_tool(request).await.unwrap().into_inner();
        for number in 0..n {
            let chunk = tokio::time::timeout(EVENT_TIMEOUT, chunks.message()).await;
            let chunk = chunk.expect("the last chunks of the burst wait for the next one");
            assert_eq!(chunk.unwrap().unwrap().data, number.to_string());
        }
        std::fs::write(&path, "").unwrap();
        assert_eq!(chunks.message().await.unwrap().unwrap().data, n.to_string());
        assert!(chunks.message().await.unwrap().unwrap().is_final);
    }
}

#[tokio::test]
async fn values_survive_a_round_trip() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    let values = json!({
        "int": -7, "big": 9_007_199_254_740_993_i64, "float": 0.1, "text": "Grüße \u{1F40D} \"quoted\"", "none": null,
        "yes": true, "list": [1, [2, {"deep": []}]], "map": {"k": {"n": 1.0}}, "empty": "",
    });
    assert_eq!(execute(&mut client, "echo", &values).await.unwrap(), values);

    // Other clients send protobuf wrappers, or bare JSON as the original Snakepit does.
    let wrapped = |name: &str, bytes: &'static [u8]| pb::Any {
        type_url: format!("type.googleapis.com/google.protobuf.{name}"),
        value: Bytes::from_static(bytes),
    };
    for (any, expected) in [
        (wrapped("StringValue", b"\x0a\x02hi"), json!("hi")),
        (wrapped("StringValue", b"42"), json!(42)),
        (wrapped("Value", b"[1, 2]"), json!([1, 2])),
        (wrapped("BoolValue", b"\x08\x01"), json!(true)),
        (wrapped("Int64Value", b"\x08\x05"), json!(5)),
    ] {
        let mut request = tool_request("echo", &json!({}));
        request.parameters.insert("x".into(), any);
        let response = client.execute_tool(request).await.unwrap().into_inner();
        assert_eq!(snakepit_tests::result_of(response), json!({"x": expected}));
    }
}

#[tokio::test]
async fn sixteen_mebibytes_are_sent_as_raw_bytes() {
    let sandbox = Sandbox::adapter("misbehaving:MisbehavingAdapter", 1).start().await;
    let mut client = sandbox.client().await;
    let sixteen_mib: Bytes =
        (0..16 * 1024 * 1024_u32).map(|i| i.to_le_bytes()[0]).collect::<Vec<u8>>().into();
    let mut request = tool_request("echo_bytes", &json!({}));
    request.binary_parameters.insert("data".into(), sixteen_mib.clone());
    let response = client.execute_tool(request).await.unwrap().into_inner();
    assert!(response.success, "{}", response.error_message);
    assert_eq!(response.binary_result, sixteen_mib);
    let result = value::decode(response.result.unwrap(), Some(response.binary_result)).unwrap();
    assert_eq!(result.type_name, "bytes");
}

#[tokio::test]
async fn an_exception_of_a_tool_is_a_response_with_its_traceback() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    let response =
        client.execute_tool(tool_request("fail", &json!({"message": "no way"}))).await.unwrap().into_inner();
    assert!(!response.success);
    assert!(response.error_message.contains("no way"), "{}", response.error_message);
    let failure = response.failure.unwrap();
    assert_eq!(failure.message, "no way");
    assert!(
        failure.traceback.contains("def fail") || failure.traceback.contains("in fail"),
        "{}",
        failure.traceback
    );
    assert_eq!(failure.tool_name, "fail");
}

#[tokio::test]
async fn rejected_calls_end_with_statuses_that_have_details() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    for (request, code, reason) in [
        (tool_request("no_such", &json!({})), Code::NotFound, "TOOL_NOT_FOUND"),
        (tool_request("", &json!({})), Code::InvalidArgument, "INVALID_ARGUMENT"),
        (tool_request("add", &json!({"a": 1})), Code::InvalidArgument, "INVALID_ARGUMENT"),
        (tool_request("add", &json!({"a": [], "b": 2})), Code::InvalidArgument, "INVALID_ARGUMENT"),
        (
            pb::ExecuteToolRequest {
                session_id: "unknown".into(),
                ..tool_request("add", &json!({"a": 1, "b": 2}))
            },
            Code::NotFound,
            "SESSION_NOT_FOUND",
        ),
    ] {
        let status = client.execute_tool(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(status.get_error_details().error_info().unwrap().reason, reason);
    }
    let mut malformed = tool_request("echo", &json!({}));
    malformed.parameters.insert(
        "x".into(),
        pb::Any {
            type_url: "type.googleapis.com/snakepit.map".into(),
            value: Bytes::from_static(b"{not json"),
        },
    );
    // The host does not decode values, so the worker rejects this one. The status is the same.
    let status = client.execute_tool(malformed).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "INVALID_ARGUMENT");
    assert!(status.message().contains("argument `x`") && status.message().contains("JSON"), "{status:?}");
    assert_eq!(execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
}

#[tokio::test]
async fn a_deadline_includes_the_time_in_the_queue() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut busy = sandbox.client().await;
    let blocker =
        tokio::spawn(async move { execute(&mut busy, "sleep_for", &json!({"seconds": 2.0})).await });
    eventually("the worker is busy", EVENT_TIMEOUT, async || sandbox.workers().await[0].state == "busy")
        .await;
    let status = execute_within(sandbox.url(), Duration::from_millis(300), "add", &json!({"a": 1, "b": 2}))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("queued"), "{status:?}");
    blocker.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_full_queue_rejects_calls_immediately() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).args(&["--queue-limit", "1"]).start().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut client = sandbox.client().await;
        calls.spawn(async move { execute(&mut client, "sleep_for", &json!({"seconds": 0.5})).await });
    }
    let mut rejected = 0;
    while let Some(outcome) = calls.join_next().await {
        if let Err(status) = outcome.unwrap() {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            assert_eq!(status.get_error_details().error_info().unwrap().reason, "OVERLOADED");
            rejected += 1;
        }
    }
    assert_eq!(rejected, 2, "one call runs, one waits, two are rejected");
}

#[tokio::test]
async fn calls_of_a_session_go_to_the_same_worker_while_it_is_idle() {
    let sandbox = Sandbox::adapter(SHOWCASE, 4).start().await;
    let mut client = sandbox.client().await;
    let session_id = "sticky".to_owned();
    client
        .initialize_session(pb::InitializeSessionRequest {
            session_id: session_id.clone(),
            ..Default::default()
        })
        .await
        .unwrap();
    let mut workers = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let request =
            pb::ExecuteToolRequest { session_id: session_id.clone(), ..tool_request("whoami", &json!({})) };
        let response = client.execute_tool(request).await.unwrap();
        workers.insert(response.metadata().get(headers::WORKER_ID).unwrap().to_str().unwrap().to_owned());
        let who = snakepit_tests::result_of(response.into_inner());
        assert_eq!(who["session_id"], "sticky", "Python receives the session id");
    }
    assert_eq!(workers.len(), 1, "{workers:?}");
}

#[tokio::test]
async fn calls_run_in_parallel_on_different_workers() {
    let sandbox = Sandbox::adapter(SHOWCASE, 4).start().await;
    let mut calls = tokio::task::JoinSet::new();
    let began = tokio::time::Instant::now();
    for _ in 0..4 {
        let mut client = sandbox.client().await;
        calls.spawn(async move {
            let request = tool_request("sleep_for", &json!({"seconds": 1.0}));
            let response = client.execute_tool(request).await.unwrap();
            response.metadata().get(headers::WORKER_ID).unwrap().to_str().unwrap().to_owned()
        });
    }
    let workers: std::collections::BTreeSet<_> = calls.join_all().await.into_iter().collect();
    let took = began.elapsed();
    assert_eq!(workers.len(), 4, "{workers:?}");
    assert!(took < Duration::from_secs(3), "four calls of one second each took {took:?}");
}

#[tokio::test]
async fn health_and_reflection_services_respond() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let channel =
        tonic::transport::Endpoint::from_shared(sandbox.url().to_owned()).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "snakepit.bridge.BridgeService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving);
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let mut responses =
        reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let response = responses.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = response else { panic!("{response:?}") };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"snakepit.bridge.BridgeService".to_owned()), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");
}

#[tokio::test]
async fn telemetry_reports_calls() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client = sandbox.client().await;
    let (controls, received) = tokio::sync::mpsc::channel(4);
    let filter = pb::TelemetryEventFilter { allow: vec!["*.stop".into()], deny: Vec::new() };
    let control = pb::TelemetryControl { control: Some(pb::telemetry_control::Control::Filter(filter)) };
    controls.send(control).await.unwrap();
    let received = tokio_stream::wrappers::ReceiverStream::new(received);
    let mut events = client.clone().stream_telemetry(received).await.unwrap().into_inner();
    // The filter arrives on a separate stream, so the first events may be unfiltered.
    let call = tokio::spawn(async move {
        loop {
            execute(&mut client, "add", &json!({"a": 1, "b": 2})).await.unwrap();
        }
    });
    let event = loop {
        let event = events.message().await.unwrap().unwrap();
        if event.event_parts == ["tool", "execution", "stop"] {
            break event;
        }
    };
    call.abort();
    assert_eq!(event.metadata["tool"], "add");
    assert!(event.metadata["worker_id"].starts_with("default-"));
    assert!(event.measurements.contains_key("duration_ns"));
}
