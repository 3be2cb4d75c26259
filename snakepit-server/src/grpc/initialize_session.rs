//! The routes of the bridge service, with a separate one for `InitializeSession`. Its response describes all tools and can have
//! several MiB, and workers of the original Snakepit request it before each call. The host therefore encodes the response once
//! and reuses it until a tool changes.

use std::{pin::Pin, sync::Arc};

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, skip_field},
};
use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    pb::{self, bridge_service_server::BridgeServiceServer},
};
use snakepit_registry::Registry;
use snakepit_wire::spec_to_wire;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower::Service;

use super::bridge::Bridge;
use crate::{
    Operation,
    listen::{Connection, ServiceFuture, SharedService},
};

const PATH: &str = "/snakepit.bridge.BridgeService/InitializeSession";

/// The response to a successful `InitializeSession`. Without hidden host tools, because workers request it too.
pub(super) fn response(registry: &Registry) -> pb::InitializeSessionResponse {
    let tools = registry.exposed_tools().into_iter();
    pb::InitializeSessionResponse {
        available_tools: tools.map(|(spec, _)| (spec.name.clone(), spec_to_wire(spec))).collect(),
        ..without_tools()
    }
}

/// The response to a principal without permission to list the tools.
pub(super) fn without_tools() -> pb::InitializeSessionResponse {
    pb::InitializeSessionResponse { success: true, ..pb::InitializeSessionResponse::default() }
}

fn encoded_response(registry: &Registry) -> Bytes {
    response(registry).encode_to_vec().into()
}

/// The bridge service, with a special route for `InitializeSession`. Before the first request of a TCP connection, looks up
/// whether the peer is a process of a worker, if the host distinguishes workers.
#[derive(Debug, Clone)]
pub(super) struct BridgeRoutes {
    bridge: Arc<Bridge>,
    generated: BridgeServiceServer<Bridge>,
}

impl BridgeRoutes {
    pub(super) fn new(bridge: Bridge) -> Self {
        let bridge = Arc::new(bridge);
        let generated = BridgeServiceServer::from_arc(Arc::clone(&bridge))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { bridge, generated }
    }
}

impl NamedService for BridgeRoutes {
    const NAME: &'static str = BridgeServiceServer::<Bridge>::NAME;
}

impl SharedService for BridgeRoutes {
    fn respond(&self, request: http::Request<Body>) -> ServiceFuture {
        if self.bridge.host().distinguishes_workers()
            && let Some(connection) = request.extensions().get::<Arc<Connection>>()
            && connection.unidentified().is_some()
        {
            let (connection, routes) = (Arc::clone(connection), self.clone());
            return Box::pin(async move {
                connection.identify().await;
                routes.respond(request).await
            });
        }
        if request.uri().path() != PATH {
            return self.generated.clone().call(request);
        }
        let service = InitializeSession(Arc::clone(&self.bridge));
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default())
                .apply_max_message_size_config(Some(MAX_MESSAGE_BYTES), Some(MAX_MESSAGE_BYTES));
            Ok(grpc.unary(service, request).await)
        })
    }
}

struct InitializeSession(Arc<Bridge>);

impl UnaryService<pb::InitializeSessionRequest> for InitializeSession {
    type Response = EncodedMessage;
    type Future = Pin<Box<dyn Future<Output = Result<Response<EncodedMessage>, Status>> + Send>>;

    fn call(&mut self, request: Request<pb::InitializeSessionRequest>) -> Self::Future {
        let bridge = Arc::clone(&self.0);
        Box::pin(async move {
            bridge.may_write(&request)?;
            let may_list = bridge.authorize(request.extensions(), &Operation::ListTools).is_ok();
            bridge.open(request.into_inner()).await?;
            let host = bridge.host();
            if !may_list {
                return Ok(Response::new(EncodedMessage(without_tools().encode_to_vec().into())));
            }
            Ok(Response::new(EncodedMessage(host.initialize_response.get(&host.registry, encoded_response))))
        })
    }
}

/// A message that is already encoded.
#[derive(Debug, Default)]
struct EncodedMessage(Bytes);

impl Message for EncodedMessage {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buffer, context)
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use snakepit_registry::FnTool;

    use super::*;
    use crate::host::ResponseCache;

    #[test]
    fn the_response_is_encoded_again_only_after_a_tool_changed() {
        let (registry, cache) = (Registry::new(), ResponseCache::default());
        let tool = |name| FnTool::typed(name, |_: Value| async { Ok::<_, String>(()) });
        registry.register_host_tool(tool("one")).unwrap();
        let first = cache.get(&registry, encoded_response);
        assert_eq!(pb::InitializeSessionResponse::decode(first.clone()).unwrap(), response(&registry));
        assert_eq!(cache.get(&registry, encoded_response).as_ptr(), first.as_ptr(), "the same buffer");
        registry.register_host_tool(tool("two")).unwrap();
        let second = pb::InitializeSessionResponse::decode(cache.get(&registry, encoded_response)).unwrap();
        assert_eq!(second.available_tools.into_keys().collect::<Vec<_>>(), ["one", "two"]);
    }
}
