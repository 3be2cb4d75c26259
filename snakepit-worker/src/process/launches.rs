//! Which workers a host has launched and not lost, and how a process proves that it is one of them.
//!
//! This project's workers present a one-time token, which they alone find on their control channel, from a process of their
//! launch. Other workers cannot: each gets a TCP listener of its own, and the host looks up which process is at the other end
//! of every connection to it.

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

/// Serves the host to the worker of one launch, on that launch's listener, until the launch has [ended](Launch::ended).
pub type ServeLaunch = Box<dyn Fn(TcpListener, Arc<Launch>) + Send + Sync>;

/// The launches of a host. Share one between the host ([`Builder::launches`]) and the launchers whose workers may register
/// their tools with it.
///
/// [`Builder::launches`]: https://docs.rs/snakepit-server/latest/snakepit_server/struct.Builder.html#method.launches
#[derive(Default)]
pub struct Launches {
    live: Mutex<Vec<Weak<Launch>>>,
    /// Those whose token was not used.
    unclaimed: Mutex<HashMap<String, Arc<Launch>>>,
    serve: OnceLock<ServeLaunch>,
}

/// One launch of a worker: from right before its process starts until that process is reaped.
#[derive(Debug)]
pub struct Launch {
    id: WorkerId,
    /// The process that was started. It leads a process group.
    leader: SetOnce<u32>,
    ended: CancellationToken,
    announcer: Announcer,
}

/// Ends the launch when dropped.
#[derive(Debug)]
pub(super) struct LaunchGuard {
    launch: Arc<Launch>,
    launches: Arc<Launches>,
    /// Empty for a launch without one.
    token: String,
    _life: Arc<()>,
}

impl Launches {
    /// No launches yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Sets how workers that cannot present a token are served. Only the first call counts.
    pub fn serve_with(&self, serve: ServeLaunch) {
        // A second one is a second host, whose workers are launched elsewhere.
        let _ = self.serve.set(serve);
    }

    /// Begins a launch whose worker proves itself by the guard's token.
    pub(super) fn begin(self: &Arc<Self>, id: &WorkerId) -> LaunchGuard {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let mut guard = self.begin_without_token(id);
        lock(&self.unclaimed).insert(token.clone(), Arc::clone(&guard.launch));
        guard.token = token;
        guard
    }

    /// Begins a launch whose worker is served by a listener of its own, at the address returned.
    ///
    /// # Errors
    /// When no host serves such workers, or there is no port.
    pub(super) async fn begin_with_listener(
        self: &Arc<Self>,
        id: &WorkerId,
    ) -> Result<(LaunchGuard, SocketAddr), String> {
        let serve = self.serve.get().ok_or("its host serves no such workers")?;
        let failed =
            |error: std::io::Error| format!("cannot listen on 127.0.0.1 for it to call back: {error}");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let guard = self.begin_without_token(id);
        serve(listener, Arc::clone(&guard.launch));
        Ok((guard, address))
    }

    fn begin_without_token(self: &Arc<Self>, id: &WorkerId) -> LaunchGuard {
        let life = Arc::new(());
        let launch = Arc::new(Launch {
            id: id.clone(),
            leader: SetOnce::new(),
            ended: CancellationToken::new(),
            announcer: Announcer::new(id.shared(), &life),
        });
        let mut live = lock(&self.live);
        live.retain(|launch| launch.strong_count() > 0);
        live.push(Arc::downgrade(&launch));
        drop(live);
        LaunchGuard { launch, launches: Arc::clone(self), token: String::new(), _life: life }
    }

    /// Takes the token of a launch, from the process that presents it. It is good for no second use, whatever becomes of
    /// this one. `None`: there is no such token, or the process does not belong to its launch.
    ///
    /// # Cancel safety
    /// A claim that is dropped before it is ready leaves the token unused.
    pub async fn claim(&self, token: &str, peer: u32) -> Option<Arc<Launch>> {
        let launch = lock(&self.unclaimed).get(token).map(Arc::clone)?;
        let leader = launch.leader().await?;
        // Nothing is awaited from here on.
        lock(&self.unclaimed).remove(token)?;
        let includes = lineage::belongs(peer, leader);
        if !includes {
            tracing::warn!(worker = %launch.id, pid = peer, "a process that is not of its launch presented a worker's token");
        }
        includes.then_some(launch)
    }

