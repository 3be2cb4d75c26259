//! The requests of [stubs](../python/snakepit_bridge/_stub.py), whose messages Python code has encoded with its own protobuf classes.

use bytes::{Buf, BufMut, Bytes};
use snakepit_proto::MAX_MESSAGE_BYTES;
use tonic::{
    Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use crate::{
    caller::Caller,
    errors::HostError,
    host::{Host, RequestKind},
};

/// The service of the host.
const SERVICE: &str = "snakepit.bridge.BridgeService";

/// Sends a unary request. Returns the encoded answer.
///
/// # Errors
/// As [`Host::request`]. A name that is not that of an RPC is [`Code::Unimplemented`](tonic::Code::Unimplemented).
pub(crate) async fn send(
    host: &Host,
    caller: &Caller,
    rpc: &str,
    request: &[u8],
) -> Result<Bytes, HostError> {
    let path = rpc
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then(|| PathAndQuery::try_from(format!("/{SERVICE}/{rpc}")).ok())
        .flatten();
    let Some(path) = path else {
        return Err(HostError::from(Status::unimplemented(format!("`{rpc}` is not an RPC of the host"))));
    };
    unary(host, caller, RequestKind::Write, path, Bytes::copy_from_slice(request)).await
}

/// Sends a unary request of any service of the host. Returns the encoded answer.
///
/// # Errors
/// As [`Host::request`].
pub(crate) async fn unary(
    host: &Host,
    caller: &Caller,
    kind: RequestKind,
    path: PathAndQuery,
    request: Bytes,
) -> Result<Bytes, HostError> {
    let channel = host.channel()?;
    let send = |_, request| {
        let mut client = Grpc::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let path = path.clone();
        async move {
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            client.unary(request, path, BytesCodec).await
        }
    };
    host.request(caller, kind, request, send).await
}

/// Passes messages through unchanged.
#[derive(Debug, Clone, Copy)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}
