//! Talking gRPC as any client would: the generated stubs, plain messages.

use std::collections::BTreeMap;

use serde_json::Value;
use snakepit_proto::{pb, value};
use tonic::{Status, transport::Channel};

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

/// Calls a tool and returns its result.
pub async fn execute(client: &mut Client, tool: &str, args: &Value) -> Result<Value, Status> {
    Ok(result_of(client.execute_tool(tool_request(tool, args)).await?.into_inner()))
}
