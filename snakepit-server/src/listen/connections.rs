//! The open connections of a listener: how many there may be, and which of them makes room for a new one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use snakepit_session::Payload;
use snakepit_worker::process::{Launch, Launches};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{
    budget::{Arriving, Budget, Exhausted, Share},
    outgoing::{COUNTED_BYTES, Outgoing, Unread},
};

/// How many connections beyond the limit may be open for the moment that evicted ones take to close.
const CLOSING: usize = 16;
/// How many connections of workers may be open beyond the limit: as many as there can be workers. Clients that take all places
/// must not keep workers from starting.
const RESERVED: usize = 1024;
/// Marks a connection as evicted, in the number of its uses.
const EVICTED: usize = 1 << (usize::BITS - 1);

/// The open connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    limit: usize,
    /// What the requests of one connection may hold, in bytes.
    connection_bytes: usize,
    arriving: Arriving,
    /// What the answers hold that clients have not read, on all listeners.
    outgoing: Arc<Outgoing>,
    /// By which workers are told from clients.
    launches: Weak<Launches>,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    last: AtomicU64,
    /// How many connections of workers are open beyond those.
    reserved: AtomicUsize,
}

/// Whether there is room for a connection.
#[derive(Debug)]
pub(crate) enum Admission {
    Admitted(Slot),
    Refused { limit: usize },
}

/// A connection's place; free again on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` for a reserved place.
    id: Option<u64>,
    connection: Arc<Connection>,
    connections: Arc<Connections>,
}

/// What is known of the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// A client, over TCP.
    Unknown,
    /// A process, by the kernel's word: over a Unix socket.
    Process(u32),
    /// A worker, on the listener of its launch.
    Worker(Arc<Launch>),
}

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// What its requests hold: those that arrive, and those that wait for their answer.
    budget: Arc<Budget>,
    arriving: Arriving,
    /// What its answers hold until it has read them.
    unread: Arc<Unread>,
    launches: Weak<Launches>,
    peer: Peer,
    /// Of which worker the peer is a process, once that was looked up.
    worker: OnceLock<Option<Arc<Launch>>>,
    requests: AtomicUsize,
    /// The open requests, of which a stream of calls counts only while calls of it run. Plus [`EVICTED`].
    uses: AtomicUsize,
    /// Whether it ever had a request.
    has_served: AtomicBool,
    opened: Instant,
    /// When its last use ended, in milliseconds after `opened`.
    idle_since: AtomicU64,
    evicted: CancellationToken,
}

impl Connections {
    pub(crate) fn new(
        limit: usize,
        connection_bytes: usize,
        arriving: Arriving,
        outgoing: Arc<Outgoing>,
        launches: Weak<Launches>,
    ) -> Arc<Self> {
        let (open, last, reserved) = (Mutex::default(), AtomicU64::new(0), AtomicUsize::new(0));
        Arc::new(Self { limit, connection_bytes, arriving, outgoing, launches, open, last, reserved })
    }

    /// Makes room for a connection, if need be by closing one that is idle.
    pub(crate) fn admit(self: &Arc<Self>, peer: Peer) -> Admission {
        let connection = Arc::new(Connection {
            budget: Arc::new(Budget::new(self.connection_bytes)),
            arriving: self.arriving.clone(),
            unread: Arc::new(Unread::new(self.connection_bytes, Arc::clone(&self.outgoing))),
            launches: Weak::clone(&self.launches),
            peer,
            worker: OnceLock::new(),
            requests: AtomicUsize::new(0),
            uses: AtomicUsize::new(0),
            has_served: AtomicBool::new(false),
            opened: Instant::now(),
            idle_since: AtomicU64::new(0),
            evicted: CancellationToken::new(),
        });
        let mut open = self.lock();
        let is_full = open.len() >= self.limit;
        let evicted = if is_full && open.len() < self.limit + CLOSING { evict(&open) } else { None };
        let id = if is_full && evicted.is_none() {
            drop(open);
            let is_reserved = connection.worker().is_some() && self.reserve();
            if !is_reserved {
                return Admission::Refused { limit: self.limit };
            }
            None
        } else {
            let id = self.last.fetch_add(1, Ordering::Relaxed);
            open.insert(id, Arc::clone(&connection));
            drop(open);
            Some(id)
        };
        if let Some(evicted) = evicted {
            evicted.evicted.cancel();
        }
        Admission::Admitted(Slot { id, connection, connections: Arc::clone(self) })
    }

