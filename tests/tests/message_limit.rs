//! Arguments larger than the limit of a message are rejected on every path to a worker, and do not affect other calls.

use futures_util::FutureExt;
use serde_json::{Value, json};
use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    mux::{CallEnd, CallEvent, Multiplexer},
    pb,
};
use snakepit_server::{Client as Remote, Error, Payload, Snakepit, ToolError};
use snakepit_tests::{Client, SHOWCASE, Sandbox, python, tool_request};
use tokio::task::JoinSet;
use tonic::Code;

fn is_rejected(error: &Error) -> bool {
    matches!(error, Error::Tool(ToolError::InvalidArguments { .. }))
        && error.to_string().contains(&MAX_MESSAGE_BYTES.to_string())
}

fn too_large() -> Payload {
    Payload::bytes(vec![7; MAX_MESSAGE_BYTES + 1].into())
}

#[tokio::test]
async fn an_embedded_host_rejects_arguments_above_the_limit() {
    for multiplex in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let host = Snakepit::builder().adapter(SHOWCASE).python(python()).workers(1).multiplex(multiplex);
        let host = host.run_dir(dir.path()).start().await.unwrap();
        let error = host.call("echo").payload("data", too_large()).unary::<Value>().await.unwrap_err();
        assert!(is_rejected(&error), "{error}");
        assert_eq!(host.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap(), 3);
        assert_eq!(host.status().workers[0].restarts, 0);
        host.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn the_rust_client_rejects_arguments_above_the_limit() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let client = Remote::connect(sandbox.url()).await.unwrap();
    let error = client.call("echo").payload("data", too_large()).unary::<Value>().await.unwrap_err();
    assert!(is_rejected(&error), "{error}");
    assert_eq!(client.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap(), 3);
}

#[tokio::test]
async fn plain_rpcs_above_the_limit_are_rejected() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let mut client: Client = sandbox.client().await.max_encoding_message_size(usize::MAX);
    let mut request = tool_request("echo", &json!({}));
    request.binary_parameters.insert("data".to_owned(), vec![7; MAX_MESSAGE_BYTES].into());
    let status = client.execute_tool(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains(&MAX_MESSAGE_BYTES.to_string()), "{status}");
    let sum = client.execute_tool(tool_request("add", &json!({"a": 1, "b": 2}))).await.unwrap();
    assert!(sum.into_inner().success);
}

#[tokio::test]
async fn a_multiplexed_call_above_the_limit_is_rejected_alone() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let (multiplexer, incoming) = Multiplexer::open(sandbox.client().await).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(incoming.map(drop));
    let number = |json: &str| pb::CallValue {
        r#type: pb::CallValueType::Integer.into(),
        json: json.to_owned().into(),
        ..Default::default()
    };
    let buffer = pb::CallValue {
        r#type: pb::CallValueType::Bytes.into(),
        binary: Some(vec![7; MAX_MESSAGE_BYTES].into()),
        ..Default::default()
    };
    let call = |tool: &str, arguments: Vec<(&str, pb::CallValue)>| {
        let argument = |(name, value)| pb::CallArgument { name: String::from(name), value: Some(value) };
        let arguments = arguments.into_iter().map(argument).collect();
        pb::CallStart { tool_name: tool.to_owned(), arguments, ..Default::default() }
    };
    let large = call("echo", vec![("data", buffer)]);
    let mut large = multiplexer.start(large, 1);
    let mut small = multiplexer.start(call("add", vec![("a", number("1")), ("b", number("2"))]), 2);
    let CallEvent::End(CallEnd::Reply(rejected)) = large.event().await else { panic!("no reply") };
    let status = rejected.status.unwrap();
    assert_eq!(status.code, Code::InvalidArgument as i32, "{}", status.message);
    assert!(status.message.contains("the limit is"), "{}", status.message);
    let CallEvent::End(CallEnd::Reply(sum)) = small.event().await else { panic!("no reply") };
    assert!(sum.status.is_none() && sum.failure.is_none(), "{sum:?}");
}
