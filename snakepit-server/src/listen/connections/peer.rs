//! The other end of a connection.

use std::{net::SocketAddr, sync::Arc};

use snakepit_worker::process::Launch;

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// A client whose address is not known.
    Unknown,
    /// A client on a TCP connection.
    Tcp(TcpPeer),
    /// A client of the program's own server, with its TCP connection if that server provides it.
    Mounted(Option<TcpPeer>),
    /// A process on a Unix socket. The kernel reports its ids. Some systems do not report a pid.
    Process { pid: Option<u32>, uid: u32 },
    /// A worker on the listener of its launch.
    Worker(Arc<Launch>),
}

/// The addresses of a TCP connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpPeer {
    pub(crate) peer: SocketAddr,
    /// The address at which the connection was accepted, if it is known.
    pub(crate) local: Option<SocketAddr>,
}
