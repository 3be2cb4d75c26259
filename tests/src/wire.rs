//! Talking gRPC as any client would: the generated stubs, plain messages.

use std::{collections::BTreeMap, time::Duration};

use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use snakepit_proto::{pb, value};
use tokio::net::TcpStream;
use tonic::{Request, Status, transport::Channel};
use tower::service_fn;

/// A client of the bridge service.
pub type Client = pb::bridge_service_client::BridgeServiceClient<Channel>;

/// Arguments as a client of this protocol sends them.
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

/// A request to call a tool without a session.
#[must_use]
pub fn tool_request(tool: &str, args: &Value) -> pb::ExecuteToolRequest {
    pb::ExecuteToolRequest { tool_name: tool.to_owned(), parameters: arguments(args), ..Default::default() }
}

/// The result of a successful answer, as JSON. Panics when the tool failed.
#[must_use]
pub fn result_of(response: pb::ExecuteToolResponse) -> Value {
    assert!(response.success, "the tool failed: {}", response.error_message);
    let typed = value::decode(response.result.unwrap(), None).unwrap();
    serde_json::from_slice(&typed.json).unwrap()
}

/// Calls a tool with a timeout on a connection that keeps no time itself, so that whatever ends the call is the server's
/// word. tonic's own channel gives up at the same moment, and on a busy machine before the server's answer arrives.
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

/// Calls a tool and returns its result.
pub async fn execute(client: &mut Client, tool: &str, args: &Value) -> Result<Value, Status> {
    Ok(result_of(client.execute_tool(tool_request(tool, args)).await?.into_inner()))
}
