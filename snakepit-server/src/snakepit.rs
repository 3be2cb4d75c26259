//! The embedding API: a running host in your program.

use std::{net::SocketAddr, ops::Deref, path::Path, sync::Arc, time::Duration};

use snakepit_client::{Caller, Error};
use snakepit_pool::{Pool, PoolError, PoolStatus, Readiness};
use snakepit_registry::{HostToolStatus, ToolError, ToolSpec};
use snakepit_session::{NewSession, SessionBackend, error_chain};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Builder, LocalHost, SessionHandle, TelemetryEvents, TelemetryFilter, TelemetryFilterError, grpc,
    grpc::telemetry::Subscription, host::Host, listen::Mount, routes::Routes,
};

/// A running host with its workers, sessions and gRPC service. Cheap to clone.
///
/// It dereferences to a [`Caller`], whose methods [`execute`](Caller::execute), [`execute_stream`](Caller::execute_stream) and
/// [`call`](Caller::call) run tools.
///
/// Call [`shutdown`](Snakepit::shutdown) for a graceful end. If you drop the last clone instead, the host kills its workers in
/// the background and calls in flight fail. Sessions, calls and streams do not keep the host alive.
///
/// ```
/// use std::sync::Arc;
///
/// use serde::Deserialize;
/// use serde_json::json;
/// use snakepit_server::{FnTool, Snakepit, testing::InProcessWorkers};
///
/// #[derive(Deserialize)]
/// struct Pair {
///     a: i64,
///     b: i64,
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), snakepit_server::Error> {
/// // These workers run Rust closures. `Builder::adapter` starts Python workers.
/// let workers = InProcessWorkers::new().fn_tool(FnTool::typed("add", |pair: Pair| async move { pair.a + pair.b }));
/// let snakepit = Snakepit::builder().launcher(Arc::new(workers)).workers(2).start().await?;
///
/// assert_eq!(snakepit.execute::<i64>("add", json!({"a": 1, "b": 2})).await?, 3);
/// let status = snakepit.status();
/// assert_eq!((status.workers.len(), status.calls.succeeded), (2, 1));
/// snakepit.shutdown().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Snakepit {
    caller: Caller<LocalHost>,
    /// The only strong reference to the pool, so dropping the last clone ends the workers.
    pub(crate) pool: Arc<Pool>,
    pub(crate) service: Arc<Service>,
}

/// The gRPC service. Dropping it stops the service.
#[derive(Debug)]
pub(crate) struct Service {
    /// Cancelled when health checks must report "not serving". A child of `stop`.
    pub(crate) hidden: CancellationToken,
    /// Cancelled when a shutdown begins. A child of `stop`.
    pub(crate) stopping: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) address: Option<SocketAddr>,
    /// The gRPC services for the program's own server.
    pub(crate) mount: Mount,
    pub(crate) launcher: Option<Arc<snakepit_worker::ProcessLauncher>>,
    pub(crate) run_dir: Arc<snakepit_worker::process::RunDir>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The time for calls that were aborted to send their errors before the connections close.
const REPLY_GRACE: Duration = Duration::from_millis(100);

impl Snakepit {
    /// The drain period of [`shutdown`](Self::shutdown).
    pub const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

