//! Sessions in Redis, shared by several hosts.
//!
//! ```text
//!   RedisBackend ── change: load, do it here, write back if nobody else wrote ──┐
//!        |                                                                      ├── scripts ── Redis
//!   the watches of this host <── follow: read on what is published ─────────────┘
//! ```
//!
//! Each step is a script, which Redis runs as one. Redis lets sessions expire by itself, so all hosts see them end at
//! the same moment. What is to be done to a session is the same as on every backend and is done here, in Rust; a script
//! then writes the outcome, unless the session changed meanwhile. All keys begin with the prefix in braces:
//!
//! | key | what |
//! | --- | --- |
//! | `{snakepit}:s:ID` | a session, a hash: `born`, `rev`, `seq`, `mark`, `ttl`, `meta`, `worker`, `holds`, `far`, `v:` variables, `p:` programs |
//! | `{snakepit}:d:ID` | what is seldom read of it, a hash: `h:` older versions of variables, `d:` data of programs |
//! | `{snakepit}:w:BORN` | its log of changes while somebody watches it, a stream |
//! | `{snakepit}:ids`, `:due`, `:held` | all sessions: by id, by when they may have expired, and what they hold |
//! | `{snakepit}:g:NAME`, `:globals` | a global program, and what all of them hold |
//! | `{snakepit}:totals`, `:log` | what all of it holds and what happened; the sessions that came and went last |

use std::{fmt, sync::Arc, time::Duration};

use snakepit_session::{Session, SessionError, SessionLimits};
use tokio::task::JoinSet;

mod backend;
mod change;
mod codec;
mod follow;
mod globals;
mod link;
mod mend;
mod plan;
mod scripts;
mod start;

use change::StripedLocks;
use follow::Follower;
use link::Link;

/// How to use a Redis server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// What all keys and channels begin with, in braces; letters, digits and `-_.:@/`. Hosts that say the same share their sessions. `snakepit` by
    /// default.
    pub prefix: String,
    /// How long Redis may take to accept a connection, and to answer. 5 seconds by default.
    pub timeout: Duration,
    /// How long a server may take to be there at the start, or to load its data. 10 seconds by default.
    pub start_wait: Duration,
    /// What tells this host from the others in what they remember of workers. Random by default, which is right unless two
    /// backends are one host.
    pub host: String,
    /// How long the changes of a watched session are kept for a host that does not read them. One that is out of reach
    /// for longer misses changes, of which its watchers are told. A minute by default.
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

/// Sessions in Redis 7 or newer, shared by all hosts that use the same server, database and prefix.
///
/// * [`SessionStats`](snakepit_session::SessionStats) count what all hosts did; [`SessionEvents`](snakepit_session::SessionEvents) tell it to
///   all of them, a little later. A host that was cut off is told afterwards, as far as the last thousand events go.
/// * [`SessionLimits`] are for all hosts together, but for `max_watches`, which is for each host. Hosts should have the
///   same ones: each keeps its own.
/// * A watcher that is told how many updates it lost is told of those of all variables of the session, watched or not,
///   where its host was too late to read them.
/// * TTLs are counted in whole milliseconds, by the clock of Redis.
/// * [`Session::last_worker`](snakepit_session::Session::last_worker) of a session that another host served last is `WORKER@HOST`,
///   which is no worker of this one.
/// * Redis must not evict keys by itself (`maxmemory-policy noeviction`, which is checked at the start). A session of
///   which it evicted any part counts as expired.
/// * When Redis lost writes, in a failover or a restart, watchers are told that something is lost, and then what the
///   variables are now. No write is based on a state that was lost.
///
/// While Redis is out of reach, every operation answers [`SessionError::Backend`]; the backend recovers by itself. When
/// the connection breaks during a write, its error does not say whether the write was done.
pub struct RedisBackend {
    link: Link,
    limits: SessionLimits,
    lease: Duration,
    /// What the workers of this host are remembered with.
    host: String,
    locks: StripedLocks,
    follower: Arc<Follower>,
    /// Follows what happens; ends with the backend.
    _tasks: JoinSet<()>,
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, limits, .. } = self;
        let mut shown = f.debug_struct("RedisBackend");
        shown.field("address", &link.address()).field("root", &link.root()).field("limits", limits);
        shown.finish_non_exhaustive()
    }
}

impl RedisBackend {
    /// Connects to a server: `redis://[user:password@]host[:port][/database][?prefix=PREFIX]`, or
    /// `redis+unix:///path[?db=DATABASE&user=USER&pass=PASSWORD&prefix=PREFIX]` for a Unix domain socket. A server that is
    /// not there yet, or loads its data, is waited for. Must be called in a tokio runtime with IO and time, which must
    /// live as long as the backend.
    ///
    /// # Errors
    /// [`SessionError::Backend`] when the URL is invalid or the server cannot be used: it is out of reach, older than
    /// Redis 7, a read-only replica, or the user may not run what sessions need.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is left behind.
    pub async fn connect(
        url: &str,
        config: RedisConfig,
        limits: SessionLimits,
    ) -> Result<Self, SessionError> {
        let link = start::connect(url, &config).await?;
        let lease = config.watch_lease;
        let follower = Arc::new(Follower::new(link.clone(), lease));
        let subscription = follower.subscribe().await?;
        follower.begin().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&follower).run(subscription));
        Ok(Self {
            link,
            limits,
            lease,
            host: config.host,
            locks: StripedLocks::new(),
            follower,
            _tasks: tasks,
        })
    }

    /// A worker as it is remembered for all hosts: ids of workers are unique in their own host only.
    fn remembered(&self, worker: &str) -> String {
        format!("{worker}@{}", self.host)
    }

    /// A remembered worker: its id if it is one of this host, else that with its host. Of one that an earlier version
    /// remembered, nobody knows the host.
    fn worker(&self, remembered: &str) -> Option<Arc<str>> {
        let (worker, host) = remembered.rsplit_once('@')?;
        Some(if host == self.host { worker.into() } else { remembered.into() })
    }

    /// With its worker as this host names it.
    fn as_seen_here(&self, mut session: Session) -> Session {
        session.last_worker = session.last_worker.and_then(|worker| self.worker(&worker));
        session
    }

    const fn full(&self, size: usize) -> SessionError {
        SessionError::BackendFull { size, limit: self.limits.max_total_bytes }
    }
}

/// A TTL for Redis: what is left of a millisecond is a whole one.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Some time between nothing and this, so that hosts that got into each other's way do not do so again.
fn jitter(longest: Duration) -> Duration {
    let (_, random) = uuid::Uuid::new_v4().as_u64_pair();
    longest.mul_f64(f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
