//! A session backend that several hosts share through Redis.
//!
//! ```text
//!   RedisBackend ── change: load, modify, store if unchanged, or retry ─────────┐
//!        |                                                                      ├── scripts ── Redis
//!   the watches of this host <── follow: read changes from the log ─────────────┘
//! ```
//!
//! Writes use optimistic concurrency: Rust code that all backends share computes the result, and a Lua script stores it if the
//! revision of the session is unchanged. Each script is atomic. Redis expires sessions, so all hosts see a session end
//! at the same time. All keys begin with the prefix in braces:
//!
//! | key | contents |
//! | --- | --- |
//! | `{snakepit}:s:ID` | a session, a hash: `born`, `rev`, `seq`, `mark`, `ttl`, `meta`, `worker`, `counted`, `holds`, `far`, `v:` variables, `p:` programs |
//! | `{snakepit}:d:ID` | its rarely read parts, a hash: `h:` older versions of variables, `d:` data of programs |
//! | `{snakepit}:w:BORN` | its log of changes while it is watched, a stream |
//! | `{snakepit}:ids`, `:due`, `:held` | indexes of sessions: by id, by possible expiry, and their sizes |
//! | `{snakepit}:g:NAME`, `:globals` | a global program, and the sizes of all global programs |
//! | `{snakepit}:totals`, `:log` | counters; the log of recent lifecycle events |
//!
//! The fields of a session are `born` (its incarnation: a random id), `rev` (the random revision of the last commit), `seq` (the
//! number of the last change), `mark` (the revision that made that change), `holds` (size, counts and incarnation),
//! `far` (the number of rarely read fields), and `counted` (the revision of the commit that wrote `holds` and `far`).
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

use std::{fmt, sync::Arc, time::Duration};

use snakepit_session::{Session, SessionError, SessionLimits};
use tokio::task::JoinSet;

mod backend;
mod change;
mod connection;
mod follow;
mod globals;
mod plan;
mod repair;
mod scripts;
mod start;

use change::StripedLocks;
use connection::Connection;
use follow::Follower;

/// The maximum size that is decoded on a runtime thread, in bytes.
const MAX_INLINE_DECODE: usize = 1024 * 1024;

/// The configuration of a [`RedisBackend`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisConfig {
    /// The prefix of all keys and channels: letters, digits and `-_.:@/`. Hosts with the same prefix share their sessions.
    /// `snakepit` by default.
    pub prefix: String,
    /// The timeout for Redis connections and replies. 5 seconds by default.
    pub timeout: Duration,
    /// The maximum time to wait at startup for a server that is starting or loading its data. 10 seconds by default.
    pub start_wait: Duration,
    /// The name of this host in the last worker of sessions. Random by default. Set it only if two backends belong to one host.
    pub host: String,
    /// The time for which Redis keeps the log of a watched session if no host reads it. Watchers of a host that is disconnected
    /// for longer may receive `Lost`. A minute by default.
    pub watch_lease: Duration,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            prefix: "snakepit".to_owned(),
            timeout: Duration::from_secs(5),
            start_wait: Duration::from_secs(10),
            host: format!("{:08x}", uuid::Uuid::new_v4().as_u64_pair().0 >> 32),
            watch_lease: Duration::from_secs(60),
        }
    }
}

/// The setters, one per field.
impl RedisConfig {
    /// Sets the field [`prefix`](Self#structfield.prefix).
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the field [`timeout`](Self#structfield.timeout).
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the field [`start_wait`](Self#structfield.start_wait).
    #[must_use]
    pub const fn start_wait(mut self, start_wait: Duration) -> Self {
        self.start_wait = start_wait;
        self
    }

    /// Sets the field [`host`](Self#structfield.host).
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    /// Sets the field [`watch_lease`](Self#structfield.watch_lease).
    #[must_use]
    pub const fn watch_lease(mut self, watch_lease: Duration) -> Self {
        self.watch_lease = watch_lease;
        self
    }
}

/// Sessions in Redis 7 or newer, shared by all hosts that use the same server, database and prefix.
///
/// * [`SessionStats`](snakepit_session::SessionStats) count the operations of all hosts.
/// * [`SessionEvents`](snakepit_session::SessionEvents) reach all hosts, a little later. A host that was disconnected receives up to
///   the last thousand events afterwards.
/// * [`SessionLimits`] apply to all hosts together, except `max_watches`, which applies to each host. Each host checks its own limits,
///   so configure them identically.
/// * The number of lost updates may include updates of variables that are not watched, if the host read them too late.
/// * TTLs are whole milliseconds, by the Redis clock.
/// * [`Session::last_worker`](snakepit_session::Session::last_worker) is `WORKER@HOST` if another host served the session last.
/// * Redis must not evict keys (`maxmemory-policy noeviction`, which is checked at startup). A session that lost a part to
///   eviction counts as expired.
/// * If Redis loses writes, in a failover or a restart, watchers receive `Lost` and then the current variables. No write is based
///   on lost state.
///
/// While Redis is unreachable, every operation fails with [`SessionError::Backend`]. The backend reconnects automatically. If the
/// connection breaks during a write, the write may have been applied.
///
/// # Example
/// ```no_run
/// use snakepit_session::{NewSession, SessionBackend, SessionError, SessionId, SessionLimits};
/// use snakepit_session_redis::{RedisBackend, RedisConfig};
///
/// # async fn example() -> Result<(), SessionError> {
/// let config = RedisConfig::default().prefix("shop");
/// let backend = RedisBackend::connect("redis://localhost:6379", config, SessionLimits::default()).await?;
/// backend.create(&SessionId::try_new("alice")?, NewSession::default()).await?;
/// # Ok(())
/// # }
/// ```
pub struct RedisBackend {
    connection: Connection,
    limits: SessionLimits,
    watch_lease: Duration,
    /// The name of this host in the last worker of sessions.
    host: String,
    locks: StripedLocks,
    follower: Arc<Follower>,
    /// The follower task, which ends with the backend.
    _tasks: JoinSet<()>,
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connection, limits, .. } = self;
        let mut output = f.debug_struct("RedisBackend");
        output
            .field("address", &connection.address())
            .field("root", &connection.root())
            .field("limits", limits);
        output.finish_non_exhaustive()
    }
}

