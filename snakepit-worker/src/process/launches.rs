//! [`Launches`], the launches of a host. With it, the host checks that a process belongs to one of its workers (ADR 17).
//!
//! This project's workers read a one-time token from their control channel and present it. The host checks with `SO_PEERCRED`
//! that the presenting process belongs to the launch. Foreign workers do not know the token, so each of them gets a separate
//! TCP listener, and the host looks up the peer process of every connection to it.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use snakepit_registry::Announcer;
use tokio::{net::TcpListener, sync::SetOnce};
use tokio_util::sync::CancellationToken;

use super::lineage;
use crate::WorkerId;

/// Serves the host's API to the worker of one launch, on the launch's listener, until the launch [ends](Launch::ended).
pub type ServeLaunch = Box<dyn Fn(TcpListener, Arc<Launch>) + Send + Sync>;

/// The launches of a host. Share one value between the host ([`Builder::launches`]) and the launchers whose workers may
/// register tools with that host.
///
/// [`Builder::launches`]: https://docs.rs/snakepit-server/latest/snakepit_server/struct.Builder.html#method.launches
#[derive(Default)]
pub struct Launches {
    live: Mutex<Vec<Weak<Launch>>>,
    /// The launches whose token is unused, by token.
    unclaimed: Mutex<HashMap<String, Arc<Launch>>>,
    serve: OnceLock<ServeLaunch>,
}

/// One launch of a worker. It begins before the process starts, and ends when the process is reaped.
#[derive(Debug)]
pub struct Launch {
    id: WorkerId,
    /// The pid of the worker's process, which is also the id of its process group.
    leader_pid: SetOnce<u32>,
    ended: CancellationToken,
    announcer: Announcer,
}

/// Ends the launch when dropped.
#[derive(Debug)]
pub(super) struct LaunchGuard {
    launch: Arc<Launch>,
    launches: Arc<Launches>,
    /// Empty if the launch has no token.
    token: String,
    /// Keeps the launch's announcer alive.
    _announcer_alive: Arc<()>,
}

impl Launches {
    /// Creates an empty set of launches.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Sets the function that serves workers without a token. Calls after the first have no effect.
    pub fn serve_with(&self, serve: ServeLaunch) {
        // If several hosts share the launches, the first host serves these workers.
        let _ = self.serve.set(serve);
    }

    /// Begins a launch whose worker authenticates with the guard's token.
    pub(super) fn begin(self: &Arc<Self>, id: &WorkerId) -> LaunchGuard {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let mut guard = self.begin_without_token(id);
        lock(&self.unclaimed).insert(token.clone(), Arc::clone(&guard.launch));
        guard.token = token;
        guard
    }

    /// Begins a launch whose worker connects to a separate listener. Returns the listener's address.
    ///
    /// # Errors
    /// If no host serves such workers, or no port is free.
    pub(super) async fn begin_with_listener(
        self: &Arc<Self>,
        id: &WorkerId,
    ) -> Result<(LaunchGuard, SocketAddr), String> {
        let serve = self.serve.get().ok_or("no host serves the connections of foreign workers")?;
        let failed = |error: std::io::Error| {
            format!("cannot listen on 127.0.0.1 for its connections to the host: {error}")
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let guard = self.begin_without_token(id);
        serve(listener, Arc::clone(&guard.launch));
        Ok((guard, address))
    }

    fn begin_without_token(self: &Arc<Self>, id: &WorkerId) -> LaunchGuard {
        let announcer_alive = Arc::new(());
        let launch = Arc::new(Launch {
            id: id.clone(),
            leader_pid: SetOnce::new(),
            ended: CancellationToken::new(),
            announcer: Announcer::new(id.shared(), &announcer_alive),
        });
        let mut live = lock(&self.live);
        live.retain(|launch| launch.strong_count() > 0);
        live.push(Arc::downgrade(&launch));
        drop(live);
        LaunchGuard {
            launch,
            launches: Arc::clone(self),
            token: String::new(),
            _announcer_alive: announcer_alive,
        }
    }

    /// Redeems a token that the process `peer_pid` presents. Returns `None` if the token is unknown or used, or if the process does
    /// not belong to the launch. Either outcome invalidates a known token.
    ///
    /// # Cancel safety
    /// Cancel safe. Dropping the future leaves the token unused.
    pub async fn claim(&self, token: &str, peer_pid: u32) -> Option<Arc<Launch>> {
        let launch = lock(&self.unclaimed).get(token).map(Arc::clone)?;
        let leader_pid = launch.leader_pid().await?;
        // No await from here on, which makes this function cancel safe.
        lock(&self.unclaimed).remove(token)?;
        let is_member = lineage::belongs_to_launch(peer_pid, leader_pid);
        if !is_member {
            tracing::warn!(worker = %launch.id, pid = peer_pid, "a process outside of the launch presented a worker's token");
        }
        is_member.then_some(launch)
    }

    /// Returns the live launch that a process belongs to. Reads `/proc`.
    #[must_use]
    pub fn find_by_pid(&self, pid: u32) -> Option<Arc<Launch>> {
        let live: Vec<_> = lock(&self.live).iter().filter_map(Weak::upgrade).collect();
        let lineage = lineage::Lineage::of(pid);
        live.into_iter().find(|launch| {
            !launch.ended.is_cancelled()
                && launch.leader_pid.get().is_some_and(|leader_pid| lineage.includes(*leader_pid))
        })
    }

    /// Adds a launch for an existing process. Dropping the returned guard ends the launch.
    #[cfg(feature = "test-util")]
    pub fn add_process(self: &Arc<Self>, id: &WorkerId, pid: u32) -> impl Drop + use<> {
        let guard = self.begin(id);
        guard.record_pid(pid);
        guard
    }
}

impl fmt::Debug for Launches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launches").finish_non_exhaustive()
    }
}

