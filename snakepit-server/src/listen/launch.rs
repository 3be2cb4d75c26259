//! The listener of one launch: for a worker that cannot present a token, and for no other process.

use std::{io, net::SocketAddr, sync::Arc};

use snakepit_worker::process::Launch;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::{
    EdgeLimits,
    accept::{self, Accept},
    connections::Peer,
};

/// How many connections one worker may have.
const CONNECTIONS: usize = 64;
/// How many connections are checked at a time. More wait to be accepted.
const CHECKS: usize = 32;

/// Serves the worker of a launch until that has ended. Connections of other processes are closed unheard.
pub(crate) fn serve_launch(
    tasks: &TaskTracker,
    routes: Routes,
    listener: TcpListener,
    limits: &EdgeLimits,
    launch: Arc<Launch>,
) {
    let ended = launch.end();
    let owner = Arc::clone(&launch);
    let owns = move |peer, local| {
        let launch = Arc::clone(&owner);
        async move { launch.owns(peer, local).await }
    };
    let listener = LaunchListener { listener, launch, owns, checks: JoinSet::new(), has_warned: false };
    tasks.spawn(accept::serve(
        listener,
        routes.prepare(),
        limits.connections(CONNECTIONS, &limits.unread_locally),
        ended,
    ));
}

/// Accepts the connections of the launch's own processes. They are checked side by side, so that strangers, each of which costs a
/// search through all processes, do not hold up the worker.
struct LaunchListener<F> {
    listener: TcpListener,
    launch: Arc<Launch>,
    /// Whether a process of the launch is at the other end of a connection, by its two addresses: the peer's, then the local one.
    owns: F,
    /// Each gives the connection if it is the launch's own, else the address of the stranger.
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
                    Ok(Err(stranger)) => self.warn(stranger),
                    Err(error) => tracing::error!(%error, "failed to look up the process behind a connection"),
                },
                accepted = Accept::accept(&mut self.listener), if self.checks.len() < CHECKS => {
                    let socket = accepted?;
                    // It may have left already.
                    let (Ok(peer), Ok(local)) = (socket.peer_addr(), socket.local_addr()) else { continue };
                    let owned = (self.owns)(peer, local);
                    self.checks.spawn(async move { if owned.await { Ok(socket) } else { Err(peer) } });
                }
            }
        }
    }

    fn peer(&self, _: &TcpStream) -> Peer {
        Peer::Worker(Arc::clone(&self.launch))
    }
}

impl<F> LaunchListener<F> {
    /// Warns of a stranger once, for it may try as often as it likes.
    fn warn(&mut self, peer: SocketAddr) {
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(worker = %self.launch.id(), %peer, "closed a connection of a process that is not this worker's");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use snakepit_worker::{WorkerId, process::Launches};

    use super::*;

    #[tokio::test]
    async fn strangers_whose_check_takes_long_do_not_hold_up_the_worker() {
        let launches = Launches::new();
        let _launched = launches.enter(&WorkerId::new("w"), std::process::id());
        let launch = launches.of_process(std::process::id()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let strangers =
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
        let accepted = accepted.expect("it is not held up").unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), own);
        assert!(matches!(listener.peer(&accepted), Peer::Worker(_)));
        drop(strangers);
    }
}