    /// The launch that a process belongs to, if that has not ended. Reads /proc.
    #[must_use]
    pub fn of_process(&self, pid: u32) -> Option<Arc<Launch>> {
        let live: Vec<_> = lock(&self.live).iter().filter_map(Weak::upgrade).collect();
        let lineage = lineage::Lineage::of(pid);
        live.into_iter().find(|launch| {
            !launch.ended.is_cancelled()
                && launch.leader.get().is_some_and(|leader| lineage.includes(*leader))
        })
    }

    /// Enters a process as that of a worker's launch, until the guard is dropped.
    #[cfg(feature = "test-util")]
    pub fn enter(self: &Arc<Self>, id: &WorkerId, leader: u32) -> impl Drop + use<> {
        let guard = self.begin(id);
        guard.started(leader);
        guard
    }
}

impl fmt::Debug for Launches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launches").finish_non_exhaustive()
    }
}

impl Launch {
    /// The worker that is launched.
    #[must_use]
    pub const fn id(&self) -> &WorkerId {
        &self.id
    }

    /// The worker as the registry knows it.
    #[must_use]
    pub const fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    /// The process that leads it, once that is started. `None`: the launch has ended.
    async fn leader(&self) -> Option<u32> {
        tokio::select! {
            leader = self.leader.wait() => Some(*leader),
            () = self.ended() => None,
        }
    }

    /// Waits until its process is reaped, or was never started. Cancel safe.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Cancelled once its process is reaped, or was never started.
    #[must_use]
    pub fn end(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Whether a process of this launch is at the other end of a connection that was accepted at `local` from `peer`, both on
    /// this machine. Where the system does not tell (all but Linux), every process is believed.
    pub async fn owns(&self, peer: SocketAddr, local: SocketAddr) -> bool {
        let Some(leader) = self.leader().await else { return false };
        // It reads /proc, which takes milliseconds on a machine with many processes.
        let owns = move || lineage::owns_connection(leader, peer, local);
        tokio::task::spawn_blocking(owns).await.unwrap_or(false)
    }
}

impl LaunchGuard {
    /// Empty when the worker is served by a listener of its own.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// The process is there.
    pub(super) fn started(&self, leader: u32) {
        // It is started once.
        let _ = self.launch.leader.set(leader);
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
    async fn a_token_is_good_once_and_for_its_own_launch() {
        let launches = Launches::new();
        let (ours, others) =
            (launches.begin(&WorkerId::new("ours")), launches.begin(&WorkerId::new("others")));
        ours.started(std::process::id());
        // Process 1 is the ancestor of this one, and so no member of its launch.
        others.started(std::process::id());
        assert!(launches.claim("", std::process::id()).await.is_none());
        assert!(launches.claim(others.token(), 1).await.is_none(), "a stranger has the token");
        assert!(launches.claim(others.token(), std::process::id()).await.is_none(), "it was used");
        let launch = launches.claim(ours.token(), std::process::id()).await.unwrap();
        assert_eq!(launch.id().as_str(), "ours");
        assert!(launches.claim(ours.token(), std::process::id()).await.is_none());
        assert!(launches.of_process(std::process::id()).is_some() && launches.of_process(1).is_none());
    }

    #[tokio::test]
    async fn a_claim_that_is_cancelled_leaves_the_token_unused() {
        let launches = Launches::new();
        let guard = launches.begin(&WorkerId::new("w"));
        {
            // The process is not known yet.
            let mut cancelled = std::pin::pin!(launches.claim(guard.token(), std::process::id()));
            assert!(futures_util::poll!(cancelled.as_mut()).is_pending());
        }
        guard.started(std::process::id());
        assert!(launches.claim(guard.token(), std::process::id()).await.is_some());
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_launch_that_ended() {
        let launches = Launches::new();
        let guard = launches.begin(&WorkerId::new("w"));
        let (launch, token) = (Arc::clone(&guard.launch), guard.token().to_owned());
        guard.started(std::process::id());
        assert!(launch.announcer().lives());
        drop(guard);
        launch.ended().await;
        assert!(!launch.announcer().lives());
        assert!(launches.claim(&token, std::process::id()).await.is_none());
        assert!(launches.of_process(std::process::id()).is_none());
    }

    #[tokio::test]
    async fn without_a_host_nobody_is_served() {
        let problem = Launches::new().begin_with_listener(&WorkerId::new("w")).await.unwrap_err();
        assert_eq!(problem, "its host serves no such workers");
    }
}