    /// Takes a reserved place.
    fn reserve(&self) -> bool {
        let take = |taken| (taken < RESERVED).then_some(taken + 1);
        self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// No code under this lock panics half-way through a change, so a poisoned table is still whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chooses the connection that can best be spared: one that never had a request, else the one that has been idle longest.
/// `None`: all are in use.
fn evict(open: &HashMap<u64, Arc<Connection>>) -> Option<Arc<Connection>> {
    loop {
        let idle = open.values().filter(|connection| connection.uses.load(Ordering::Relaxed) == 0);
        let spared = idle.min_by_key(|connection| {
            (connection.has_served.load(Ordering::Relaxed), connection.idle_since())
        })?;
        // A use that begins from now on finds that it is evicted; one that began just now saves it.
        if spared.uses.compare_exchange(0, EVICTED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return Some(Arc::clone(spared));
        }
    }
}

impl Slot {
    pub(crate) const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.id {
            Some(id) => drop(self.connections.lock().remove(&id)),
            None => drop(self.connections.reserved.fetch_sub(1, Ordering::Relaxed)),
        }
    }
}

impl Connection {
    /// The process at the other end, of connections over a Unix socket.
    pub(crate) const fn peer(&self) -> Option<u32> {
        match self.peer {
            Peer::Process(pid) => Some(pid),
            Peer::Unknown | Peer::Worker(_) => None,
        }
    }

    /// The launch of the worker at the other end. `None` for a client. The first look reads /proc: a worker's process is known
    /// before it can connect.
    pub(crate) fn worker(&self) -> Option<&Arc<Launch>> {
        match &self.peer {
            Peer::Unknown => None,
            Peer::Process(pid) => {
                self.worker.get_or_init(|| self.launches.upgrade()?.of_process(*pid)).as_ref()
            }
            Peer::Worker(launch) => Some(launch),
        }
    }

    /// Counts a request as open until the guard is dropped. It also counts as a use of the connection, unless it is a stream of
    /// calls, which [counts](StreamUse) only while calls run.
    pub(crate) fn begin_request(self: &Arc<Self>, is_call_stream: bool) -> OpenRequest {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.has_served.store(true, Ordering::Relaxed);
        if !is_call_stream {
            self.begin_use();
        }
        OpenRequest { connection: Arc::clone(self), is_use: !is_call_stream }
    }

    /// `false`: the connection is evicted.
    fn begin_use(&self) -> bool {
        self.uses.fetch_add(1, Ordering::AcqRel) & EVICTED == 0
    }

    fn end_use(&self) {
        let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.idle_since.store(since, Ordering::Relaxed);
        self.uses.fetch_sub(1, Ordering::AcqRel);
    }

    /// Ready when the connection shall make room for another.
    pub(crate) fn evicted(&self) -> WaitForCancellationFutureOwned {
        self.evicted.clone().cancelled_owned()
    }

    /// Whether a request is open that is no idle stream of calls.
    pub(crate) fn is_in_use(&self) -> bool {
        self.uses.load(Ordering::Relaxed) & !EVICTED != 0
    }

    /// Since when no request is open, and whether there ever was one. `None` while one is open.
    pub(crate) fn idle(&self) -> Option<(Instant, bool)> {
        let is_idle = self.requests.load(Ordering::Relaxed) == 0;
        is_idle.then(|| (self.idle_since(), self.has_served.load(Ordering::Relaxed)))
    }

    fn idle_since(&self) -> Instant {
        self.opened + std::time::Duration::from_millis(self.idle_since.load(Ordering::Relaxed))
    }

    /// Nothing yet of what requests of this connection may hold.
    pub(crate) fn share(&self) -> Share {
        Share::of(Arc::clone(&self.budget))
    }

    /// Nothing yet of what all requests that are still arriving may hold.
    pub(crate) fn arriving_share(&self) -> Share {
        let Arriving { clients, workers } = &self.arriving;
        Share::of(Arc::clone(if self.worker().is_some() { workers } else { clients }))
    }

    /// Waits until the client has read enough of its answers for another call to begin, or the call's time is up.
    ///
    /// # Errors
    /// It reads nothing.
    pub(crate) async fn room(&self, deadline: Option<Instant>) -> Result<(), Exhausted> {
        if !self.unread.is_short() {
            return Ok(());
        }
        match deadline {
            Some(deadline) => timeout_at(deadline, self.unread.room()).await.unwrap_or(Ok(())),
            None => self.unread.room().await,
        }
    }

    /// Holds a value until the client has read it.
    ///
    /// # Errors
    /// It has too much to read already, so the value must be dropped.
    pub(crate) fn hold(&self, value: Payload) -> Result<Payload, Exhausted> {
        if value.size() < COUNTED_BYTES {
            return Ok(value);
        }
        self.unread.check(value.size())?;
        let (ty, json, binary) = value.into_parts();
        let hold = |bytes: Bytes| self.unread.hold(bytes);
        Ok(match binary {
            Some(buffer) => Payload::from_buffer(ty, json, hold(buffer)),
            None => Payload::from_json(ty, hold(json)),
        })
    }

    /// What its answers hold until it has read them.
    pub(super) const fn unread(&self) -> &Arc<Unread> {
        &self.unread
    }

    /// What its requests hold.
    #[cfg(test)]
    pub(crate) fn share_used(&self) -> usize {
        self.budget.used()
    }

    /// Takes bytes for a call of this connection that waits for its answer.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<(), Exhausted> {
        self.budget.try_take(bytes, 0)
    }

    /// Gives back what a call [took](Self::reserve).
    pub(crate) fn release(&self, bytes: usize) {
        self.budget.give_back(bytes);
    }
}

/// A request whose answer is not complete.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    connection: Arc<Connection>,
    is_use: bool,
}

