//! The open requests of mounted clients: counts them, finds the connection of each, and drops responses that clients do not read.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use axum::extract::ConnectInfo;
use http::Extensions;
use snakepit_registry::Principal;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::server::TcpConnectInfo};

use crate::{
    listen::{
        connections::{Connection, Connections, Peer, TcpPeer},
        response::ResponseBody,
        response_budget::{STALL_TIMEOUT, UnreadResponses},
    },
    status::too_many_open,
};

/// The interval at which the host looks for responses that clients do not read.
const STALL_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The maximum numbers of open requests.
#[derive(Debug, Clone, Copy)]
pub(in crate::listen) struct RequestLimits {
    /// Of all clients together.
    pub(in crate::listen) total: usize,
    /// Of one client, so that it cannot use up the total.
    pub(in crate::listen) per_client: usize,
}

/// The open requests of mounted clients.
#[derive(Debug)]
pub(super) struct MountedRequests {
    connections: Arc<Connections>,
    limits: RequestLimits,
    state: Mutex<State>,
    /// Notified when a request begins, because the checks for unread responses pause while no request is open.
    begun: Notify,
}

#[derive(Debug, Default)]
struct State {
    clients: HashMap<ClientId, Client>,
    /// The responses of open requests, by request. `None` before the response begins.
    requests: HashMap<u64, Option<Weak<MountedResponse>>>,
    last_request: u64,
}

/// The client of a request. The requests of one client share the budgets of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ClientId {
    /// The connection from this address.
    Connection(SocketAddr),
    /// All requests of this principal, if the program's own server does not provide the address of the peer.
    Principal(Principal),
}

/// The state that the requests of a client share. The client's unread responses may outlive its last request, because the
/// program's own server still buffers them.
#[derive(Debug)]
struct Client {
    /// The number of its open requests.
    open: usize,
    connection: Weak<Connection>,
    unread: Weak<UnreadResponses>,
}

/// A response that the program's own server sends.
pub(super) struct MountedResponse(Mutex<ResponseState>);

pub(super) struct ResponseState {
    pub(super) body: ResponseBody,
    /// The time at which the server last took a part of the response.
    pub(super) last_taken: Instant,
}

/// Counts a request as open until it is dropped.
#[derive(Debug)]
pub(super) struct MountedRequest {
    requests: Arc<MountedRequests>,
    id: u64,
    client: ClientId,
}

impl ClientId {
    /// Returns the client of a request with these extensions, and its TCP connection.
    pub(super) fn of(extensions: &Extensions) -> (Self, Option<TcpPeer>) {
        if let Some(tcp) = tcp_peer(extensions) {
            return (Self::Connection(tcp.peer), Some(tcp));
        }
        let principal = extensions.get().cloned().unwrap_or_else(Principal::mounted);
        (Self::Principal(principal), None)
    }
}

/// Returns the TCP connection of a request, which the servers of tonic and axum insert into the extensions.
fn tcp_peer(extensions: &Extensions) -> Option<TcpPeer> {
    if let Some(info) = extensions.get::<TcpConnectInfo>() {
        return Some(TcpPeer { peer: info.remote_addr?, local: info.local_addr });
    }
    let ConnectInfo(peer) = *extensions.get::<ConnectInfo<SocketAddr>>()?;
    Some(TcpPeer { peer, local: None })
}

impl MountedRequests {
    pub(super) fn new(connections: Arc<Connections>, limits: RequestLimits) -> Arc<Self> {
        Arc::new(Self { connections, limits, state: Mutex::default(), begun: Notify::new() })
    }

    /// Begins a request. Returns it with the connection of its client.
    ///
    /// # Errors
    /// The response, if the number of open requests has reached a limit.
    pub(super) fn begin(
        self: &Arc<Self>,
        extensions: &Extensions,
    ) -> Result<(MountedRequest, Arc<Connection>), Status> {
        let (key, tcp) = ClientId::of(extensions);
        let mut state = self.lock();
        let open = state.requests.len();
        if open >= self.limits.total {
            return Err(too_many_open("requests of mounted services", open));
        }
        let open = state.clients.get(&key).map_or(0, |client| client.open);
        if open >= self.limits.per_client {
            return Err(too_many_open("requests of this client", open));
        }
        state.last_request += 1;
        let id = state.last_request;
        state.requests.insert(id, None);
        let known =
            state.clients.get(&key).map(|client| (client.connection.upgrade(), client.unread.upgrade()));
        let (connection, unread) = known.unwrap_or_default();
        let connection = connection.unwrap_or_else(|| {
            let unread = unread.unwrap_or_else(|| self.connections.unread_responses());
            let connection = self.connections.connection(Peer::Mounted(tcp), Arc::clone(&unread));
            let client =
                Client { open, connection: Arc::downgrade(&connection), unread: Arc::downgrade(&unread) };
            state.clients.insert(key.clone(), client);
            connection
        });
        if let Some(client) = state.clients.get_mut(&key) {
            client.open += 1;
        }
        drop(state);
        self.begun.notify_one();
        Ok((MountedRequest { requests: Arc::clone(self), id, client: key }, connection))
    }

    /// Drops responses that clients do not read, until the stop.
    pub(super) async fn drop_stalled(self: Arc<Self>, stop: CancellationToken) {
        let check = async {
            loop {
                while self.is_idle() {
                    self.begun.notified().await;
                }
                tokio::time::sleep(STALL_CHECK_INTERVAL).await;
                self.drop_stalled_now();
            }
        };
        stop.run_until_cancelled(check).await;
    }

    /// Whether no request is open and no server buffers a response.
    fn is_idle(&self) -> bool {
        let state = self.lock();
        state.requests.is_empty() && state.clients.is_empty()
    }

    fn drop_stalled_now(&self) {
        let mut state = self.lock();
        state.clients.retain(|_, Client { open, connection, unread }| {
            *open > 0 || connection.strong_count() > 0 || unread.strong_count() > 0
        });
        let responses: Vec<_> = state.requests.values().flatten().filter_map(Weak::upgrade).collect();
        drop(state);
        let now = Instant::now();
        let dropped = responses.iter().filter(|response| response.drop_if_stalled(now)).count();
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "dropped responses of mounted services, because their clients do not read them"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MountedRequest {
    /// Begins the response.
    pub(super) fn respond(&self, body: ResponseBody) -> Arc<MountedResponse> {
        let state = ResponseState { body, last_taken: Instant::now() };
        let response = Arc::new(MountedResponse(Mutex::new(state)));
        self.requests.lock().requests.insert(self.id, Some(Arc::downgrade(&response)));
        response
    }
}

impl Drop for MountedRequest {
    fn drop(&mut self) {
        let mut state = self.requests.lock();
        state.requests.remove(&self.id);
        if let Some(client) = state.clients.get_mut(&self.client) {
            client.open -= 1;
        }
    }
}

impl fmt::Debug for MountedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MountedResponse")
    }
}

impl MountedResponse {
    pub(super) fn lock(&self) -> MutexGuard<'_, ResponseState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the rest of the response if the server has taken nothing for [`STALL_TIMEOUT`]. Returns whether it did.
    fn drop_if_stalled(&self, now: Instant) -> bool {
        // If the lock is held, the server is taking a part now.
        let Ok(mut state) = self.0.try_lock() else { return false };
        now.duration_since(state.last_taken) >= STALL_TIMEOUT && state.body.drop_unread()
    }
}
