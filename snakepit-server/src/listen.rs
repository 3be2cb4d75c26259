//! Binding addresses and serving the routes on them until told to stop.

use std::{net::SocketAddr, path::Path, time::Duration};

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tower::layer::util::{Identity, Stack};

use crate::{Error, grpc::ArrivalLayer};

/// Window of one stream, in bytes. Large payloads would otherwise wait for a window update every 64 KiB.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Window of one connection, in bytes: four streams at full speed.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// How long connections may take to close after the stop, before they are dropped.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

pub(crate) async fn bind_tcp(address: SocketAddr, allow_remote: bool) -> Result<TcpListener, Error> {
    if !address.ip().is_loopback() && !allow_remote {
        return Err(Error::NotLoopback { address });
    }
    TcpListener::bind(address).await.map_err(|e| failed(address.to_string(), &e))
}

/// Binds a Unix socket. Its directory is private to this user, so its own mode does not matter.
pub(crate) fn bind_unix(path: &Path) -> Result<UnixListener, Error> {
    UnixListener::bind(path).map_err(|e| failed(format!("unix:{}", path.display()), &e))
}

pub(crate) fn local_address(listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|e| failed("a TCP socket".to_owned(), &e))
}

fn failed(address: String, error: &std::io::Error) -> Error {
    Error::Listen { address, problem: error.to_string() }
}

pub(crate) fn serve_tcp(tasks: &TaskTracker, routes: Routes, listener: TcpListener, stop: CancellationToken) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let graceful = stop.clone().cancelled_owned();
    let serving = builder().add_routes(routes).serve_with_incoming_shutdown(incoming, graceful);
    tasks.spawn(until_closed(serving, stop));
}

pub(crate) fn serve_unix(
    tasks: &TaskTracker,
    routes: Routes,
    listener: UnixListener,
    stop: CancellationToken,
) {
    let incoming = UnixListenerStream::new(listener);
    let graceful = stop.clone().cancelled_owned();
    let serving = builder().add_routes(routes).serve_with_incoming_shutdown(incoming, graceful);
    tasks.spawn(until_closed(serving, stop));
}

fn builder() -> Server<Stack<ArrivalLayer, Identity>> {
    Server::builder()
        .layer(ArrivalLayer)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Serves until the stop, and a little longer for clients that are slow to hang up.
async fn until_closed(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    stop: CancellationToken,
) {
    let give_up = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSE_WITHIN).await;
    };
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::error!(%error, "failed to serve");
        },
        () = give_up => tracing::debug!("dropped connections that did not close in time"),
    }
}