    /// Returns a builder for a host.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) const fn new(host: Arc<Host>, pool: Arc<Pool>, service: Arc<Service>) -> Self {
        Self { caller: Caller::new(LocalHost::new(host)), pool, service }
    }

    const fn host(&self) -> &Arc<Host> {
        self.caller.host().inner()
    }

    /// The host as a [`tower::Service`] of [`ToolCall`](crate::ToolCall)s, for use in another stack. Its calls go through the
    /// [layers](Builder::layer) of the builder.
    ///
    /// Use it in your own listener, and set [`ToolCall::principal`](crate::ToolCall::principal). If the host
    /// [authorizes](Builder::authorize), it denies calls of the service without a principal.
    #[must_use]
    pub fn service(&self) -> LocalHost {
        self.caller.host().clone().without_principal()
    }

    /// Returns a session, and creates it with the default TTL if it does not exist.
    ///
    /// # Errors
    /// [`Error::Session`] if the id is invalid or the backend rejects another session.
    pub async fn session(&self, id: &str) -> Result<SessionHandle, Error> {
        self.session_with(id, NewSession::default()).await
    }

    /// Returns a session, and creates it with this metadata and TTL if it does not exist.
    ///
    /// # Errors
    /// [`Error::Session`] if the id is invalid or the backend rejects another session.
    pub async fn session_with(&self, id: &str, new: NewSession) -> Result<SessionHandle, Error> {
        self.caller.open_session(id, new).await
    }

    /// Returns the session backend, for operations that do not belong to one session, such as statistics, events and global
    /// programs.
    ///
    /// ```
    /// use snakepit_server::{Program, ProgramName, ProgramOwner, Snakepit};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let snakepit = Snakepit::builder().without_workers()
    /// #     .run_dir(dir.path())
    ///     .start().await?;
    /// let (owner, name) = (ProgramOwner::Global, ProgramName::try_new("weights")?);
    /// let program = Program::new(vec![1, 2, 3], "application/octet-stream");
    /// snakepit.sessions().put_program(&owner, &name, program).await?;
    /// assert_eq!(snakepit.sessions().program(&owner, &name).await?.data, vec![1, 2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn sessions(&self) -> &Arc<dyn SessionBackend> {
        &self.host().sessions
    }

    /// Subscribes to events: start and end of calls, and the events that tools emit with `snakepit_bridge.telemetry`. The stream
    /// ends with the host. Worker processes send events only while there are subscribers.
    ///
    /// A subscriber that falls more than 1024 events behind loses the oldest. It then receives the event `telemetry.events.lost`
    /// with the measurement `count`. Each event of a worker has the metadata `worker_id`.
    ///
    /// ```no_run
    /// use futures_util::StreamExt;
    /// use snakepit_server::TelemetryFilter;
    ///
    /// # async fn example(snakepit: snakepit_server::Snakepit) {
    /// let mut events = snakepit.telemetry(TelemetryFilter::new().allow("model.*"));
    /// while let Some(event) = events.next().await {
    ///     println!("{} {:?}", event.name, event.measurements);
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn telemetry(&self, filter: TelemetryFilter) -> TelemetryEvents {
        let stop = self.service.stop.clone().cancelled_owned();
        TelemetryEvents::new(Subscription::new(self.host(), filter), stop)
    }

    /// Sets which events worker processes send, before subscribers filter them. Running workers receive the change. The default is
    /// [`Builder::worker_telemetry`].
    ///
    /// # Errors
    /// If a list of the filter has more than 64 patterns, or patterns of more than 4096 bytes in total. The old filter then stays
    /// in force.
    pub fn set_worker_telemetry(&self, filter: TelemetryFilter) -> Result<(), TelemetryFilterError> {
        self.host().launches.telemetry().set_filter(filter)
    }

    /// Lists the registered tools with their providers: `host`, or the name of a pool.
    #[must_use]
    pub fn tools(&self) -> Vec<(ToolSpec, String)> {
        self.host().registry.tools()
    }

    /// Returns the current state of the pool and its workers.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// Returns the calls of each host tool, ordered by name.
    ///
    /// ```no_run
    /// # async fn example(snakepit: snakepit_server::Snakepit) {
    /// for tool in snakepit.host_tool_status() {
    ///     println!("{}: {} calls, {} failed, {} run now", tool.name, tool.calls, tool.failures, tool.in_flight);
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn host_tool_status(&self) -> Vec<HostToolStatus> {
        self.host().registry.host_tool_status()
    }

    /// The number of panics in readers of call records ([`Builder::on_call_end`]).
    #[must_use]
    pub fn reader_panics(&self) -> u64 {
        self.host().records().panics()
    }

    /// A channel with the current [`Readiness`] of the pool. The channel receives each change: a worker exits or is replaced, or
    /// the shutdown begins. [`hide`](Self::hide) does not change the readiness.
    ///
    /// ```no_run
    /// # async fn example(snakepit: snakepit_server::Snakepit) {
    /// let mut readiness = snakepit.readiness();
    /// while readiness.changed().await.is_ok() {
    ///     // Prints lines such as "degraded (3 of 4 workers up)".
    ///     println!("{}", *readiness.borrow_and_update());
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.pool.readiness()
    }

    /// The TCP address of the gRPC service, if [`Builder::listen`] set one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.service.address
    }

    /// The Unix socket of the gRPC service. Only this user can connect to it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.service.run_dir.host_socket()
    }

    /// The gRPC services of the host as routes for your own tonic or axum server: the bridge service, health checks and
    /// reflection. Clients of this project then connect to that server and use its TLS, authentication and limits. The host does
    /// not need a [listener](Builder::listen) for these clients.
    ///
    /// - Requests have the message limits and deadlines of the listeners, and share the host-wide budgets of their clients
    ///   ([`queue_bytes`](Builder::queue_bytes)). At most 16,384 requests are open at a time, and at most 2048 of them belong to
    ///   one client. Your server limits the number of connections.
    /// - [`connection_bytes`](Builder::connection_bytes) applies to all requests of one connection together. The host knows the
    ///   connection by the peer's address in the extensions of the request: tonic inserts it, and axum does if you serve with
    ///   `into_make_service_with_connect_info::<SocketAddr>()`. Another server can insert `axum::extract::ConnectInfo`. Without
    ///   the address, all requests with the same [`Principal`](crate::Principal) share the limit, so slow clients without a
    ///   principal delay each other.
    /// - If a client reads nothing of a response for 30 seconds, the host drops the rest, and the client receives an error. The
    ///   host drops a stream that its reader has paused only while unread responses use more than half of their budget. Your server
    ///   may keep up to 16 KiB of each dropped response until it closes the connection.
    /// - All peers are clients. They cannot register tools as workers do.
    /// - A shutdown of the host ends the streams of mounted services, and later requests fail with `UNAVAILABLE`. Pass
    ///   [`shutdown_after`](Self::shutdown_after) to your server, so that both shut down together.
    /// - The routes do not keep the workers alive; a [`Snakepit`] does.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// use snakepit_server::Snakepit;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let workers = snakepit_server::testing::InProcessWorkers::new();
    /// let snakepit = Snakepit::builder()
    ///     // or `.adapter("shop:Shop")`
    ///     .launcher(Arc::new(workers))
    ///     .start()
    ///     .await?;
    /// let app = axum::Router::new()
    ///     .route("/", axum::routing::get("the shop"))
    ///     .merge(snakepit.routes().into_axum_router());
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    /// // The host bounds each client by the address of its connection.
    /// let app = app.into_make_service_with_connect_info::<std::net::SocketAddr>();
    /// let signal = async { /* for example `tokio::signal::ctrl_c()` */ };
    /// let shutdown = snakepit.shutdown_after(signal, Snakepit::DEFAULT_DRAIN);
    /// axum::serve(listener, app).with_graceful_shutdown(shutdown).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// For tonic, it is `Server::builder().add_routes(snakepit.routes())`.
    #[must_use]
    pub fn routes(&self) -> Routes {
        self.service.mount.routes(&grpc::SERVICES)
    }

    /// Like [`routes`](Self::routes), without health checks and reflection, for a server that has its own.
    #[must_use]
    pub fn bridge_routes(&self) -> Routes {
        self.service.mount.routes(&grpc::SERVICES[..1])
    }

    /// Replaces all workers (rolling restart), for example after the code of their adapter has changed. In each slot, the old
    /// worker serves calls until the new one is ready, and then finishes its calls. Sessions stay. When every slot has a new
    /// worker, the tools of the new workers replace those of the old ones.
    ///
    /// # Errors
    /// [`PoolError::Start`] if a new worker did not start. Old workers that were not replaced yet remain in service.
    /// [`PoolError::ShutDown`] during and after a shutdown.
    ///
    /// # Cancel safety
    /// The restart continues when the future is dropped. Call it again to wait for a complete one.
    pub async fn restart_workers(&self) -> Result<(), PoolError> {
        self.host().restart_workers(Arc::clone(&self.pool)).await
    }

    /// Makes health checks report "not serving", while the host still answers calls. This is the first step of a graceful
    /// shutdown behind a load balancer. [`shutdown`](Self::shutdown) includes it.
    pub fn hide(&self) {
        self.service.hidden.cancel();
    }

    /// Shuts down gracefully: rejects new calls, lets running calls finish for up to ten seconds, aborts the remaining ones,
    /// stops the workers, and closes the listeners. You may call it more than once.
    ///
    /// Rejected and aborted calls, streams and watches fail with [`ToolError::ShuttingDown`]. The future completes when every
    /// worker process has exited and every connection is closed. A connection with open requests is closed after two seconds
    /// at the latest.
    ///
    /// # Errors
    /// [`Error::Tool`] with [`ToolError::RuntimeEnded`] if the runtime that started the host has shut down. In that
    /// case, the host killed its workers, so no process is left, and running calls could not finish.
    ///
    /// # Cancel safety
    /// If the future is dropped, steps that have begun continue. Call it again to complete the shutdown.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.shutdown_within(Self::DEFAULT_DRAIN).await
    }

    /// Waits for a signal, and then [shuts down](Self::shutdown_within). This is the future for `with_graceful_shutdown` of axum
    /// and tonic's `serve_with_shutdown`, if your server calls the host or mounts its [`routes`](Self::routes).
    ///
    /// The order suits a service behind a load balancer. When the signal arrives, health checks report "not serving", the
    /// host rejects new calls, and running calls finish. The host then ends its streams: calls, watches, and responses that your
    /// handlers derive from them. The future completes when the host has shut down. Only then does your server stop accepting
    /// connections, and its remaining requests are about to end.
    ///
    /// Running calls have `drain` to finish, such as [`DEFAULT_DRAIN`](Self::DEFAULT_DRAIN). The host aborts the remaining
    /// ones.
    ///
    /// End your own streams with [`stopping`](Self::stopping). A client that does not read its responses can keep its connection
    /// to your server open, so bound the time that you wait for the server.
    ///
    /// The future holds a clone of the host. It logs an error of the shutdown; call `shutdown` afterwards to receive it.
    ///
    /// # Cancel safety
    /// As for [`shutdown`](Self::shutdown).
    pub fn shutdown_after<F>(&self, signal: F, drain: Duration) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send,
    {
        let snakepit = self.clone();
        async move {
            signal.await;
            if let Err(error) = snakepit.shutdown_within(drain).await {
                tracing::warn!(error = %error_chain(&error), "the shutdown of the host failed");
            }
        }
    }

    /// Completes when a shutdown of the host begins, or when its last clone is dropped. Use it to end your own streams.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        self.service.stopping.clone().cancelled_owned()
    }

    /// Like [`shutdown`](Self::shutdown), with another drain period.
    ///
    /// # Errors
    /// As for `shutdown`.
    ///
    /// # Cancel safety
    /// As for `shutdown`.
    pub async fn shutdown_within(&self, drain: Duration) -> Result<(), Error> {
        if self.pool.runtime_has_ended() {
            self.service.stop.cancel();
            return Err(ToolError::runtime_ended(false).into());
        }
        self.hide();
        self.service.stopping.cancel();
        // Calls on workers may need host tools and vice versa, so the drain period is the same for both.
        let drain_all = async { tokio::join!(self.pool.shutdown(drain), self.host().drain()) };
        tokio::select! {
            biased;
            _ = drain_all => {}
            () = self.host().sleep(drain) => {}
        }
        self.host().cut_off();
        // Calls that were cut off need a moment to send their errors. The wait is bounded, because a call whose stream the client
        // does not read never ends.
        tokio::select! {
            biased;
            () = self.host().drain() => {}
            () = self.host().sleep(REPLY_GRACE) => {}
        }
        self.pool.shutdown(drain).await;
        if let Some(launcher) = &self.service.launcher {
            launcher.shutdown().await;
        }
        self.service.stop.cancel();
        self.service.tasks.close();
        self.service.tasks.wait().await;
        // The runtime may have ended in the meantime, because a program can wait for the shutdown on another runtime.
        if self.pool.runtime_has_ended() { Err(ToolError::runtime_ended(false).into()) } else { Ok(()) }
    }
}

impl Deref for Snakepit {
    type Target = Caller<LocalHost>;

    fn deref(&self) -> &Self::Target {
        &self.caller
    }
}
