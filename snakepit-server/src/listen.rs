//! Binding addresses and serving the routes on them until told to stop.

mod connection;
mod launch;

use std::{net::SocketAddr, path::Path, time::Duration};

use futures_util::StreamExt;
use snakepit_proto::flow::{CONNECTION_WINDOW, FRAME, STREAM_WINDOW};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tower::layer::util::{Identity, Stack};

pub(crate) use launch::serve_launch;

use crate::{Error, grpc::DeadlineLayer};

/// How long connections may take to close after the stop, before they are cut.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Binds a TCP address. A name is looked up, and all it stands for must be loopback unless remote addresses are allowed;
/// the first that can be bound is taken.
pub(crate) async fn bind_tcp(address: &str, allow_remote: bool) -> Result<TcpListener, Error> {
    let failed = |error: std::io::Error| failed(address.to_owned(), &error);
    let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(failed)?.collect();
    if !allow_remote && let Some(remote) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        let remote = remote.to_string();
        let address = if remote == address { remote } else { format!("{address} ({remote})") };
        return Err(Error::NotLoopback { address });
    }
    // The command line dials 127.0.0.1 by default, so that is what `localhost` should be where it is both.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    TcpListener::bind(&*addresses).await.map_err(failed)
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
    let cut = CancellationToken::new();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let incoming = incoming.map(connection::that_ends_with(cut.clone()));
    let graceful = stop.clone().cancelled_owned();
    let serving = builder().add_routes(routes).serve_with_incoming_shutdown(incoming, graceful);
    tasks.spawn(until_closed(serving, stop, cut));
}

pub(crate) fn serve_unix(
    tasks: &TaskTracker,
    routes: Routes,
    listener: UnixListener,
    stop: CancellationToken,
) {
    let cut = CancellationToken::new();
    let incoming = UnixListenerStream::new(listener).map(connection::that_ends_with(cut.clone()));
    let graceful = stop.clone().cancelled_owned();
    let serving = builder().add_routes(routes).serve_with_incoming_shutdown(incoming, graceful);
    tasks.spawn(until_closed(serving, stop, cut));
}

fn builder() -> Server<Stack<DeadlineLayer, Identity>> {
    Server::builder()
        .layer(DeadlineLayer)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        // Calls share streams, but watches do not; what a connection holds is bounded by its window. Whoever asks for more
        // streams waits for one to end.
        .max_concurrent_streams(2048)
}

/// Serves until the stop, a little longer for clients that are slow to hang up, and then cuts their connections: each
/// runs as a task of its own that would outlive this one.
async fn until_closed(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let impatience = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSE_WITHIN).await;
        tracing::debug!("cutting connections that did not close in time");
        cut.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::error!(%error, "failed to serve");
        },
        () = impatience => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_resolved_and_everything_they_stand_for_is_checked() {
        let listener = bind_tcp("localhost:0", false).await.unwrap();
        assert!(local_address(&listener).unwrap().ip().is_loopback());
        let error = bind_tcp("0.0.0.0:0", false).await.unwrap_err();
        assert!(matches!(&error, Error::NotLoopback { address } if address == "0.0.0.0:0"), "{error}");
        bind_tcp("0.0.0.0:0", true).await.unwrap();
        let error = bind_tcp("no-such-host.invalid:0", false).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot listen on no-such-host.invalid:0: "), "{error}");
    }
}
