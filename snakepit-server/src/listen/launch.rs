//! The listener of one launch: for a worker that cannot present a token, and for no other process.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use snakepit_worker::process::Launch;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::{
    EdgeLimits,
    accept::{self, Accept},
};

/// How many connections one worker may have.
const CONNECTIONS: usize = 64;

/// Serves the worker of a launch until that has ended. Connections of other processes are closed unheard.
pub(crate) fn serve_launch(
    tasks: &TaskTracker,
    routes: Routes,
    listener: TcpListener,
    limits: &EdgeLimits,
    launch: Arc<Launch>,
) {
    let ended = launch.end();
    let door = Door { listener, launch, has_warned: AtomicBool::new(false) };
    tasks.spawn(accept::serve(door, routes.prepare(), limits.connections(CONNECTIONS), ended));
}

/// Accepts the connections of the launch's own processes.
struct Door {
    listener: TcpListener,
    launch: Arc<Launch>,
    has_warned: AtomicBool,
}

impl Accept for Door {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        loop {
            let socket = Accept::accept(&self.listener).await?;
            // It may have left already.
            let Ok(peer) = socket.peer_addr() else { continue };
            if is_of(&self.launch, &socket, peer).await {
                return Ok(socket);
            }
            // Once, for a stranger may try as often as it likes.
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(worker = %self.launch.id(), %peer, "closed a connection of a process that is not this worker's");
            }
        }
    }
}

async fn is_of(launch: &Launch, socket: &TcpStream, peer: SocketAddr) -> bool {
    match socket.local_addr() {
        Ok(local) => launch.owns(peer, local).await,
        Err(_) => false,
    }
}
