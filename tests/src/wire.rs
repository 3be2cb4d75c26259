//! Plain gRPC calls with the generated client.

use std::{collections::BTreeMap, time::Duration};

use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use snakepit_proto::{pb, value};
use tokio::net::TcpStream;
use tonic::{Request, Status, transport::Channel};
use tower::service_fn;

/// The generated client of the bridge service.
pub type Client = pb::bridge_service_client::BridgeServiceClient<Channel>;

/// Encodes arguments in the form of the protocol.
#[must_use]
pub fn arguments(json: &Value) -> BTreeMap<String, pb::Any> {
    let object = json.as_object().unwrap();
    object.iter().map(|(name, value)| (name.clone(), any(value))).collect()
}

fn any(json: &Value) -> pb::Any {
    let text = json.to_string();
    let type_name = value::infer_type(text.as_bytes()).unwrap().into();
    value::encode(value::TypedValue { type_name, json: text.into(), binary: None }).0
}

/// Creates a request that calls a tool without a session.
#[must_use]
pub fn tool_request(tool: &str, args: &Value) -> pb::ExecuteToolRequest {
    pb::ExecuteToolRequest { tool_name: tool.to_owned(), parameters: arguments(args), ..Default::default() }
}

/// Returns the result of a successful call as JSON. Panics if the tool failed.
#[must_use]
pub fn result_of(response: pb::ExecuteToolResponse) -> Value {
    assert!(response.success, "the tool failed: {}", response.error_message);
    let typed = value::decode(response.result.unwrap(), None).unwrap();
    serde_json::from_slice(&typed.json).unwrap()
}

/// Calls a tool with a timeout that only the server enforces. tonic's channel has a timer too, and on a busy machine that
/// timer can end the call before the server's response arrives.
pub async fn execute_within(
    url: &str,
    timeout: Duration,
    tool: &str,
    args: &Value,
) -> Result<pb::ExecuteToolResponse, Status> {
    let stream = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    let connection = tokio::spawn(connection);
    let service = service_fn(move |request| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    });
    let mut client =
        pb::bridge_service_client::BridgeServiceClient::with_origin(service, url.parse().unwrap());
    let mut request = Request::new(tool_request(tool, args));
    request.set_timeout(timeout);
    let outcome = client.execute_tool(request).await;
    connection.abort();
    outcome.map(tonic::Response::into_inner)
}

/// Calls a tool and returns its result as JSON.
pub async fn execute(client: &mut Client, tool: &str, args: &Value) -> Result<Value, Status> {
    Ok(result_of(client.execute_tool(tool_request(tool, args)).await?.into_inner()))
}
