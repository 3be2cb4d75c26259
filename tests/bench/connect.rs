//! Connections to a server's Unix socket, with the message limits of the protocol.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use snakepit_proto::{MAX_MESSAGE_BYTES, mux::Multiplexer, pb};
use snakepit_tests::Client;
use tokio::{net::UnixStream, task::JoinSet};
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

/// Opens a connection.
pub(crate) async fn connect(socket: &Path) -> Client {
    let socket: PathBuf = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    Client::new(channel.expect("the server accepts"))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Opens a connection with one `Multiplex` stream, which closes when the task set is dropped.
pub(crate) async fn multiplex(socket: &Path) -> (Multiplexer, JoinSet<()>) {
    let (multiplexer, incoming) = Multiplexer::open(connect(socket).await).await.expect("the stream opens");
    let mut tasks = JoinSet::new();
    tasks.spawn(incoming);
    (multiplexer, tasks)
}

/// Encodes an integer argument or value of a multiplexed call.
pub(crate) fn integer(number: u64) -> pb::CallValue {
    let json = number.to_string().into();
    pb::CallValue { r#type: pb::CallValueType::Integer.into(), json, ..pb::CallValue::default() }
}

/// Creates a multiplexed call with integer arguments.
pub(crate) fn call_of<const N: usize>(tool: &str, arguments: [(&str, u64); N]) -> pb::CallStart {
    let arguments = arguments
        .map(|(name, number)| pb::CallArgument { name: name.to_owned(), value: Some(integer(number)) });
    pb::CallStart { tool_name: tool.to_owned(), arguments: arguments.into(), ..pb::CallStart::default() }
}
