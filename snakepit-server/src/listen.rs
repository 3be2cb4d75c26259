//! Binds addresses and serves the gRPC routes on them until the host stops.

mod accept;
mod budget;
mod connection;
mod connection_clock;
mod connections;
mod deadline;
mod descriptors;
mod field_count;
mod framing;
mod gzip;
mod launch;
mod message;
mod message_stream;
mod mount;
mod pace;
mod reported_call;
mod request_memory;
mod request_service;
mod response;
mod response_budget;
mod services;
mod use_count;
mod warning_limit;
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

use self::connections::Connections;
pub(crate) use self::descriptors::check_descriptor_limit;
pub use self::descriptors::{default_connections, raise_descriptor_limit};
pub(crate) use self::launch::serve_launch;
pub(crate) use self::mount::Mount;
pub(crate) use self::{
    budget::ArrivalBudgets,
    connections::{Connection, StreamUse},
    deadline::CallDeadline,
    reported_call::ReportedCall,
    response_budget::ResponseBudget,
    services::{ServiceFuture, Services, SharedService},
};
use crate::StartError;

/// The maximum number of connections that wait to be accepted, so that the kernel does not reject a burst of clients. The
/// kernel's own limit is `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// Binds a TCP address. A host name may resolve to several addresses. All of them must be loopback unless remote addresses are
/// allowed. The listener uses the first one that can be bound.
pub(crate) async fn bind_tcp(address: &str, allow_remote: bool) -> Result<TcpListener, StartError> {
    let listen_error = |error: io::Error| listen_error(address.to_owned(), error);
    let mut addresses: Vec<SocketAddr> =
        tokio::net::lookup_host(address).await.map_err(listen_error)?.collect();
    if !allow_remote && let Some(remote) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        let remote = remote.to_string();
        let address = if remote == address { remote } else { format!("{address} ({remote})") };
        return Err(StartError::NotLoopback { address });
    }
    // The command line connects to 127.0.0.1 by default, so prefer IPv4 for `localhost`.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let mut last_error = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
    for address in addresses {
        match listen_on(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(listen_error(last_error))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Binds a Unix socket. Its mode does not matter, because its directory is private to this user.
pub(crate) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

/// The error for a Unix socket that cannot be bound.
pub(crate) fn unix_listen_error(path: &Path, error: io::Error) -> StartError {
    listen_error(format!("unix:{}", path.display()), error)
}

pub(crate) fn local_address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| listen_error("a TCP socket".to_owned(), error))
}

fn listen_error(address: String, source: io::Error) -> StartError {
    StartError::Listen { address, source }
}

/// Limits on the connections and the memory of clients.
#[derive(Debug, Clone)]
pub(crate) struct ListenLimits {
    /// The most TCP connections. The Unix socket, which workers use too, accepts half as many.
    pub(crate) connections: usize,
    /// The memory limit for the requests of one connection until they are answered, and for its responses until they are read, in
    /// bytes.
    pub(crate) connection_bytes: usize,
    /// The budgets for arriving requests on all connections.
    pub(crate) arriving: ArrivalBudgets,
    /// The budget for unread responses on all TCP connections.
    pub(crate) unread: Arc<ResponseBudget>,
    /// The budget for unread responses to workers and on Unix sockets. It is separate, so that TCP clients that exhaust theirs do
    /// not stop tools.
    pub(crate) unread_local: Arc<ResponseBudget>,
    /// The budget for unread responses of mounted services. It is separate, because the host cannot close connections of the
    /// program's own server.
    pub(crate) unread_mounted: Arc<ResponseBudget>,
    /// Distinguishes workers from clients. Weak, because the launches hold these limits.
    pub(crate) launches: Weak<Launches>,
    /// Whether the host authorizes requests.
    pub(crate) authorizes: bool,
}

impl ListenLimits {
    fn connections(&self, limit: usize, unread: &Arc<ResponseBudget>) -> Arc<Connections> {
        let (arriving, launches) = (self.arriving.clone(), Weak::clone(&self.launches));
        let unread = Arc::clone(unread);
        Connections::new(limit.max(1), self.connection_bytes, arriving, unread, launches, self.authorizes)
    }
}

pub(crate) fn serve_tcp(
    tasks: &TaskTracker,
    services: Services,
    listener: TcpListener,
    limits: &ListenLimits,
    stop: CancellationToken,
) {
    tasks.spawn(accept::serve(
        listener,
        services,
        limits.connections(limits.connections, &limits.unread),
        stop,
    ));
}

pub(crate) fn serve_unix(
    tasks: &TaskTracker,
    services: Services,
    listener: UnixListener,
    limits: &ListenLimits,
    stop: CancellationToken,
) {
    tasks.spawn(accept::serve(
        listener,
        services,
        limits.connections(limits.connections / 2, &limits.unread_local),
        stop,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    mod edge;

    #[tokio::test]
    async fn every_address_of_a_name_is_checked() {
        let listener = bind_tcp("localhost:0", false).await.unwrap();
        assert!(local_address(&listener).unwrap().ip().is_loopback());
        let error = bind_tcp("0.0.0.0:0", false).await.unwrap_err();
        assert!(matches!(&error, StartError::NotLoopback { address } if address == "0.0.0.0:0"), "{error}");
        bind_tcp("0.0.0.0:0", true).await.unwrap();
        let error = bind_tcp("no-such-host.invalid:0", false).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot listen on no-such-host.invalid:0; "), "{error}");
        assert!(matches!(error, StartError::Listen { .. }), "{error}");
    }
}
