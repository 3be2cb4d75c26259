//! The TCP listener of one launch. It serves a worker whose runtime cannot present a token, and no other process.

use std::{io, net::SocketAddr, sync::Arc};

use snakepit_worker::process::Launch;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::TaskTracker;

use super::{
    ListenLimits,
    accept::{self, Accept},
    connections::Peer,
    services::Services,
};

/// The maximum number of connections per worker.
const MAX_CONNECTIONS: usize = 64;
/// The maximum number of concurrent lookups of a connection's owner. Further connections wait to be accepted.
const MAX_CHECKS: usize = 32;

/// Serves the worker until its launch ends. Closes connections of other processes before it reads from them.
pub(crate) fn serve_launch(
    tasks: &TaskTracker,
    services: Services,
    listener: TcpListener,
    limits: &ListenLimits,
    launch: Arc<Launch>,
) {
    let ended = launch.ended_token();
    let owner = Arc::clone(&launch);
    let owns = move |peer, local| {
        let launch = Arc::clone(&owner);
        async move { launch.owns(peer, local).await }
    };
    let listener = LaunchListener { listener, launch, owns, checks: JoinSet::new(), has_warned: false };
    tasks.spawn(accept::serve(
        listener,
        services,
        limits.connections(MAX_CONNECTIONS, &limits.unread_local),
        ended,
    ));
}

/// Accepts only connections of the launch's own processes. Each check searches all processes. The checks run concurrently,
/// because foreign connections could otherwise delay the worker.
struct LaunchListener<F> {
    listener: TcpListener,
    launch: Arc<Launch>,
    /// Whether a process of the launch owns the other end of a connection, given its peer address and its local address.
    owns: F,
    /// The running checks. Each returns the connection if the launch owns it, otherwise its peer address.
    checks: JoinSet<Result<TcpStream, SocketAddr>>,
    has_warned: bool,
}

impl<F, C> Accept for LaunchListener<F>
where
    F: Fn(SocketAddr, SocketAddr) -> C + Send + 'static,
    C: Future<Output = bool> + Send + 'static,
{
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        loop {
            tokio::select! {
                Some(checked) = self.checks.join_next() => match checked {
                    Ok(Ok(socket)) => return Ok(socket),
                    Ok(Err(foreign)) => self.warn(foreign),
                    Err(error) => tracing::error!(%error, "failed to look up the process behind a connection"),
                },
                accepted = Accept::accept(&mut self.listener), if self.checks.len() < MAX_CHECKS => {
                    let socket = accepted?;
                    // The peer may have disconnected already.
                    let (Ok(peer), Ok(local)) = (socket.peer_addr(), socket.local_addr()) else { continue };
                    let is_owned = (self.owns)(peer, local);
                    self.checks.spawn(async move { if is_owned.await { Ok(socket) } else { Err(peer) } });
                }
            }
        }
    }

    fn peer(&self, _: &TcpStream) -> Peer {
        Peer::Worker(Arc::clone(&self.launch))
    }
}

impl<F> LaunchListener<F> {
    /// Logs the first foreign connection only, because a process may connect any number of times.
    fn warn(&mut self, peer: SocketAddr) {
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(worker = %self.launch.id(), %peer, "closed a connection of a process that does not belong to this worker");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use snakepit_worker::{WorkerId, process::Launches};

    use super::*;

    #[tokio::test]
    async fn slow_checks_of_foreign_connections_do_not_delay_the_worker() {
        let launches = Launches::new();
        let _launch_guard = launches.add_process(&WorkerId::new("w"), std::process::id());
        let launch = launches.find_by_pid(std::process::id()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let foreign =
            [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let worker = TcpStream::connect(address).await.unwrap();
        let own = worker.local_addr().unwrap();
        let owns = move |peer, _| async move {
            if peer != own {
                std::future::pending::<()>().await;
            }
            true
        };
        let mut listener =
            LaunchListener { listener, launch, owns, checks: JoinSet::new(), has_warned: false };
        let accepted = tokio::time::timeout(Duration::from_secs(10), Accept::accept(&mut listener)).await;
        let accepted = accepted.expect("the worker is not delayed").unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), own);
        assert!(matches!(listener.peer(&accepted), Peer::Worker(_)));
        drop(foreign);
    }
}
