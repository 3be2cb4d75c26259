//! The open connections of a listener: admission control, and the choice of an idle connection to evict for a new one.

mod open_request;
mod peer;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use snakepit_registry::Principal;
use snakepit_session::Payload;
use snakepit_worker::process::{Launch, Launches};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub(crate) use self::{
    open_request::{OpenRequest, StreamUse},
    peer::{Peer, TcpPeer},
};
use super::{
    budget::{ArrivalBudgets, Budget, Reservation},
    response_budget::{MIN_COUNTED_BYTES, ResponseBudget, UnreadResponses},
    use_count::UseCount,
    warning_limit::WarningLimit,
};
use crate::limits::BudgetExhausted;

/// The number of connections that may exceed the limit while evicted ones close.
const MAX_CLOSING: usize = 16;
/// The number of connections reserved for workers, one for each possible worker. They do not count towards the limit and are not
/// evicted. Otherwise, clients could keep workers from starting, and with a low limit, workers would evict each other.
const WORKER_RESERVE: usize = 1024;
/// The headroom of one connection for messages of its streams, in bytes. The limit prevents one connection from using all of
/// the host's headroom.
const CONNECTION_HEADROOM: usize = 8 * 1024 * 1024;

/// The open connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    limit: usize,
    /// The memory limit for the requests of one connection, and for its unread responses, in bytes.
    connection_bytes: usize,
    arriving: ArrivalBudgets,
    /// The budget for unread responses that several listeners share.
    responses: Arc<ResponseBudget>,
    /// Distinguishes workers from clients.
    launches: Weak<Launches>,
    /// Whether the host authorizes requests, so that each of them needs the connection.
    authorizes: bool,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next_id: AtomicU64,
    /// The number of worker connections that use the reserve.
    reserve_used: AtomicUsize,
    /// Bounds the warnings about connections that the host closed.
    pub(super) warnings: WarningLimit,
}

/// The decision about a new connection.
#[derive(Debug)]
pub(crate) enum Admission {
    Admitted(ConnectionPermit),
    Rejected { limit: usize },
}

/// The right to keep one connection open. Dropping it makes room for another.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    /// The key in the table of open connections. A connection that is not there uses the workers' reserve.
    id: u64,
    connection: Arc<Connection>,
    connections: Arc<Connections>,
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The memory of its requests, from their arrival to their response.
    budget: Budget,
    /// Additional memory for messages that arrive on its streams when the budget is exhausted.
    headroom: Arc<Budget>,
    arriving: ArrivalBudgets,
    /// The memory of its responses until the client has read them.
    unread: Arc<UnreadResponses>,
    launches: Weak<Launches>,
    authorizes: bool,
    peer: Peer,
    /// The launch of the process at the other end, after the first lookup.
    launch: OnceCell<Option<Arc<Launch>>>,
    /// The launch whose token the peer has presented.
    claimed: OnceLock<Arc<Launch>>,
    /// The number of open `Multiplex` streams.
    call_streams: AtomicUsize,
    /// The number of other open requests and of `Multiplex` streams with running calls.
    uses: UseCount,
    /// Whether the connection has had a request.
    has_served: AtomicBool,
    opened: Instant,
    /// The end of the last use, in milliseconds after `opened`.
    last_use_ended: AtomicU64,
    /// The end of the last `Multiplex` stream, in milliseconds after `opened`. An idle one is a request, but not a use.
    last_call_stream_ended: AtomicU64,
    evicted: CancellationToken,
}

impl Connections {
    pub(crate) fn new(
        limit: usize,
        connection_bytes: usize,
        arriving: ArrivalBudgets,
        responses: Arc<ResponseBudget>,
        launches: Weak<Launches>,
        authorizes: bool,
    ) -> Arc<Self> {
        let (open, next_id, reserve_used) = (Mutex::default(), AtomicU64::new(0), AtomicUsize::new(0));
        Arc::new(Self {
            limit,
            connection_bytes,
            arriving,
            responses,
            launches,
            authorizes,
            open,
            next_id,
            reserve_used,
            warnings: WarningLimit::default(),
        })
    }

    /// Creates the counter of the unread responses of one connection.
    pub(super) fn unread_responses(&self) -> Arc<UnreadResponses> {
        Arc::new(UnreadResponses::new(self.connection_bytes, Arc::clone(&self.responses)))
    }

