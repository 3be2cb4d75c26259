//! [`Launches`], the launches of a host. With it, the host checks that a process belongs to one of its workers (ADR 17).
//!
//! This project's workers read a one-time token from their control channel and present it. The host checks with `SO_PEERCRED`
//! that the presenting process belongs to the launch. Foreign workers do not know the token, so each of them gets a separate
//! TCP listener, and the host looks up the peer process of every connection to it.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use snakepit_proto::launch::{self as contract, HostMessage};
use snakepit_registry::Announcer;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, SetOnce},
};
use tokio_util::sync::CancellationToken;

use super::{
    host_access::HostAccess,
    lineage::{self, Leader, Lineage},
    telemetry::WorkerTelemetry,
};
use crate::{WorkerError, WorkerId};

/// Limits the concurrent lookups of a connection's process, because each of them may read all of `/proc`.
static CONNECTION_LOOKUPS: Semaphore = Semaphore::const_new(8);

/// Serves the host's API to the worker of one launch, on the launch's listener, until the launch [ends](Launch::ended).
pub type ServeLaunch = Box<dyn Fn(TcpListener, Arc<Launch>) + Send + Sync>;

/// The launches of a host. Launchers add launches through their [`HostAccess`](super::HostAccess), and the host redeems the
/// tokens of their workers.
#[derive(Default)]
pub struct Launches {
    live: Mutex<Vec<Weak<Launch>>>,
    /// The launches whose token is unused, by token.
    unclaimed: Mutex<HashMap<String, Arc<Launch>>>,
    serve: OnceLock<ServeLaunch>,
    pub(super) telemetry: WorkerTelemetry,
}

/// The process that leads a launch. Its descendants and its process group belong to the launch too.
#[derive(Debug, Clone, Copy)]
enum LaunchLeader {
    /// The worker's process.
    Process(Leader),
    /// The launcher does not know the pid of the worker.
    Unknown,
}

/// One launch of a worker. It begins before the process starts, and ends when the process is reaped.
#[derive(Debug)]
pub struct Launch {
    id: WorkerId,
    /// Set when the process has started.
    leader: SetOnce<LaunchLeader>,
    ended: CancellationToken,
    announcer: Announcer,
}

/// The admission of one worker to the host. Dropping it ends the admission: its token becomes invalid, its listener
/// closes, and other workers of the pool may redefine its tools.
///
/// Call [`record_pid`](Self::record_pid) with the pid of the process, or [`accept_any_process`](Self::accept_any_process) if the
/// launcher does not know it. The host does not answer the worker's registration before that.
///
/// [`arguments`](Self::arguments), [`environment`](Self::environment) and [`first_line`](Self::first_line) are the parts of
/// the launch contract that concern the host, for workers with this project's runtime.
#[must_use = "dropping the guard ends the admission"]
pub struct LaunchGuard {
    launch: Arc<Launch>,
    launches: Arc<Launches>,
    /// Empty if the launch has no token.
    token: String,
    run_id: Arc<str>,
    /// The host's address, as `unix:/path` or `host:port`.
    address: String,
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

    /// Returns the access that launchers need, to the host that serves on this socket. `run_id` is the id of its
    /// [`RunDir`](super::RunDir).
    #[must_use]
    pub fn host_access(self: &Arc<Self>, socket: &Path, run_id: &str) -> HostAccess {
        HostAccess::new(Arc::clone(self), socket, run_id)
    }