impl OpenRequest {
    /// What the answers of its connection hold until they are read.
    pub(super) fn unread(&self) -> &Arc<Unread> {
        self.connection.unread()
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if self.is_use {
            self.connection.end_use();
        }
        self.connection.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether calls of one stream run, which is a use of their connection.
#[derive(Debug)]
pub(crate) struct StreamUse {
    connection: Arc<Connection>,
    runs: bool,
}

impl StreamUse {
    pub(crate) const fn of(connection: Arc<Connection>) -> Self {
        Self { connection, runs: false }
    }

    /// Calls are to run. `false`: they must not, because the connection is evicted.
    pub(crate) fn begin(&mut self) -> bool {
        if !self.runs && !self.connection.begin_use() {
            self.connection.end_use();
            return false;
        }
        self.runs = true;
        true
    }

    /// No call runs any more.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.runs) {
            self.connection.end_use();
        }
    }
}

impl Drop for StreamUse {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use snakepit_worker::WorkerId;

    use super::*;

    fn outgoing() -> Arc<Outgoing> {
        Arc::new(Outgoing::new(1))
    }

    fn connections(limit: usize) -> Arc<Connections> {
        Connections::new(limit, 1, Arriving::new(1), outgoing(), Weak::new())
    }

    fn admit(connections: &Arc<Connections>) -> Option<Slot> {
        admit_peer(connections, Peer::Unknown)
    }

    fn admit_peer(connections: &Arc<Connections>, peer: Peer) -> Option<Slot> {
        match connections.admit(peer) {
            Admission::Admitted(slot) => Some(slot),
            Admission::Refused { .. } => None,
        }
    }

    fn is_evicted(slot: &Slot) -> bool {
        slot.connection().evicted.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_takes_the_place_of_the_one_that_can_best_be_spared() {
        let connections = connections(3);
        let (busy, idle, silent) =
            (admit(&connections).unwrap(), admit(&connections).unwrap(), admit(&connections).unwrap());
        let _request = busy.connection().begin_request(false);
        drop(idle.connection().begin_request(false));
        tokio::time::advance(Duration::from_secs(1)).await;
        let first = admit(&connections).unwrap();
        let _of_first = first.connection().begin_request(false);
        assert_eq!([&busy, &idle, &silent].map(is_evicted), [false, false, true]);
        silent.connection().evicted().await;
        drop(silent);
        let second = admit(&connections).unwrap();
        let _of_second = second.connection().begin_request(false);
        assert_eq!([&busy, &idle, &first].map(is_evicted), [false, true, false]);
        // It is asked once, and has not left yet.
        assert!(admit(&connections).is_none());
    }

    #[tokio::test]
    async fn busy_connections_are_not_spared_and_places_are_given_back() {
        let connections = connections(2);
        let (one, other) = (admit(&connections).unwrap(), admit(&connections).unwrap());
        let _requests = [one.connection().begin_request(false), other.connection().begin_request(false)];
        assert!(admit(&connections).is_none());
        drop(other);
        assert!(admit(&connections).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_calls_keeps_its_place_only_while_calls_run() {
        let connections = connections(1);
        let slot = admit(&connections).unwrap();
        let _stream = slot.connection().begin_request(true);
        let mut stream_use = StreamUse::of(Arc::clone(slot.connection()));
        assert!(stream_use.begin() && stream_use.begin());
        assert!(admit(&connections).is_none(), "a call runs");
        stream_use.end();
        let _new = admit(&connections).unwrap();
        assert!(is_evicted(&slot) && !stream_use.begin(), "calls that come too late do not run");
        assert!(!slot.connection().is_in_use());
    }

    #[tokio::test]
    async fn clients_that_take_all_places_do_not_keep_workers_out() {
        let launches = Launches::new();
        let connections = Connections::new(1, 1, Arriving::new(1), outgoing(), Arc::downgrade(&launches));
        let client = admit_peer(&connections, Peer::Process(std::process::id())).unwrap();
        let _request = client.connection().begin_request(false);
        assert!(admit_peer(&connections, Peer::Process(std::process::id())).is_none());
        let _launch = launches.enter(&WorkerId::new("w"), std::process::id());
        let worker = admit_peer(&connections, Peer::Process(std::process::id())).unwrap();
        assert_eq!(worker.connection().worker().unwrap().id().as_str(), "w");
        assert!(admit(&connections).is_none(), "this is for workers alone");
    }

    #[tokio::test]
    async fn what_clients_send_leaves_workers_their_own_budget() {
        let launches = Launches::new();
        let connections = Connections::new(8, 1, Arriving::new(100), outgoing(), Arc::downgrade(&launches));
        let client = admit(&connections).unwrap();
        let mut filled = client.connection().arriving_share();
        filled.grow(100).unwrap();
        assert!(admit(&connections).unwrap().connection().arriving_share().grow(1).is_err());
        let _launch = launches.enter(&WorkerId::new("w"), std::process::id());
        let worker = admit_peer(&connections, Peer::Process(std::process::id())).unwrap();
        worker.connection().arriving_share().grow(100).unwrap();
    }
}