impl RedisBackend {
    /// Connects to a server: `redis://[user:password@]host[:port][/database][?prefix=PREFIX]`, or
    /// `redis+unix:///path[?db=DATABASE&user=USER&pass=PASSWORD&prefix=PREFIX]` for a Unix domain socket. Waits for a server that is
    /// starting or loading its data. Must be called in a tokio runtime with IO and time, which must outlive the backend.
    ///
    /// # Errors
    /// [`SessionError::Backend`] if the URL is invalid, or the server is unreachable, older than Redis 7, or a read-only replica, or
    /// the user lacks permissions.
    ///
    /// # Cancel safety
    /// Cancel safe. Dropping the future closes the connection.
    pub async fn connect(
        url: &str,
        config: RedisConfig,
        limits: SessionLimits,
    ) -> Result<Self, SessionError> {
        let connection = start::connect(url, &config).await?;
        let watch_lease = config.watch_lease;
        let follower = Arc::new(Follower::new(connection.clone(), watch_lease));
        let subscription = follower.subscribe().await?;
        follower.skip_past_events().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&follower).run(subscription));
        Ok(Self {
            connection,
            limits,
            watch_lease,
            host: config.host,
            locks: StripedLocks::new(),
            follower,
            _tasks: tasks,
        })
    }

    /// The stored form of a worker's id, which is unique only within its host.
    fn stored_worker(&self, worker: &str) -> String {
        format!("{worker}@{}", self.host)
    }

    /// Parses a stored worker. Returns its id if it belongs to this host, or else id and host. Returns `None` for the format of
    /// earlier versions, which did not contain the host.
    fn parse_worker(&self, stored_worker: &str) -> Option<Arc<str>> {
        let (worker, host) = stored_worker.rsplit_once('@')?;
        Some(if host == self.host { worker.into() } else { stored_worker.into() })
    }

    /// Converts the last worker to this host's view.
    fn localize_last_worker(&self, mut session: Session) -> Session {
        session.last_worker = session.last_worker.and_then(|worker| self.parse_worker(&worker));
        session
    }

    const fn backend_full(&self, size: usize) -> SessionError {
        SessionError::BackendFull { size, limit: self.limits.max_total_bytes }
    }
}

/// Converts a TTL to milliseconds, rounded up.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Waits before a retry, with jitter. The first attempt does not wait.
async fn back_off(attempt: u32) {
    const MAX_DELAY: Duration = Duration::from_millis(20);
    if attempt > 0 {
        tokio::time::sleep(jitter(MAX_DELAY.min(Duration::from_micros(500) * attempt))).await;
    }
}

/// Decodes a session of `size` bytes. Above [`MAX_INLINE_DECODE`], uses a blocking thread, because decoding takes milliseconds.
async fn decode_sized<T: Send + 'static>(
    size: usize,
    decode: impl FnOnce() -> Result<T, SessionError> + Send + 'static,
) -> Result<T, SessionError> {
    if size <= MAX_INLINE_DECODE {
        return decode();
    }
    let decoded = tokio::task::spawn_blocking(decode).await;
    decoded.unwrap_or_else(|error| Err(SessionError::backend("reading failed").with_source(error)))
}

/// Returns a random delay up to `max`, so that conflicting hosts do not retry together.
fn jitter(max: Duration) -> Duration {
    let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
    max.mul_f64(f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX))
}

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests;