    /// Begins a launch whose worker connects to the host's socket and authenticates with the guard's token.
    pub(super) fn begin(self: &Arc<Self>, id: &WorkerId, socket: &Path, run_id: &Arc<str>) -> LaunchGuard {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let mut guard = self.begin_without_token(id, format!("unix:{}", socket.display()), run_id);
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
        run_id: &Arc<str>,
    ) -> Result<(LaunchGuard, SocketAddr), WorkerError> {
        let no_server = || WorkerError::no_host("no host serves the connections of foreign workers");
        let serve = self.serve.get().ok_or_else(no_server)?;
        let failed = |error: std::io::Error| {
            WorkerError::no_host("cannot listen on 127.0.0.1 for its connections to the host")
                .with_source(error)
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let guard = self.begin_without_token(id, address.to_string(), run_id);
        serve(listener, Arc::clone(&guard.launch));
        Ok((guard, address))
    }

    fn begin_without_token(
        self: &Arc<Self>,
        id: &WorkerId,
        address: String,
        run_id: &Arc<str>,
    ) -> LaunchGuard {
        let announcer_alive = Arc::new(());
        let launch = Arc::new(Launch {
            id: id.clone(),
            leader: SetOnce::new(),
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
            run_id: Arc::clone(run_id),
            address,
            _announcer_alive: announcer_alive,
        }
    }

    /// Redeems a token that the process `peer_pid` presents. Returns `None` if the token is unknown or used, or if the process
    /// does not belong to the launch. A known token is invalid afterwards, even if the process was rejected.
    ///
    /// # Cancel safety
    /// Cancel safe. Dropping the future leaves the token unused.
    pub async fn claim(&self, token: &str, peer_pid: u32) -> Option<Arc<Launch>> {
        let launch = lock(&self.unclaimed).get(token).map(Arc::clone)?;
        let leader = launch.leader().await?;
        // No await from here on, which makes this function cancel safe.
        lock(&self.unclaimed).remove(token)?;
        // Without a pid, the token is the only proof. It does not cover other connections of the peer, which may be a tunnel that
        // several workers and clients share.
        let is_member = match leader {
            LaunchLeader::Process(leader) => lineage::belongs_to_launch(peer_pid, leader),
            LaunchLeader::Unknown => true,
        };
        if !is_member {
            tracing::warn!(worker = %launch.id, pid = peer_pid, "a process outside of the launch presented a worker's token");
        }
        is_member.then_some(launch)
    }

    /// Returns the live launch that a process belongs to. Reads `/proc`.
    #[must_use]
    pub fn find_by_pid(&self, pid: u32) -> Option<Arc<Launch>> {
        let live: Vec<_> = lock(&self.live).iter().filter_map(Weak::upgrade).collect();
        let mut leaders: Vec<_> =
            live.iter().filter_map(|launch| Some((launch, launch.running_process()?))).collect();
        let oldest_start = leaders.iter().map(|(_, leader)| leader.start_time).min()?;
        let lineage = Lineage::of(pid, oldest_start);
        leaders.retain(|(_, leader)| lineage.includes(*leader));
        leaders.first().map(|(launch, _)| Arc::clone(launch))
    }

    /// Returns the live launch whose process, or a descendant of it, holds the peer end of a TCP connection, which was accepted
    /// from `peer` at the address `local`, if that is known. Returns `None` if the peer is on another machine, belongs to another
    /// user, or is in another network namespace, and on systems other than Linux.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn find_by_connection(
        self: &Arc<Self>,
        peer: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Option<Arc<Launch>> {
        let permit = CONNECTION_LOOKUPS.acquire().await.ok()?;
        let launches = Arc::clone(self);
        let find = move || {
            let _permit = permit;
            launches.find_by_socket(&lineage::sockets(peer, local))
        };
        // Reading `/proc` takes milliseconds on a machine with many processes.
        tokio::task::spawn_blocking(find).await.ok().flatten()
    }

    fn find_by_socket(&self, sockets: &[String]) -> Option<Arc<Launch>> {
        if sockets.is_empty() {
            return None;
        }
        let live: Vec<_> = lock(&self.live).iter().filter_map(Weak::upgrade).collect();
        let pids: Vec<_> =
            live.iter().filter_map(|launch| Some((launch, launch.running_process()?.pid))).collect();
        if pids.is_empty() {
            return None;
        }
        // Usually the process of the launch itself holds the socket.
        let leaders = pids.iter().find(|(_, pid)| lineage::has_socket(*pid, sockets));
        leaders.map(|(launch, _)| Arc::clone(launch)).or_else(|| {
            lineage::processes()
                .filter(|pid| lineage::has_socket(*pid, sockets))
                .find_map(|pid| self.find_by_pid(pid))
        })
    }

    /// Adds a launch for an existing process. Dropping the returned guard ends the launch.
    #[cfg(feature = "test-util")]
    pub fn add_process(self: &Arc<Self>, id: &WorkerId, pid: u32) -> impl Drop + use<> {
        let guard = self.begin(id, Path::new("/"), &Arc::from(""));
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

    /// Waits until the process has started. Returns `None` if the launch ends before.
    async fn leader(&self) -> Option<LaunchLeader> {
        tokio::select! {
            leader = self.leader.wait() => Some(*leader),
            () = self.ended() => None,
        }
    }

    /// The worker's process, once it is known and until the launch ends.
    fn running_process(&self) -> Option<Leader> {
        match self.leader.get() {
            Some(LaunchLeader::Process(leader)) if !self.ended.is_cancelled() => Some(*leader),
            _ => None,
        }
    }

    /// Waits until the process is reaped or has failed to start. Cancel safe.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Returns a token that is cancelled when the process is reaped or has failed to start.
    #[must_use]
    pub fn ended_token(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Whether a process of this launch owns the peer end of a TCP connection, accepted at `local` from `peer` on this machine.
    /// Returns true for every process on systems other than Linux, which do not expose the owner.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn owns(&self, peer: SocketAddr, local: SocketAddr) -> bool {
        let Some(LaunchLeader::Process(leader)) = self.leader().await else { return false };
        // Reading `/proc` takes milliseconds on a machine with many processes.
        let owns = move || lineage::owns_connection(leader, peer, local);
        tokio::task::spawn_blocking(owns).await.unwrap_or(false)
    }
}

impl LaunchGuard {
    /// The one-time token with which the worker registers on the host's socket. Empty if the worker connects to a listener of
    /// its own. Pass it in a way that other users cannot read, so neither as an argument nor in the environment.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The address at which the worker calls the host: `unix:/path` or `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Records the pid of the started process. From now on, the host accepts this process, its descendants and its process
    /// group as the worker. No effect after the first call to this method or [`accept_any_process`](Self::accept_any_process).
    pub fn record_pid(&self, pid: u32) {
        let _ = self.launch.leader.set(LaunchLeader::Process(Leader::new(pid)));
    }

    /// Accepts the first connection that presents the token as the worker's, for launchers that do not know the pid: the worker
    /// runs in a container, or connects through a tunnel. The token alone then proves the identity of the worker, so the host
    /// treats every other connection of that process as a client's. A listener of
    /// [`HostAccess::admit_on_listener`](super::HostAccess::admit_on_listener) then rejects all connections, because it needs the
    /// pid.
    pub fn accept_any_process(&self) {
        let _ = self.launch.leader.set(LaunchLeader::Unknown);
    }

    /// The arguments of the launch contract: the port, the host's address and the run id.
    #[must_use]
    pub fn arguments(&self) -> [String; 6] {
        let arguments = [contract::ARG_PORT, "0", contract::ARG_HOST_ADDRESS, &self.address];
        let [a, b, c, d] = arguments.map(str::to_owned);
        [a, b, c, d, contract::ARG_RUN_ID.to_owned(), self.run_id.to_string()]
    }

    /// The environment variables of the launch contract. They announce that standard input is the control channel, a socket
    /// whose other end the launcher keeps open: end-of-file ends the worker.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            (contract::ENV_RUN_ID, self.run_id.to_string()),
            (contract::ENV_WORKER_ID, self.launch.id.to_string()),
            (contract::ENV_CONTROL, contract::CONTROL_STDIN.to_owned()),
            (contract::ENV_HOST_VERSION, contract::VERSION.to_owned()),
        ]
    }

    /// The first line on the control channel, with the token and a line feed. Write it before the process starts. Empty if
    /// the worker connects to a separate listener.
    #[must_use]
    pub fn first_line(&self) -> Vec<u8> {
        if self.token.is_empty() {
            return Vec::new();
        }
        let message = HostMessage::Launched { token: self.token.clone() };
        // A message of text fields always serializes.
        let mut line = serde_json::to_vec(&message).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

impl fmt::Debug for LaunchGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keeps the token out of logs.
        f.debug_struct("LaunchGuard").field("worker", &self.launch.id).finish_non_exhaustive()
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

    fn begin(launches: &Arc<Launches>, id: &str) -> LaunchGuard {
        launches.begin(&WorkerId::new(id), Path::new("/host.sock"), &"run".into())
    }

    #[tokio::test]
    async fn a_launcher_that_does_not_know_the_pid_leaves_the_proof_to_the_token() {
        let launches = Launches::new();
        let (known, unknown) = (begin(&launches, "known"), begin(&launches, "unknown"));
        known.record_pid(std::process::id());
        known.accept_any_process();
        assert!(launches.claim(known.token(), 1).await.is_none(), "the pid is known");
        assert!(launches.find_by_pid(1).is_none());
        unknown.accept_any_process();
        let launch = launches.claim(unknown.token(), 1).await.unwrap();
        assert_eq!(launch.id().as_str(), "unknown");
        assert!(launches.find_by_pid(1).is_none(), "the process may be a tunnel of other clients");
        assert!(launches.claim(unknown.token(), 1).await.is_none(), "the token was used");
        let local = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(!launch.owns(local, local).await, "a listener needs a process");
    }

    #[tokio::test]
    async fn the_parts_of_the_launch_contract_name_the_host_and_the_worker() {
        let guard = begin(&Launches::new(), "w");
        assert_eq!(
            guard.arguments().join(" "),
            "--port 0 --elixir-address unix:/host.sock --snakepit-run-id run"
        );
        assert!(guard.environment().contains(&("SNAKEPIT_WORKER_ID", "w".to_owned())));
        let line = String::from_utf8(guard.first_line()).unwrap();
        assert!(line.contains(guard.token()) && line.ends_with("}\n"), "{line}");
        assert!(!format!("{guard:?}").contains(guard.token()), "logs must not contain the token");
    }

    #[tokio::test]
    async fn a_token_is_valid_once_and_for_its_own_launch() {
        let launches = Launches::new();
        let (ours, others) = (begin(&launches, "ours"), begin(&launches, "others"));
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

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_process_of_a_connection_belongs_to_its_launch() {
        let launches = Launches::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        let client = tokio::net::TcpStream::connect(local).await.unwrap();
        let (_accepted, peer) = listener.accept().await.unwrap();
        assert_eq!(client.local_addr().unwrap(), peer);
        assert!(launches.find_by_connection(peer, Some(local)).await.is_none(), "no worker has started");
        let guard = begin(&launches, "w");
        guard.record_pid(std::process::id());
        for local in [Some(local), None] {
            let launch = launches.find_by_connection(peer, local).await.unwrap();
            assert_eq!(launch.id().as_str(), "w");
        }
        drop(client);
        let remote = SocketAddr::from(([192, 0, 2, 1], 9));
        assert!(launches.find_by_connection(remote, Some(local)).await.is_none(), "another machine");
    }

    #[tokio::test]
    async fn a_claim_that_is_cancelled_leaves_the_token_unused() {
        let launches = Launches::new();
        let guard = begin(&launches, "w");
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
        let guard = begin(&launches, "w");
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
        let problem = Launches::new().begin_with_listener(&WorkerId::new("w"), &"".into()).await.unwrap_err();
        assert_eq!(
            problem.to_string(),
            "worker cannot call a host: no host serves the connections of foreign workers"
        );
    }
}
