//! The open connections of a listener: how many there may be, and which of them makes room for a new one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::{sync::Notify, time::Instant};

use super::budget::{Budget, Exhausted, Share};

/// How many connections beyond the limit may be open for the moment that evicted ones take to close.
const CLOSING: usize = 16;

/// The open connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    limit: usize,
    /// What the requests of one connection may hold, in bytes.
    connection_bytes: usize,
    /// What all requests that are still arriving hold, on all listeners.
    arriving: Arc<Budget>,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    last: AtomicU64,
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
    id: u64,
    connection: Arc<Connection>,
    connections: Arc<Connections>,
}

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// What its requests hold: those that arrive, and those that wait for their answer.
    budget: Arc<Budget>,
    arriving: Arc<Budget>,
    peer: Option<u32>,
    requests: AtomicUsize,
    /// Whether it ever had a request.
    has_served: AtomicBool,
    opened: Instant,
    /// When its last request ended, in milliseconds after `opened`.
    idle_since: AtomicU64,
    evicted: AtomicBool,
    eviction: Notify,
}

impl Connections {
    pub(crate) fn new(limit: usize, connection_bytes: usize, arriving: Arc<Budget>) -> Arc<Self> {
        let (open, last) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { limit, connection_bytes, arriving, open, last })
    }

    /// Makes room for a connection of this process, where it is known, if need be by closing one that has no request open.
    pub(crate) fn admit(self: &Arc<Self>, peer: Option<u32>) -> Admission {
        let mut open = self.lock();
        if open.len() >= self.limit + CLOSING || (open.len() >= self.limit && !evict(&open)) {
            return Admission::Refused { limit: self.limit };
        }
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            budget: Arc::new(Budget::new(self.connection_bytes)),
            arriving: Arc::clone(&self.arriving),
            peer,
            requests: AtomicUsize::new(0),
            has_served: AtomicBool::new(false),
            opened: Instant::now(),
            idle_since: AtomicU64::new(0),
            evicted: AtomicBool::new(false),
            eviction: Notify::new(),
        });
        open.insert(id, Arc::clone(&connection));
        Admission::Admitted(Slot { id, connection, connections: Arc::clone(self) })
    }

    /// No code under this lock panics half-way through a change, so a poisoned table is still whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the connection to close that can best be spared: one that never had a request, else the one that has been idle
/// longest. `false`: all are busy.
fn evict(open: &HashMap<u64, Arc<Connection>>) -> bool {
    let idle = open.values().filter(|connection| {
        connection.requests.load(Ordering::Relaxed) == 0 && !connection.evicted.load(Ordering::Relaxed)
    });
    let spared = idle
        .min_by_key(|connection| (connection.has_served.load(Ordering::Relaxed), connection.idle_since()));
    if let Some(connection) = spared {
        connection.evicted.store(true, Ordering::Relaxed);
        connection.eviction.notify_one();
    }
    spared.is_some()
}

impl Slot {
    pub(crate) const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.id);
    }
}

impl Connection {
    /// The process at the other end, of connections over a Unix socket.
    pub(crate) const fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// Counts a request as open until the guard is dropped.
    pub(crate) fn begin_request(self: &Arc<Self>) -> OpenRequest {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.has_served.store(true, Ordering::Relaxed);
        OpenRequest(Arc::clone(self))
    }

    /// Ready when the connection shall make room for another.
    pub(crate) async fn evicted(&self) {
        self.eviction.notified().await;
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
        Share::of(Arc::clone(&self.arriving))
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
pub(crate) struct OpenRequest(Arc<Connection>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let connection = &self.0;
        let since = u64::try_from(connection.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        connection.idle_since.store(since, Ordering::Relaxed);
        connection.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn admit(connections: &Arc<Connections>) -> Option<Slot> {
        match connections.admit(None) {
            Admission::Admitted(slot) => Some(slot),
            Admission::Refused { .. } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_takes_the_place_of_the_one_that_can_best_be_spared() {
        let connections = Connections::new(3, 1, Arc::new(Budget::new(1)));
        let (busy, idle, silent) =
            (admit(&connections).unwrap(), admit(&connections).unwrap(), admit(&connections).unwrap());
        let _request = busy.connection().begin_request();
        drop(idle.connection().begin_request());
        tokio::time::advance(Duration::from_secs(1)).await;
        let is_evicted = |slot: &Slot| slot.connection().evicted.load(Ordering::Relaxed);
        let first = admit(&connections).unwrap();
        let _of_first = first.connection().begin_request();
        assert_eq!([&busy, &idle, &silent].map(is_evicted), [false, false, true]);
        silent.connection().evicted().await;
        drop(silent);
        let second = admit(&connections).unwrap();
        let _of_second = second.connection().begin_request();
        assert_eq!([&busy, &idle, &first].map(is_evicted), [false, true, false]);
        // It is asked once, and has not left yet.
        assert!(admit(&connections).is_none());
    }

    #[tokio::test]
    async fn busy_connections_are_not_spared_and_places_are_given_back() {
        let connections = Connections::new(2, 1, Arc::new(Budget::new(1)));
        let (one, other) = (admit(&connections).unwrap(), admit(&connections).unwrap());
        let _requests = [one.connection().begin_request(), other.connection().begin_request()];
        assert!(admit(&connections).is_none());
        drop(other);
        assert!(admit(&connections).is_some());
    }
}