    /// Creates the state of a connection with this counter of unread responses. The limit does not count it yet.
    pub(super) fn connection(&self, peer: Peer, unread: Arc<UnreadResponses>) -> Arc<Connection> {
        Arc::new(Connection {
            budget: Budget::new(self.connection_bytes),
            headroom: Arc::new(Budget::new(CONNECTION_HEADROOM)),
            arriving: self.arriving.clone(),
            unread,
            launches: Weak::clone(&self.launches),
            authorizes: self.authorizes,
            peer,
            launch: OnceCell::new(),
            claimed: OnceLock::new(),
            call_streams: AtomicUsize::new(0),
            uses: UseCount::new(),
            has_served: AtomicBool::new(false),
            opened: Instant::now(),
            last_use_ended: AtomicU64::new(0),
            last_call_stream_ended: AtomicU64::new(0),
            evicted: CancellationToken::new(),
        })
    }

    /// Admits a connection. At the limit, looks up which connections belong to workers, and moves them to the reserve while it
    /// has room. If that does not suffice, evicts an idle connection. Below the limit, skips the lookups.
    pub(crate) fn admit(self: &Arc<Self>, peer: Peer) -> Admission {
        let connection = self.connection(peer, self.unread_responses());
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let admitted = |connection| {
            Admission::Admitted(ConnectionPermit { id, connection, connections: Arc::clone(self) })
        };
        let mut open = self.lock();
        if open.len() >= self.limit {
            // The lookups read `/proc`, so they must not hold the lock.
            drop(open);
            if connection.is_of_worker_process() && self.take_from_reserve() {
                return admitted(connection);
            }
            self.move_workers_to_reserve();
            open = self.lock();
        }
        let is_full = open.len() >= self.limit;
        let evicted = if is_full && open.len() < self.limit + MAX_CLOSING { evict(&open) } else { None };
        if is_full && evicted.is_none() {
            drop(open);
            let is_reserved = connection.find_launch().is_some() && self.take_from_reserve();
            return if is_reserved {
                admitted(connection)
            } else {
                Admission::Rejected { limit: self.limit }
            };
        }
        open.insert(id, Arc::clone(&connection));
        drop(open);
        if let Some(evicted) = evicted {
            evicted.evicted.cancel();
        }
        admitted(connection)
    }

    /// At the limit, returns the connections on Unix sockets whose process is not known yet. Call their
    /// [`launch`](Connection::launch), which reads `/proc`, on a blocking thread before you [admit](Self::admit) a connection.
    pub(super) fn unidentified_at_limit(&self) -> Vec<Arc<Connection>> {
        let open = self.lock();
        if open.len() < self.limit {
            return Vec::new();
        }
        let is_unidentified = |connection: &&Arc<Connection>| {
            matches!(connection.peer, Peer::Process { .. }) && !connection.launch.initialized()
        };
        open.values().filter(is_unidentified).cloned().collect()
    }

    /// Moves the open connections of workers to the reserve, so that they neither count towards the limit nor are evicted.
    fn move_workers_to_reserve(&self) {
        let is_process = |connection: &Connection| matches!(connection.peer, Peer::Process { .. });
        let open: Vec<_> = self
            .lock()
            .iter()
            .filter(|(_, connection)| is_process(connection))
            .map(|(id, connection)| (*id, Arc::clone(connection)))
            .collect();
        for (id, connection) in open {
            let is_reserved = connection.find_launch().is_some() && self.take_from_reserve();
            if is_reserved && self.lock().remove(&id).is_none() {
                // The connection has closed in the meantime.
                self.return_to_reserve();
            }
        }
    }

