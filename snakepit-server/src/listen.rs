//! Binding addresses and serving the routes on them until told to stop.

mod accept;
mod answer;
mod budget;
mod collect;
mod connection;
mod connections;
mod descriptors;
mod fields;
mod frames;
mod gzip;
mod held;
mod launch;
mod offload;
mod outgoing;
mod pace;
mod requests;
mod stream;
mod write_timeout;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Weak},
};

use snakepit_worker::process::Launches;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use self::connections::Connections;
pub(crate) use self::descriptors::check_descriptor_limit;
pub use self::descriptors::{default_connections, raise_descriptor_limit};
pub(crate) use self::launch::serve_launch;
pub(crate) use self::{
    budget::{Arriving, Exhausted},
    connections::{Connection, StreamUse},
    fields::MAX_FIELDS,
    frames::Excess,
    outgoing::Outgoing,
};
use crate::Error;

/// How many connections may wait to be accepted: a burst of clients must not be refused by the kernel, whose own bound is
/// `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// Binds a TCP address. A name is looked up, and all it stands for must be loopback unless remote addresses are allowed;
/// the first that can be bound is taken.
pub(crate) async fn bind_tcp(address: &str, allow_remote: bool) -> Result<TcpListener, Error> {
    let failed = |error: io::Error| failed(address.to_owned(), &error);
    let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(failed)?.collect();
    if !allow_remote && let Some(remote) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        let remote = remote.to_string();
        let address = if remote == address { remote } else { format!("{address} ({remote})") };
        return Err(Error::NotLoopback { address });
    }
    // The command line dials 127.0.0.1 by default, so that is what `localhost` should be where it is both.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name stands for no address");
    for address in addresses {
        match listen_on(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds a Unix socket. Its directory is private to this user, so its own mode does not matter.
pub(crate) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

/// A Unix socket cannot be bound.
pub(crate) fn unix_failed(path: &Path, error: &io::Error) -> Error {
    failed(format!("unix:{}", path.display()), error)
}

pub(crate) fn local_address(listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|e| failed("a TCP socket".to_owned(), &e))
}

fn failed(address: String, error: &io::Error) -> Error {
    Error::Listen { address, problem: error.to_string() }
}

/// What clients may take up.
#[derive(Debug, Clone)]
pub(crate) struct EdgeLimits {
    /// How many connections there may be over TCP; half as many over the Unix socket, which workers use too.
    pub(crate) connections: usize,
    /// What the requests of one connection may hold until they are answered, in bytes, and its answers until they are read.
    pub(crate) connection_bytes: usize,
    /// What requests on all connections may hold while they arrive, in bytes.
    pub(crate) arriving: Arriving,
    /// What answers hold that clients have not read, on all connections over TCP.
    pub(crate) unread: Arc<Outgoing>,
    /// The same of connections over Unix sockets and of workers: clients that use up the other must not hold up tools.
    pub(crate) unread_locally: Arc<Outgoing>,
    /// By which workers are told from clients. Weak, because the launches hold the limits.
    pub(crate) launches: Weak<Launches>,
}

impl EdgeLimits {
    fn connections(&self, limit: usize, unread: &Arc<Outgoing>) -> Arc<Connections> {
        let (arriving, launches) = (self.arriving.clone(), Weak::clone(&self.launches));
        Connections::new(limit.max(1), self.connection_bytes, arriving, Arc::clone(unread), launches)
    }
}

pub(crate) fn serve_tcp(
    tasks: &TaskTracker,
    routes: Routes,
    listener: TcpListener,
    limits: &EdgeLimits,
    stop: CancellationToken,
) {
    tasks.spawn(accept::serve(
        listener,
        routes.prepare(),
        limits.connections(limits.connections, &limits.unread),
        stop,
    ));
}

pub(crate) fn serve_unix(
    tasks: &TaskTracker,
    routes: Routes,
    listener: UnixListener,
    limits: &EdgeLimits,
    stop: CancellationToken,
) {
    tasks.spawn(accept::serve(
        listener,
        routes.prepare(),
        limits.connections(limits.connections / 2, &limits.unread_locally),
        stop,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    mod edge;

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
