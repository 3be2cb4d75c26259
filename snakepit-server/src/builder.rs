//! Configures and starts a host.

use std::{
    fmt,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};
use snakepit_pool::{Pool, PoolConfig, PoolError};
use snakepit_proto::headers::MAX_TIMEOUT;
use snakepit_registry::{FnTool, Registry, ToolHandler};
use snakepit_session::{MemoryBackend, SessionBackend, SessionLimits};
use snakepit_worker::{
    ProcessConfig, ProcessLauncher, WorkerLauncher,
    process::{Launches, RunDir, WorkerProgram, reap_orphans},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::server::HealthReporter;

use crate::{
    Snakepit, StartError, grpc,
    host::Host,
    listen::{self, ArrivalBudgets, ListenLimits, ResponseBudget, default_connections},
    python::Interpreter,
    snakepit::Service,
};

/// The interval at which the host frees the memory of expired sessions. Callers cannot reach a session after it expires.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The default limit for the requests of one connection, in bytes.
const CONNECTION_BYTES: usize = 256 * 1024 * 1024;

/// Configures a host: [`Snakepit::builder`](crate::Snakepit::builder).
#[derive(Default)]
#[must_use = "a builder does nothing until `start` is awaited"]
pub struct Builder {
    adapter: Option<String>,
    worker_command: Option<Vec<String>>,
    launcher: Option<Arc<dyn WorkerLauncher>>,
    launches: Option<Arc<Launches>>,
    python: Option<PathBuf>,
    environment: Vec<(String, String)>,
    start_timeout: Option<Duration>,
    plain_calls: bool,
    reap_orphans: bool,
    run_dir: Option<PathBuf>,
    pool: PoolConfig,
    listen: Option<String>,
    allow_remote: bool,
    max_connections: Option<usize>,
    connection_bytes: Option<usize>,
    sessions: Option<Arc<dyn SessionBackend>>,
    host_tools: Vec<FnTool>,
}

impl Builder {
    /// Sets the adapter class that workers serve, as `module.path:Class`. The module must be an installed package or be in
    /// `PYTHONPATH` ([`env`](Self::env)).
    pub fn adapter(mut self, adapter: impl Into<String>) -> Self {
        self.adapter = Some(adapter.into());
        self
    }

    /// Runs this command as the worker instead of this project's Python runtime. Any program that implements the wire
    /// contract works. The host appends the arguments of the contract (`--port`, `--elixir-address`, ...).
    ///
    /// Such a worker calls the host over TCP. Each worker gets its own loopback listener, which serves only the RPCs that a
    /// worker needs. On Linux, the host looks up the process behind each connection, and closes the connection unless the
    /// process is the command or one of its descendants and runs as the same user. Other systems do not offer this lookup, so
    /// every process of the machine can connect to the listener while the worker runs.
    pub fn worker_command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.worker_command = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Sets a custom launcher for workers. The host cannot authenticate such workers, so they cannot register tools. Register
    /// their tools with [`Snakepit::register_tools`].
    pub fn launcher(mut self, launcher: Arc<dyn WorkerLauncher>) -> Self {
        self.launcher = Some(launcher);
        self
    }

    /// Sets the launches whose workers may register tools with this host. You need it only if you create a
    /// [`ProcessLauncher`](snakepit_worker::ProcessLauncher), which must have the same launches.
    pub fn launches(mut self, launches: Arc<Launches>) -> Self {
        self.launches = Some(launches);
        self
    }

    /// Sets the Python interpreter, which must have the package `snakepit_bridge`. The default is
    /// [`find_python`](crate::find_python).
    pub fn python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// Sets an environment variable of the workers, which also inherit the variables of this process. For example,
    /// `PYTHONPATH` makes adapters available that are not installed.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the whole configuration of the pool, and overrides earlier calls of methods for single settings of it.
    /// `concurrency` must be 1 with [`adapter`](Self::adapter), because a Python worker runs one call at a time.
    pub fn pool(mut self, config: PoolConfig) -> Self {
        self.pool = config;
        let timeout = self.pool.default_timeout;
        self.default_timeout(timeout)
    }

    /// Sets the number of workers, 1 to 1024. [`PoolConfig`] has the default.
    pub const fn workers(mut self, workers: usize) -> Self {
        self.pool.workers = workers;
        self
    }

    /// Limits the number of calls that wait for a worker. The host rejects further calls immediately.
    pub const fn queue_limit(mut self, limit: usize) -> Self {
        self.pool.queue_limit = limit;
        self
    }

    /// Limits the total size of the arguments of waiting calls, in bytes. The host rejects further calls immediately. The
    /// default is 512 MiB, from [`PoolConfig`].
    ///
    /// The same limit applies separately to
    ///
    /// - requests of clients that are still arriving,
    /// - requests of workers that are still arriving,
    /// - answers that clients over TCP have not read,
    /// - answers that all other clients have not read.
    pub const fn queue_bytes(mut self, bytes: usize) -> Self {
        self.pool.queue_bytes = bytes;
        self
    }

    /// Limits the size of one client connection's requests that are arriving, waiting or running, in bytes. The default is
    /// 256 MiB.
    ///
    /// The same limit applies to large answers that the client has not read. Further answers wait, and the host drops values
    /// of tools above twice the limit. A single request or answer may exceed the limit. Messages that are arriving on streams
    /// may use 32 MiB more, so that the host can reject calls one by one and need not end their stream.
    pub const fn connection_bytes(mut self, bytes: usize) -> Self {
        self.connection_bytes = Some(bytes);
        self
    }

    /// Limits the number of client connections over TCP. The minimum is 1. The Unix socket accepts half as many in addition.
    /// The default depends on the process's limit of open files, see [`default_connections`].
    ///
    /// Above the limit, the host closes the connection that has been idle longest for each new one, or the new one if all are
    /// in use. A connection is in use while it has an open request. The shared stream of calls counts only while a call runs
    /// on it. A watch always counts.
    ///
    /// Clients of this project reconnect with their next call. If a call crosses with the close of its connection, they send it
    /// again a few times. If the host closes connections more often, the call fails without having run.
    pub const fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = Some(connections);
        self
    }

    /// Sets the deadline of calls without one, for Python tools and host tools. The maximum is [`MAX_TIMEOUT`]. `None` means
    /// no deadline. [`PoolConfig`] has the default.
    pub fn default_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.pool.default_timeout = timeout.map(|timeout| timeout.min(MAX_TIMEOUT));
        self
    }

    /// Limits the time from the launch of a worker until it accepts calls. The maximum is [`MAX_TIMEOUT`].
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout.min(MAX_TIMEOUT));
        self
    }

    /// Limits the time that a stopping worker has to exit, including Python's finalization and `atexit` functions. The host
    /// then kills it. The maximum is one day. [`PoolConfig`] has the default.
    pub const fn stop_grace(mut self, grace: Duration) -> Self {
        self.pool.stop_grace = grace;
        self
    }

    /// Reaps children of this process that are not workers. Use it in a program that is PID 1 of a container: processes that
    /// tools daemonize become its children and would remain zombies. Do not use it in a program that starts other processes,
    /// because it also takes their exit statuses.
    pub const fn reap_orphans(mut self, reap: bool) -> Self {
        self.reap_orphans = reap;
        self
    }

    /// Enables the shared stream of calls to each worker that supports it. This is the default. Without it, each call is a
    /// separate RPC, which costs several times as much. Disable it to find out whether the stream causes a problem.
    pub const fn multiplex(mut self, multiplex: bool) -> Self {
        self.plain_calls = !multiplex;
        self
    }

    /// Serves gRPC on this TCP address. Port 0 selects a free port ([`Snakepit::address`]). Without an address, only processes
    /// of this user can connect, through [`Snakepit::socket`].
    pub fn listen(self, address: SocketAddr) -> Self {
        self.listen_on(address.to_string())
    }

    /// Like [`listen`](Self::listen), with a host name or address and a port, such as `localhost:50051`. The host resolves the
    /// name when it starts, and listens on the first address that it can bind.
    pub fn listen_on(mut self, host_and_port: impl Into<String>) -> Self {
        self.listen = Some(host_and_port.into());
        self
    }

    /// Allows an address that other machines can reach. Connections are not encrypted.
    pub const fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }

    /// Sets the parent directory of the host's run directory, which contains its sockets and its ledger of worker processes.
    pub fn run_dir(mut self, base: impl Into<PathBuf>) -> Self {
        self.run_dir = Some(base.into());
        self
    }

    /// Sets the backend that stores sessions. The default is a [`MemoryBackend`].
    pub fn sessions(mut self, backend: Arc<dyn SessionBackend>) -> Self {
        self.sessions = Some(backend);
        self
    }

    /// Registers a typed async closure as a tool for Python and for clients. Arguments and result are serde types. Arguments
    /// have names, so `A` is a struct or a map. Host tools and Python tools share one namespace, so the name must be unique.
    pub fn host_tool<A, R, E, F, Fut>(self, name: &str, tool: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        E: fmt::Display + Send + 'static,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        self.fn_tool(FnTool::typed(name, tool))
    }

    /// Registers a host tool with more options than [`host_tool`](Self::host_tool): a description, parameters, the context of
    /// the call, or a stream of results.
    pub fn fn_tool(mut self, tool: FnTool) -> Self {
        self.host_tools.push(tool);
        self
    }

    /// Starts the host and waits until every worker accepts calls.
    ///
    /// The host lives as long as the tokio runtime in which it starts. Afterwards, every call fails with
    /// [`NoRuntime`](snakepit_registry::ToolError::NoRuntime).
    ///
    /// # Errors
    /// [`StartError`], after everything that had started has stopped. [`PoolError::NoRuntime`] outside a tokio runtime.
    ///
    /// # Cancel safety
    /// If the future is dropped, a background task of the runtime kills the started workers. Use
    /// [`start_unless`](Self::start_unless) to wait for their exit.
    pub async fn start(self) -> Result<Snakepit, StartError> {
        self.start_unless(std::future::pending()).await
    }

    /// Like [`start`](Self::start), but stops if `cancelled` completes before the workers are ready, for example because a
    /// signal arrived.
    ///
    /// # Errors
    /// [`StartError::Cancelled`] in that case, and the errors of `start`. Everything that had started has stopped when this
    /// returns.
    pub async fn start_unless(self, cancelled: impl Future<Output = ()>) -> Result<Snakepit, StartError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(PoolError::NoRuntime.into());
        }
        let mut cancelled = pin!(cancelled);
        // Cancelling before everything is composed needs no cleanup beyond dropping the future.
        let python = self.python.clone().map_or_else(Interpreter::find, Interpreter::named);
        let (snakepit, health) = tokio::select! {
            composed = self.compose(&python) => composed?,
            () = &mut cancelled => return Err(StartError::Cancelled),
        };
        let started = tokio::select! {
            ready = snakepit.pool.ready() => ready.map_err(|error| python.explain(error)),
            () = cancelled => Err(StartError::Cancelled),
        };
        if let Err(error) = started {
            // The error of the start takes precedence.
            let _ended = snakepit.shutdown_within(Duration::ZERO).await;
            return Err(error);
        }
        // Health checks report "serving" from here until the shutdown begins.
        let (hidden, stop) = (snakepit.service.hidden.clone(), snakepit.service.stop.clone());
        let following = grpc::follow_readiness(health, snakepit.pool.readiness(), hidden, stop).await;
        snakepit.service.tasks.spawn(following);
        Ok(snakepit)
    }

    /// Composes the host and begins to launch the workers. All steps that can fail or await come first. After the first task
    /// or worker has started, no step fails or awaits, so an error or a dropped future leaves nothing behind.
    async fn compose(self, python: &Interpreter) -> Result<(Snakepit, HealthReporter), StartError> {
        let foreign_worker = self.worker_command.is_some();
        let program = match (self.worker_command, self.adapter) {
            (Some(argv), adapter) => Some(WorkerProgram::Command { argv, adapter }),
            (None, Some(adapter)) => Some(WorkerProgram::Python { python: python.path.clone(), adapter }),
            (None, None) => None,
        };
        if program.is_some() == self.launcher.is_some() {
            return Err(config(match program {
                Some(_) => {
                    "`Builder::launcher` excludes `Builder::adapter` and `Builder::worker_command`; call one of them"
                }
                None => {
                    "nothing to run; call `Builder::adapter` with `module.path:Class`, or `Builder::worker_command`"
                }
            }));
        }
        if let Some(WorkerProgram::Python { .. }) = program
            && self.pool.concurrency != 1
        {
            return Err(config(
                "`PoolConfig::concurrency` is not 1, but a Python worker runs one call at a time; set it to 1, or call \
                 `Builder::workers` for more workers",
            ));
        }
        // Workers of a custom launcher may need no descriptors.
        if program.is_some() {
            listen::check_descriptor_limit(self.pool.workers).map_err(|problem| config(&problem))?;
        }
        let registry = Registry::new();
        for tool in self.host_tools {
            registry.register_host_tool(tool)?;
        }
        let sessions =
            self.sessions.unwrap_or_else(|| Arc::new(MemoryBackend::new(SessionLimits::default())));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let timeout = self.pool.default_timeout;
        let launches = self.launches.unwrap_or_default();
        let host =
            Arc::new(Host::new(sessions, registry, Arc::clone(&launches), timeout, &tasks, stop.clone()));
        let (routes, health) = grpc::routes(Arc::clone(&host)).await;

        // The host listens before it launches workers, because workers call the host while they start.
        let tcp = match &self.listen {
            Some(address) => Some(listen::bind_tcp(address, self.allow_remote).await?),
            None => None,
        };
        let address = tcp.as_ref().map(listen::local_address).transpose()?;
        // Blocks: it waits for other starting hosts, and may scan all processes.
        let base = self.run_dir;
        let created = tokio::task::spawn_blocking(move || RunDir::create(base.as_deref())).await;
        let run_dir =
            created.map_err(|error| config(&format!("the run directory cannot be made: {error}")))?;
        let run_dir = Arc::new(run_dir?);

        let processes = program.map(|program| {
            let mut config = ProcessConfig::new(program);
            config.multiplex = !self.plain_calls;
            config.env = self.environment;
            if let Some(timeout) = self.start_timeout {
                config.start_timeout = timeout;
            }
            config.stop_grace = self.pool.stop_grace;
            Arc::new(ProcessLauncher::new(config, Arc::clone(&run_dir), launches))
        });
        let launcher = match &processes {
            Some(processes) => Arc::clone(processes) as Arc<dyn WorkerLauncher>,
            None => self.launcher.ok_or_else(|| config("no launcher"))?,
        };
        let limits = ListenLimits {
            connections: self.max_connections.unwrap_or_else(|| default_connections(self.pool.workers)),
            connection_bytes: self.connection_bytes.unwrap_or(CONNECTION_BYTES),
            arriving: ArrivalBudgets::new(self.pool.queue_bytes),
            unread: Arc::new(ResponseBudget::new(self.pool.queue_bytes)),
            unread_local: Arc::new(ResponseBudget::new(self.pool.queue_bytes)),
            launches: Arc::downgrade(&host.launches),
        };
        // Weak, because the host owns the launches.
        let (weak, launch_tasks, launch_limits) = (Arc::downgrade(&host), tasks.clone(), limits.clone());
        host.launches.serve_with(Box::new(move |listener, launch| {
            if let Some(host) = weak.upgrade() {
                let routes = grpc::worker_routes(host, Arc::clone(&launch));
                listen::serve_launch(&launch_tasks, routes, listener, &launch_limits, launch);
            }
        }));
        let serve = {
            let (tasks, routes, limits, stop) = (tasks.clone(), routes.clone(), limits.clone(), stop.clone());
            move |path: &Path| {
                let listener = listen::bind_unix(path)?;
                listen::serve_unix(&tasks, routes.clone(), listener, &limits, stop.clone());
                Ok(())
            }
        };
        run_dir
            .serve_host_socket(serve)
            .map_err(|error| listen::unix_failed(run_dir.host_socket(), error))?;
        let pool = match Pool::start(self.pool, launcher) {
            Ok(pool) => Arc::new(pool),
            Err(error) => {
                stop.cancel();
                return Err(error.into());
            }
        };
        host.set_pool(&pool);
        if foreign_worker {
            // Foreign workers register tools only with their first call, so calls of unknown tools must reach them.
            let tool: Arc<dyn ToolHandler> = pool.tool();
            host.registry.set_fallback(&pool.status().name, tool);
        }

        if let Some(listener) = tcp {
            listen::serve_tcp(&tasks, routes.clone(), listener, &limits, stop.clone());
        }
        tasks.spawn(sweep(Arc::clone(&host), stop.clone()));
        tasks.spawn(host.keep());
        if self.reap_orphans {
            let (run_dir, stop) = (Arc::clone(&run_dir), stop.clone());
            tasks.spawn(async move {
                if let Err(error) = reap_orphans(run_dir, stop).await {
                    tracing::error!(%error, "cannot reap orphaned processes of tools");
                }
            });
        }
        let hidden = stop.child_token();
        let service = Arc::new(Service {
            life: Arc::default(),
            hidden,
            stop,
            tasks,
            address,
            launcher: processes,
            run_dir,
        });
        Ok((Snakepit::new(host, pool, service), health))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("adapter", &self.adapter)
            .field("worker_command", &self.worker_command)
            .field("python", &self.python)
            .field("pool", &self.pool)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

fn config(problem: &str) -> StartError {
    StartError::Config { problem: problem.to_owned() }
}

/// Frees the memory of expired sessions periodically.
async fn sweep(host: Arc<Host>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // A panic of the backend must not end the task.
            _ = ticks.tick() => match AssertUnwindSafe(host.sessions.sweep()).catch_unwind().await {
                Ok(Ok(0)) => {}
                Ok(Ok(expired)) => tracing::debug!(expired, "sessions expired"),
                Ok(Err(error)) => tracing::warn!(%error, "failed to sweep expired sessions"),
                Err(_) => tracing::error!("the sweep of expired sessions panicked; the next one is tried"),
            },
        }
    }
}
