//! Accepts connections on TCP and Unix sockets. The loop survives a shortage of file descriptors.

use std::{io, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connection,
    connections::{Admission, Connections, Peer, TcpPeer},
    services::Services,
};
use crate::panics::completes_without_panic;

/// The pause after a failure that an immediate retry would repeat, such as a shortage of descriptors.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The time after the stop in which clients must close their connections.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum number of rejected connections of a listener that receive an answer at the same time.
const MAX_REJECTIONS: usize = 16;
/// TCP keepalive, which detects peers whose machine died: the idle time before the first probe, the time between probes, and
/// their number.
const TCP_KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(3), 3);

/// A listening socket.
pub(super) trait Accept: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for a connection. Cancel safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;

    /// Identifies the other end.
    fn peer(&self, io: &Self::Io) -> Peer;
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        let (idle, interval, probes) = TCP_KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
        // Failures do not matter: a connection works without these options, and HTTP/2 has its own keepalive.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        Ok(stream)
    }

    fn peer(&self, io: &TcpStream) -> Peer {
        match io.peer_addr() {
            Ok(peer) => Peer::Tcp(TcpPeer { peer, local: io.local_addr().ok() }),
            Err(_) => Peer::Unknown,
        }
    }
}

impl Accept for UnixListener {
    type Io = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }

    fn peer(&self, io: &UnixStream) -> Peer {
        let Ok(cred) = io.peer_cred() else { return Peer::Unknown };
        Peer::Process { pid: cred.pid().and_then(|pid| u32::try_from(pid).ok()), uid: cred.uid() }
    }
}

/// Serves the services on all connections until the stop. Then waits briefly for clients to close their connections, and closes the
/// rest.
pub(super) async fn serve<L: Accept>(
    listener: L,
    services: Services,
    connections: Arc<Connections>,
    stop: CancellationToken,
) {
    let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
    let mut acceptor = Acceptor {
        listener,
        services,
        connections,
        stop,
        tasks: tasks.clone(),
        cut: cut.clone(),
        is_failing: false,
        is_rejecting: false,
        rejections: Arc::new(Semaphore::new(MAX_REJECTIONS)),
    };
    while !completes_without_panic("the accept loop", acceptor.run()).await {}
    drop(acceptor);
    tasks.close();
    if tokio::time::timeout(CLOSE_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::debug!("cutting connections that did not close in time");
        cut.cancel();
        tasks.wait().await;
    }
}

/// The loop that accepts connections.
struct Acceptor<L> {
    listener: L,
    services: Services,
    connections: Arc<Connections>,
    stop: CancellationToken,
    tasks: TaskTracker,
    cut: CancellationToken,
    /// Whether the last attempt failed. Only the first failure in a row is logged.
    is_failing: bool,
    /// Whether the last connection was rejected. Only the first rejection in a row is logged.
    is_rejecting: bool,
    /// Bounds the rejected connections that still receive their answer.
    rejections: Arc<Semaphore>,
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
                    self.is_failing = false;
                    self.identify_processes().await;
                    self.admit(io);
                    // Lets the tasks of evicted connections close them.
                    tokio::task::yield_now().await;
                }
                Err(error) if is_caused_by_peer(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.is_failing, true) {
                        tracing::warn!(%error, "failed to accept a connection; trying again every {RETRY_PAUSE:?}");
                    }
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(RETRY_PAUSE) => {}
                    }
                }
            }
        }
    }

    /// At the limit, looks up which open connections belong to workers. `admit` would block the runtime with these lookups.
    async fn identify_processes(&self) {
        let unidentified = self.connections.unidentified_at_limit();
        if !unidentified.is_empty() {
            let identify = move || {
                for connection in unidentified {
                    let _ = connection.find_launch();
                }
            };
            // If the task fails, `admit` looks them up.
            let _ = tokio::task::spawn_blocking(identify).await;
        }
    }

    fn admit(&mut self, io: L::Io) {
        match self.connections.admit(self.listener.peer(&io)) {
            Admission::Admitted(permit) => {
                self.is_rejecting = false;
                let (stop, cut) = (self.stop.child_token(), self.cut.child_token());
                self.tasks.spawn(connection::serve(io, self.services.clone(), permit, stop, cut));
            }
            Admission::Rejected { limit } => {
                if !std::mem::replace(&mut self.is_rejecting, true) {
                    tracing::warn!(limit, "all connections are in use; rejecting more");
                }
                // Above this limit, the host closes the connection without an answer.
                if let Ok(permit) = Arc::clone(&self.rejections).try_acquire_owned() {
                    let (cut, connections) = (self.cut.child_token(), Arc::clone(&self.connections));
                    self.tasks.spawn(async move {
                        let reject = connection::reject(io, limit, &connections.warnings);
                        cut.run_until_cancelled(reject).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// Whether only this connection failed. The next attempt may succeed.
fn is_caused_by_peer(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}
