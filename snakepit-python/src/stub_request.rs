//! The requests of [stubs](../python/snakepit_bridge/_stub.py), whose messages Python code has encoded with its own protobuf classes.

use bytes::Bytes;
use tonic::{Status, codegen::http::uri::PathAndQuery};

use crate::host::{RequestKind, RpcRequest};

/// The service of the host.
const SERVICE: &str = "snakepit.bridge.BridgeService";

/// Creates a request.
///
/// # Errors
/// A name that is not that of an RPC is [`Code::Unimplemented`](tonic::Code::Unimplemented).
pub(crate) fn request(rpc: &str, message: &[u8]) -> Result<RpcRequest, Status> {
    let path = rpc
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then(|| PathAndQuery::try_from(format!("/{SERVICE}/{rpc}")).ok())
        .flatten();
    let path = path.ok_or_else(|| Status::unimplemented(format!("`{rpc}` is not an RPC of the host")))?;
    Ok(RpcRequest::encoded(RequestKind::Write, path, Bytes::copy_from_slice(message)))
}
