//! InitializeSession as a route of its own. Its answer describes all tools, in up to some mebibytes, and workers of the original
//! ask for it before each call. It is encoded once, and sent to all until a tool changes.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

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

const PATH: &str = "/snakepit.bridge.BridgeService/InitializeSession";

/// The answer to a session that was opened.
pub(super) fn answer(registry: &Registry) -> pb::InitializeSessionResponse {
    let tools = registry.tools().into_iter();
    pb::InitializeSessionResponse {
        success: true,
        available_tools: tools.map(|(spec, _)| (spec.name.clone(), spec_to_wire(spec))).collect(),
        ..pb::InitializeSessionResponse::default()
    }
}

/// The answer as it was encoded last, and the registry's generation then.
#[derive(Debug, Default)]
pub(crate) struct EncodedAnswer(Mutex<Option<(u64, Bytes)>>);

impl EncodedAnswer {
    /// Encodes it if a tool changed. One request does so while others wait for it.
    fn of(&self, registry: &Registry) -> Bytes {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Read first: what changes from here on shows the next time.
        let generation = registry.generation();
        match &*last {
            Some((of, encoded)) if *of == generation => encoded.clone(),
            _ => {
                let encoded = Bytes::from(answer(registry).encode_to_vec());
                *last = Some((generation, encoded.clone()));
                encoded
            }
        }
    }
}

/// The bridge service, with this route before all others.
#[derive(Debug, Clone)]
pub(super) struct BridgeRoutes {
    bridge: Arc<Bridge>,
    others: BridgeServiceServer<Bridge>,
}

impl BridgeRoutes {
    pub(super) fn new(bridge: Bridge) -> Self {
        let bridge = Arc::new(bridge);
        let others = BridgeServiceServer::from_arc(Arc::clone(&bridge))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { bridge, others }
    }
}

impl NamedService for BridgeRoutes {
    const NAME: &'static str = BridgeServiceServer::<Bridge>::NAME;
}

impl Service<http::Request<Body>> for BridgeRoutes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    /// Always ready, as the generated service is.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != PATH {
            return self.others.call(request);
        }
        let opening = Opening(Arc::clone(&self.bridge));
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default())
                .apply_max_message_size_config(Some(MAX_MESSAGE_BYTES), Some(MAX_MESSAGE_BYTES));
            Ok(grpc.unary(opening, request).await)
        })
    }
}

struct Opening(Arc<Bridge>);

impl UnaryService<pb::InitializeSessionRequest> for Opening {
    type Response = Encoded;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Encoded>, Status>> + Send>>;

    fn call(&mut self, request: Request<pb::InitializeSessionRequest>) -> Self::Future {
        let bridge = Arc::clone(&self.0);
        Box::pin(async move {
            bridge.open(request.into_inner()).await?;
            Ok(Response::new(Encoded(bridge.host().opened.of(&bridge.host().registry))))
        })
    }
}

/// A message that is encoded already.
#[derive(Debug, Default)]
struct Encoded(Bytes);

impl Message for Encoded {
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

    #[test]
    fn the_answer_is_encoded_anew_only_when_a_tool_changed() {
        let (registry, encoded) = (Registry::new(), EncodedAnswer::default());
        let tool = |name| FnTool::typed(name, |_: Value| async { Ok::<_, String>(()) });
        registry.register_host_tool(tool("one")).unwrap();
        let first = encoded.of(&registry);
        assert_eq!(pb::InitializeSessionResponse::decode(first.clone()).unwrap(), answer(&registry));
        assert_eq!(encoded.of(&registry).as_ptr(), first.as_ptr(), "the same buffer");
        registry.register_host_tool(tool("two")).unwrap();
        let second = pb::InitializeSessionResponse::decode(encoded.of(&registry)).unwrap();
        assert_eq!(second.available_tools.into_keys().collect::<Vec<_>>(), ["one", "two"]);
    }
}
