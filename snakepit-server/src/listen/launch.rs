//! The listener of one launch: for a worker that cannot present a token, and for no other process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use snakepit_worker::process::Launch;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use super::{builder, connection, until_closed};

/// The pause after a connection could not be accepted: the reason, such as a lack of descriptors, may last.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Serves the worker of a launch until that has ended. Connections of other processes are closed unheard.
pub(crate) fn serve_launch(tasks: &TaskTracker, routes: Routes, listener: TcpListener, launch: Arc<Launch>) {
    let (cut, ended) = (CancellationToken::new(), launch.end());
    let incoming = admitted(listener, launch).map(connection::that_ends_with(cut.clone()));
    let graceful = ended.clone().cancelled_owned();
    let serving = builder().add_routes(routes).serve_with_incoming_shutdown(incoming, graceful);
    tasks.spawn(until_closed(serving, ended, cut));
}

/// The connections of the launch's own processes.
fn admitted(
    listener: TcpListener,
    launch: Arc<Launch>,
) -> impl futures_util::Stream<Item = std::io::Result<TcpStream>> {
    stream::unfold((listener, launch, false), |(listener, launch, mut has_warned)| async move {
        loop {
            match listener.accept().await {
                Ok((socket, peer)) => {
                    if is_of(&launch, &socket, peer).await {
                        return Some((Ok(socket), (listener, launch, has_warned)));
                    }
                    // Once, for a stranger may try as often as it likes.
                    if !std::mem::replace(&mut has_warned, true) {
                        tracing::warn!(worker = %launch.id(), %peer, "closed a connection of a process that is not this worker's");
                    }
                }
                Err(error) => {
                    tracing::debug!(worker = %launch.id(), %error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    })
}

async fn is_of(launch: &Launch, socket: &TcpStream, peer: SocketAddr) -> bool {
    // Small messages must not wait for more.
    let _ = socket.set_nodelay(true);
    match socket.local_addr() {
        Ok(local) => launch.owns(peer, local).await,
        Err(_) => false,
    }
}