impl Launch {
    /// The id of the worker.
    #[must_use]
    pub const fn id(&self) -> &WorkerId {
        &self.id
    }

    /// The worker's identity in the tool registry.
    #[must_use]
    pub const fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// Waits until the process has started and returns its pid, or `None` if the launch has ended.
    async fn leader_pid(&self) -> Option<u32> {
        tokio::select! {
            pid = self.leader_pid.wait() => Some(*pid),
            () = self.ended() => None,
        }
    }

    /// Waits until the process is reaped or has failed to start. Cancel safe.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Returns a token that is cancelled when the process is reaped or has failed to start.
    #[must_use]
    pub fn end(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Whether a process of this launch owns the peer end of a TCP connection, accepted at `local` from `peer` on this machine.
    /// Returns true for every process on systems other than Linux, which do not expose the owner.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn owns(&self, peer: SocketAddr, local: SocketAddr) -> bool {
        let Some(leader_pid) = self.leader_pid().await else { return false };
        // Reading `/proc` takes milliseconds on a machine with many processes.
        let owns = move || lineage::owns_connection(leader_pid, peer, local);
        tokio::task::spawn_blocking(owns).await.unwrap_or(false)
    }
}

impl LaunchGuard {
    /// The one-time token, or an empty string if the worker connects to a separate listener.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Records the pid of the started process.
    pub(super) fn record_pid(&self, pid: u32) {
        // Each launch starts one process, so the value is unset.
        let _ = self.launch.leader_pid.set(pid);
    }
}

impl Drop for LaunchGuard {
    fn drop(&mut self) {
        self.launch.ended.cancel();
        lock(&self.launches.unclaimed).remove(&self.token);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_valid_once_and_for_its_own_launch() {
        let launches = Launches::new();
        let (ours, others) =
            (launches.begin(&WorkerId::new("ours")), launches.begin(&WorkerId::new("others")));
        ours.record_pid(std::process::id());
        // Process 1 is an ancestor of this process, not a member of its launch.
        others.record_pid(std::process::id());
        assert!(launches.claim("", std::process::id()).await.is_none());
        assert!(launches.claim(others.token(), 1).await.is_none(), "the process is outside of the launch");
        assert!(launches.claim(others.token(), std::process::id()).await.is_none(), "the token was used");
        let launch = launches.claim(ours.token(), std::process::id()).await.unwrap();
        assert_eq!(launch.id().as_str(), "ours");
        assert!(launches.claim(ours.token(), std::process::id()).await.is_none());
        assert!(launches.find_by_pid(std::process::id()).is_some() && launches.find_by_pid(1).is_none());
    }

    #[tokio::test]
    async fn a_claim_that_is_cancelled_leaves_the_token_unused() {
        let launches = Launches::new();
        let guard = launches.begin(&WorkerId::new("w"));
        {
            // The process has not started yet.
            let mut cancelled = std::pin::pin!(launches.claim(guard.token(), std::process::id()));
            assert!(futures_util::poll!(cancelled.as_mut()).is_pending());
        }
        guard.record_pid(std::process::id());
        assert!(launches.claim(guard.token(), std::process::id()).await.is_some());
    }

    #[tokio::test]
    async fn an_ended_launch_has_no_token_announcer_or_process() {
        let launches = Launches::new();
        let guard = launches.begin(&WorkerId::new("w"));
        let (launch, token) = (Arc::clone(&guard.launch), guard.token().to_owned());
        guard.record_pid(std::process::id());
        assert!(launch.announcer().is_alive());
        drop(guard);
        launch.ended().await;
        assert!(!launch.announcer().is_alive());
        assert!(launches.claim(&token, std::process::id()).await.is_none());
        assert!(launches.find_by_pid(std::process::id()).is_none());
    }

    #[tokio::test]
    async fn a_listener_needs_a_host() {
        let problem = Launches::new().begin_with_listener(&WorkerId::new("w")).await.unwrap_err();
        assert_eq!(problem, "no host serves the connections of foreign workers");
    }
}