    fn return_to_reserve(&self) {
        self.reserve_used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes one connection from the workers' reserve. Returns whether one was left.
    fn take_from_reserve(&self) -> bool {
        let take = |used| (used < WORKER_RESERVE).then_some(used + 1);
        self.reserve_used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Ignores poisoning, because no code panics while it changes the table.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a connection as evicted: one that never had a request, otherwise the one whose last use ended first. Returns `None` if
/// all are in use.
fn evict(open: &HashMap<u64, Arc<Connection>>) -> Option<Arc<Connection>> {
    loop {
        let idle = open.values().filter(|connection| connection.uses.is_evictable());
        let candidate =
            idle.min_by_key(|connection| (connection.has_served(), connection.last_use_ended()))?;
        // If a use has just begun, this fails and the next candidate is tried. Later uses see the mark.
        if candidate.uses.evict() {
            return Some(Arc::clone(candidate));
        }
    }
}

impl ConnectionPermit {
    pub(crate) const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    pub(super) const fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let removed = self.connections.lock().remove(&self.id);
        if removed.is_none() {
            self.connections.return_to_reserve();
        }
    }
}

impl Connection {
    /// The pid of the process at the other end of a Unix socket. `None` for other connections.
    pub(crate) const fn peer_pid(&self) -> Option<u32> {
        match self.peer {
            Peer::Process { pid, .. } => pid,
            Peer::Unknown | Peer::Tcp(_) | Peer::Mounted(_) | Peer::Worker(_) => None,
        }
    }

    /// The party at the other end.
    pub(crate) fn principal(&self) -> Principal {
        match (&self.peer, self.find_launch()) {
            (_, Some(launch)) => Principal::worker(launch.id().shared()),
            (Peer::Process { uid, .. }, None) => Principal::user(*uid),
            (Peer::Tcp(TcpPeer { peer, .. }), None) if peer.ip().to_canonical().is_loopback() => {
                Principal::loopback()
            }
            (Peer::Unknown | Peer::Tcp(_), None) => Principal::remote(),
            (Peer::Mounted(_) | Peer::Worker(_), None) => Principal::mounted(),
        }
    }

    /// Finds the launch of the worker at the other end. `None` for a client. For a Unix socket, the first call reads `/proc`. Its
    /// result stays valid, because a launch is registered before its worker can connect. If the launcher does not know the pid,
    /// the token identifies the worker. For a TCP connection, [`identify`](Self::identify) does the lookup.
    pub(crate) fn find_launch(&self) -> Option<&Arc<Launch>> {
        match &self.peer {
            Peer::Unknown => None,
            Peer::Tcp(_) | Peer::Mounted(_) => self.launch.get()?.as_ref(),
            Peer::Process { pid, .. } => {
                if !self.launch.initialized() {
                    let found = self.launches.upgrade().and_then(|launches| launches.find_by_pid((*pid)?));
                    // Another task may have been first, with the same result.
                    let _ = self.launch.set(found);
                }
                self.launch.get()?.as_ref().or_else(|| self.claimed.get())
            }
            Peer::Worker(launch) => Some(launch),
        }
    }

    /// The TCP connection whose process [`identify`](Self::identify) has not looked up yet.
    pub(crate) fn unidentified(&self) -> Option<TcpPeer> {
        let (Peer::Tcp(peer) | Peer::Mounted(Some(peer))) = &self.peer else { return None };
        (!self.launch.initialized()).then_some(*peer)
    }

    /// Looks up whether a worker process is at the other end of a local TCP connection. Only the first call reads `/proc`. Cancel
    /// safe.
    pub(crate) async fn identify(&self) {
        let Some(TcpPeer { peer, local }) = self.unidentified() else { return };
        let find = || async { self.launches.upgrade()?.find_by_connection(peer, local).await };
        self.launch.get_or_init(find).await;
    }

    /// Whether each request needs this connection, because the host authorizes it.
    pub(super) const fn authorizes(&self) -> bool {
        self.authorizes
    }

    /// Whether the other end is the process of a worker on the socket that all workers of the host share.
    fn is_of_worker_process(&self) -> bool {
        matches!(self.peer, Peer::Process { .. }) && self.find_launch().is_some()
    }

    /// Records the launch whose token the peer has presented.
    pub(crate) fn set_launch(&self, launch: &Arc<Launch>) {
        self.claimed.get_or_init(|| Arc::clone(launch));
    }

    /// Counts a request as open until the guard is dropped. The request is also a use of the connection, except for a `Multiplex`
    /// stream, which is a [use](StreamUse) only while calls run.
    pub(crate) fn begin_request(self: &Arc<Self>, is_call_stream: bool) -> OpenRequest {
        self.has_served.store(true, Ordering::Relaxed);
        if is_call_stream {
            self.call_streams.fetch_add(1, Ordering::Relaxed);
        } else {
            self.begin_use();
        }
        OpenRequest { connection: Arc::clone(self), is_use: !is_call_stream }
    }

    /// Counts a use. Returns `false` if the connection has been evicted. The caller must [end](Self::end_use) the use either way.
    fn begin_use(&self) -> bool {
        self.uses.begin()
    }

    /// Ends a use. Reads the clock only for the last one, because the connection is in use until then.
    fn end_use(&self) {
        self.uses.end(|| self.last_use_ended.store(self.millis_since_opened(), Ordering::Relaxed));
    }

    /// Ends a `Multiplex` stream.
    fn end_call_stream(&self) {
        self.last_call_stream_ended.store(self.millis_since_opened(), Ordering::Relaxed);
        self.call_streams.fetch_sub(1, Ordering::Release);
    }

    fn millis_since_opened(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Ready when the connection is evicted.
    pub(crate) fn evicted(&self) -> WaitForCancellationFutureOwned {
        self.evicted.clone().cancelled_owned()
    }

    /// Whether the connection has an open request other than idle `Multiplex` streams.
    pub(crate) fn is_in_use(&self) -> bool {
        self.uses.is_in_use()
    }

    /// The time since which no request is open, which is the end of the last request, or the opening of the connection before its
    /// first request. `None` while a request is open, even an unused `Multiplex` stream.
    pub(crate) fn without_requests_since(&self) -> Option<Instant> {
        // Acquire: if this load sees the end of the last stream, the next one sees its time.
        let has_requests = self.call_streams.load(Ordering::Acquire) > 0 || self.is_in_use();
        let since = || {
            let last_ended = [&self.last_use_ended, &self.last_call_stream_ended];
            let millis = last_ended.map(|ended| ended.load(Ordering::Relaxed));
            self.opened + Duration::from_millis(millis[0].max(millis[1]))
        };
        (!has_requests).then(since)
    }

    /// The end of the last use, or the opening of the connection before its first use.
    fn last_use_ended(&self) -> Instant {
        self.opened + Duration::from_millis(self.last_use_ended.load(Ordering::Relaxed))
    }

    /// Whether the connection has had a request.
    pub(crate) fn has_served(&self) -> bool {
        self.has_served.load(Ordering::Relaxed)
    }

    /// Returns empty reservations in the headroom of this connection and of the host.
    pub(super) fn headroom(&self) -> [Reservation; 2] {
        let ArrivalBudgets { client_headroom, worker_headroom, .. } = &self.arriving;
        let host_headroom = if self.find_launch().is_some() { worker_headroom } else { client_headroom };
        [&self.headroom, host_headroom].map(|budget| Reservation::new(Arc::clone(budget)))
    }

    /// An empty reservation in the budget of arriving requests.
    pub(crate) fn arrival_reservation(&self) -> Reservation {
        let ArrivalBudgets { clients, workers, .. } = &self.arriving;
        Reservation::new(Arc::clone(if self.find_launch().is_some() { workers } else { clients }))
    }

    /// Waits until the client has read enough of its responses for another call to begin. Returns `Ok` at the deadline of that
    /// call too, because the call then reports it. Cancel safe.
    ///
    /// # Errors
    /// The client read nothing for `STALL_TIMEOUT`.
    pub(crate) async fn response_capacity(&self, deadline: Option<Instant>) -> Result<(), BudgetExhausted> {
        if !self.unread.is_exhausted() {
            return Ok(());
        }
        match deadline {
            Some(deadline) => timeout_at(deadline, self.unread.capacity()).await.unwrap_or(Ok(())),
            None => self.unread.capacity().await,
        }
    }

    /// Counts a value as unread until the client has read it.
    ///
    /// # Errors
    /// The client already has too much to read, so the value must be dropped.
    pub(crate) fn count_unread(&self, value: Payload) -> Result<Payload, BudgetExhausted> {
        if value.size() < MIN_COUNTED_BYTES {
            return Ok(value);
        }
        self.unread.check(value.size())?;
        let (ty, json, binary) = value.into_parts();
        let count = |bytes: Bytes| self.unread.count(bytes);
        Ok(match binary {
            Some(buffer) => Payload::from_buffer(ty, json, count(buffer)),
            None => Payload::from_json(ty, count(json)),
        })
    }

    /// The responses that the client has not read.
    pub(super) const fn unread(&self) -> &Arc<UnreadResponses> {
        &self.unread
    }

    /// The memory of its requests, in bytes.
    #[cfg(test)]
    pub(crate) fn reserved_bytes(&self) -> usize {
        self.budget.used()
    }

    /// Reserves bytes in the budget of this connection's requests, for a request that has already reserved `own_bytes`.
    pub(crate) fn reserve(&self, bytes: usize, own_bytes: usize) -> Result<(), BudgetExhausted> {
        self.budget.try_take(bytes, own_bytes)
    }

    /// Releases bytes that a request [reserved](Self::reserve).
    pub(crate) fn release(&self, bytes: usize) {
        self.budget.release(bytes);
    }
}

#[cfg(test)]
mod tests;
