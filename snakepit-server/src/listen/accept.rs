//! Accepting connections: the two kinds of sockets, and a loop that survives a lack of descriptors.

use std::{io, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use super::{
    connection,
    connections::{Admission, Connections, Peer},
};
use crate::restart::ends_well;

/// The pause after a failure that the next attempt would only repeat, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to close after the stop, before they are cut.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// TCP keepalive, for a peer whose machine died: idle time before the first probe, then the time between probes.
const TCP_KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(3), 3);

/// A listening socket.
pub(super) trait Accept: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for a connection. Cancel safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;

    /// What is known of the other end.
    fn peer(&self, io: &Self::Io) -> Peer;
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        let (idle, interval, probes) = TCP_KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
        // A connection works without either option, and HTTP/2 has a keepalive of its own.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        Ok(stream)
    }

    fn peer(&self, _: &TcpStream) -> Peer {
        Peer::Unknown
    }
}

impl Accept for UnixListener {
    type Io = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }

    fn peer(&self, io: &UnixStream) -> Peer {
        let pid = io.peer_cred().ok().and_then(|cred| u32::try_from(cred.pid()?).ok());
        pid.map_or(Peer::Unknown, Peer::Process)
    }
}

/// Serves the routes on all connections until the stop. Waits a little for clients that are slow to hang up, then cuts
/// their connections.
pub(super) async fn serve<L: Accept>(
    listener: L,
    routes: Routes,
    connections: Arc<Connections>,
    stop: CancellationToken,
) {
    let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
    let mut acceptor = Acceptor {
        listener,
        routes,
        connections,
        stop,
        tasks: tasks.clone(),
        cut: cut.clone(),
        failing: false,
        refusing: false,
    };
    while !ends_well("the accept loop", acceptor.run()).await {}
    drop(acceptor);
    tasks.close();
    if tokio::time::timeout(CLOSE_WITHIN, tasks.wait()).await.is_err() {
        tracing::debug!("cutting connections that did not close in time");
        cut.cancel();
        tasks.wait().await;
    }
}

/// The loop that accepts connections.
struct Acceptor<L> {
    listener: L,
    routes: Routes,
    connections: Arc<Connections>,
    stop: CancellationToken,
    tasks: TaskTracker,
    cut: CancellationToken,
    /// Whether the last attempt failed, and whether the last connection was refused: each is logged once.
    failing: bool,
    refusing: bool,
}

impl<L: Accept> Acceptor<L> {
    async fn run(&mut self) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok(io) => {
                    self.failing = false;
                    self.admit(io);
                    // Idle connections that make room for others close in tasks of their own.
                    tokio::task::yield_now().await;
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(%error, "failed to accept a connection; trying again every {PAUSE:?}");
                    }
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            }
        }
    }

    fn admit(&mut self, io: L::Io) {
        match self.connections.admit(self.listener.peer(&io)) {
            Admission::Admitted(slot) => {
                self.refusing = false;
                let (stop, cut) = (self.stop.child_token(), self.cut.child_token());
                self.tasks.spawn(connection::serve(io, self.routes.clone(), slot, stop, cut));
            }
            Admission::Refused { limit } => {
                if !std::mem::replace(&mut self.refusing, true) {
                    tracing::warn!(limit, "all connections are in use; refusing more");
                }
            }
        }
    }
}

/// Whether the connection failed before it was accepted, which says nothing of the next one.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}
