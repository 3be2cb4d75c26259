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
    connections::{Admission, Connections},
};

/// The pause after a failure that the next attempt would only repeat, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to close after the stop, before they are cut.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// TCP keepalive, for a peer whose machine died: idle time before the first probe, then the time between probes.
const TCP_KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(3), 3);

/// A listening socket.
pub(super) trait Accept: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;

    /// The process at the other end, where the kernel vouches for it.
    fn peer(_: &Self::Io) -> Option<u32> {
        None
    }
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        let (idle, interval, probes) = TCP_KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
        // A connection works without either option, and HTTP/2 has a keepalive of its own.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        Ok(stream)
    }
}

impl Accept for UnixListener {
    type Io = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }

    fn peer(io: &UnixStream) -> Option<u32> {
        u32::try_from(io.peer_cred().ok()?.pid()?).ok()
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
    // Whether the last attempt failed, and whether the last connection was refused: each is logged once.
    let (mut failing, mut refusing) = (false, false);
    let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(io) => {
                failing = false;
                match connections.admit(L::peer(&io)) {
                    Admission::Admitted(slot) => {
                        refusing = false;
                        let (routes, stop, cut) = (routes.clone(), stop.child_token(), cut.child_token());
                        tasks.spawn(connection::serve(io, routes, slot, stop, cut));
                    }
                    Admission::Refused { limit } => {
                        if !std::mem::replace(&mut refusing, true) {
                            tracing::warn!(limit, "too many connections with open requests; refusing more");
                        }
                    }
                }
                // Idle connections that make room for others close in tasks of their own.
                tokio::task::yield_now().await;
            }
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "failed to accept a connection; trying again every {PAUSE:?}");
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(CLOSE_WITHIN, tasks.wait()).await.is_err() {
        tracing::debug!("cutting connections that did not close in time");
        cut.cancel();
        tasks.wait().await;
    }
}

/// Whether the connection failed before it was accepted, which says nothing of the next one.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}
