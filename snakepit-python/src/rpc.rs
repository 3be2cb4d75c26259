//! The RPCs of the host. All requests share one type, because each copy of the code that sends a request is part of the memory of
//! every worker.

use std::{fmt, sync::Arc};

use bytes::{Buf, BufMut, Bytes};
use snakepit_proto::{MAX_MESSAGE_BYTES, Message, pb};
use tonic::{
    Request, Response, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

/// A request of a unary RPC.
pub(crate) trait UnaryRpc: Message + 'static {
    /// The path of the RPC.
    const PATH: &'static str;
    type Answer: Message + Default + 'static;
}

macro_rules! rpcs {
    ($($rpc:literal: $request:ident -> $answer:ident;)*) => {
        $(impl UnaryRpc for pb::$request {
            const PATH: &'static str = concat!("/snakepit.bridge.BridgeService/", $rpc);
            type Answer = pb::$answer;
        })*

        /// Names, requests and answers, for comparison with the protocol.
        #[cfg(test)]
        const RPCS: &[[&str; 3]] = &[$([$rpc, stringify!($request), stringify!($answer)]),*];
    };
}

rpcs! {
    "Ping": PingRequest -> PingResponse;
    "RegisterTools": RegisterToolsRequest -> RegisterToolsResponse;
    "InitializeSession": InitializeSessionRequest -> InitializeSessionResponse;
    "CleanupSession": CleanupSessionRequest -> CleanupSessionResponse;
    "GetSession": GetSessionRequest -> GetSessionResponse;
    "RegisterVariable": RegisterVariableRequest -> RegisterVariableResponse;
    "GetVariable": GetVariableRequest -> GetVariableResponse;
    "SetVariable": SetVariableRequest -> SetVariableResponse;
    "GetVariables": BatchGetVariablesRequest -> BatchGetVariablesResponse;
    "SetVariables": BatchSetVariablesRequest -> BatchSetVariablesResponse;
    "ListVariables": ListVariablesRequest -> ListVariablesResponse;
    "DeleteVariable": DeleteVariableRequest -> DeleteVariableResponse;
    "GetVariableHistory": GetVariableHistoryRequest -> GetVariableHistoryResponse;
    "RollbackVariable": RollbackVariableRequest -> RollbackVariableResponse;
    "PutProgram": PutProgramRequest -> PutProgramResponse;
    "GetProgram": GetProgramRequest -> GetProgramResponse;
    "ListPrograms": ListProgramsRequest -> ListProgramsResponse;
    "DeleteProgram": DeleteProgramRequest -> DeleteProgramResponse;
    "ExecuteTool": ExecuteToolRequest -> ExecuteToolResponse;
    "ExecuteElixirTool": ExecuteElixirToolRequest -> ExecuteElixirToolResponse;
    "GetExposedElixirTools": GetExposedElixirToolsRequest -> GetExposedElixirToolsResponse;
    "ListTools": ListToolsRequest -> ListToolsResponse;
    "ListWorkers": ListWorkersRequest -> ListWorkersResponse;
    "GetPoolStatus": GetPoolStatusRequest -> GetPoolStatusResponse;
    "RestartWorkers": RestartWorkersRequest -> RestartWorkersResponse;
}

/// The paths of the RPCs whose answers are streams.
pub(crate) const EXECUTE_STREAMING_TOOL: &str = "/snakepit.bridge.BridgeService/ExecuteStreamingTool";
pub(crate) const EXECUTE_STREAMING_HOST_TOOL: &str =
    "/snakepit.bridge.BridgeService/ExecuteStreamingElixirTool";
pub(crate) const WATCH_VARIABLES: &str = "/snakepit.bridge.BridgeService/WatchVariables";

/// A message of any type. Clones share it.
#[derive(Clone)]
pub(crate) struct AnyMessage(Arc<dyn EncodableMessage>);

/// A message that the transport can encode.
trait EncodableMessage: Send + Sync {
    fn size(&self) -> usize;

    fn write(&self, buffer: &mut EncodeBuf<'_>);
}

impl<M: Message> EncodableMessage for M {
    fn size(&self) -> usize {
        self.encoded_len()
    }

    fn write(&self, buffer: &mut EncodeBuf<'_>) {
        self.encode_raw(buffer);
    }
}

/// A message that Python code has encoded.
struct EncodedMessage(Bytes);

impl EncodableMessage for EncodedMessage {
    fn size(&self) -> usize {
        self.0.len()
    }

    fn write(&self, buffer: &mut EncodeBuf<'_>) {
        buffer.put_slice(&self.0);
    }
}

impl AnyMessage {
    pub(crate) fn new(message: impl Message + 'static) -> Self {
        Self(Arc::new(message))
    }

    pub(crate) fn encoded(bytes: Bytes) -> Self {
        Self(Arc::new(EncodedMessage(bytes)))
    }

    /// The encoded size, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.0.size()
    }
}

impl fmt::Debug for AnyMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyMessage").finish_non_exhaustive()
    }
}

/// Sends a unary request, and returns the encoded answer.
pub(crate) async fn unary(
    channel: Channel,
    path: PathAndQuery,
    request: Request<AnyMessage>,
) -> Result<Response<Bytes>, Status> {
    client(channel).await?.unary(request, path, AnyMessageCodec).await
}

/// Sends a request whose answer is a stream, and returns the stream of encoded messages.
pub(crate) async fn server_streaming(
    channel: Channel,
    path: PathAndQuery,
    request: Request<AnyMessage>,
) -> Result<Response<Streaming<Bytes>>, Status> {
    client(channel).await?.server_streaming(request, path, AnyMessageCodec).await
}

/// Decodes a message of an answer.
pub(crate) fn decode<A: Message + Default>(message: Bytes) -> Result<A, Status> {
    A::decode(message).map_err(|error| Status::internal(error.to_string()))
}

async fn client(channel: Channel) -> Result<Grpc<Channel>, Status> {
    let mut client = Grpc::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    match client.ready().await {
        Ok(()) => Ok(client),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

/// Encodes messages of any type, and passes answers through without decoding them.
#[derive(Debug, Clone, Copy)]
struct AnyMessageCodec;

impl Codec for AnyMessageCodec {
    type Encode = AnyMessage;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AnyMessageCodec {
    type Item = AnyMessage;
    type Error = Status;

    fn encode(&mut self, message: AnyMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.size());
        message.0.write(buffer);
        Ok(())
    }
}

impl Decoder for AnyMessageCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

#[cfg(test)]
mod tests {
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_rpcs_are_those_of_the_protocol() {
        let set = FileDescriptorSet::decode(snakepit_proto::FILE_DESCRIPTOR_SET).unwrap();
        let services = set.file.iter().flat_map(|file| &file.service);
        let rpcs: Vec<_> = services.flat_map(|service| &service.method).collect();
        for [name, request, answer] in RPCS {
            let rpc = rpcs.iter().find(|rpc| rpc.name() == *name).unwrap_or_else(|| panic!("{name}"));
            let types = [rpc.input_type(), rpc.output_type()];
            assert_eq!(types, [request, answer].map(|name| format!(".snakepit.bridge.{name}")));
            assert!(!rpc.client_streaming() && !rpc.server_streaming());
        }
        for path in [EXECUTE_STREAMING_TOOL, EXECUTE_STREAMING_HOST_TOOL, WATCH_VARIABLES] {
            let name = path.strip_prefix("/snakepit.bridge.BridgeService/").unwrap();
            assert!(rpcs.iter().any(|rpc| rpc.name() == name && rpc.server_streaming()), "{path}");
        }
    }
}
