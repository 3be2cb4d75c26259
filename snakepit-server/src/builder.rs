//! Putting a host together: what to run, how many of it, where to listen.

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
    Error, Snakepit, grpc,
    host::Host,
    listen::{self, ArrivalBudgets, ListenLimits, ResponseBudget, default_connections},
    python::Interpreter,
    snakepit::Service,
};

/// How often the memory of expired sessions is reclaimed. They are gone for callers the moment they expire.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// What the requests of one connection may hold by default, in bytes.
const CONNECTION_BYTES: usize = 256 * 1024 * 1024;

/// Prepares a host: [`Snakepit::builder`](crate::Snakepit::builder).
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
    /// The adapter class that workers serve, as `module.path:Class`. Python finds the module where it finds all others:
    /// among its installed packages, and in `PYTHONPATH` ([`env`](Self::env)).
    pub fn adapter(mut self, adapter: impl Into<String>) -> Self {
        self.adapter = Some(adapter.into());
        self
    }

    /// Runs this command as the worker instead of this project's own Python runtime: any program that keeps the wire
    /// contract. The arguments of the contract (`--port`, `--elixir-address`, ...) are appended.
    ///
    /// Such a worker calls the host back over TCP, on a loopback listener of its own that serves what workers need. On Linux the
    /// host looks up the process behind each connection to it, and closes those that do not come from the command or its
    /// descendants, running as the same user. Other systems do not tell: there, every process of the machine can connect to
    /// that listener while the worker runs.
    pub fn worker_command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.worker_command = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Launches workers by other means than child processes. The host cannot tell such workers from other processes, so it takes
    /// no registrations from them: say what they serve by [`Snakepit::register_tools`].
    pub fn launcher(mut self, launcher: Arc<dyn WorkerLauncher>) -> Self {
        self.launcher = Some(launcher);
        self
    }

    /// The launches whose workers may register tools with this host. Needed only for a
    /// [`ProcessLauncher`](snakepit_worker::ProcessLauncher) of your own, which takes the same.
    pub fn launches(mut self, launches: Arc<Launches>) -> Self {
        self.launches = Some(launches);
        self
    }

    /// The Python interpreter, which must have the package `snakepit_bridge`. The default is
    /// [`find_python`](crate::find_python).
    pub fn python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// Sets an environment variable of the workers, which inherit those of this process. `PYTHONPATH` leads to adapters
    /// that are not installed.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// How many workers, 1 to 1024. The default is that of [`PoolConfig`].
    pub const fn workers(mut self, workers: usize) -> Self {
        self.pool.workers = workers;
        self
    }

    /// How many calls may wait for a worker; more are refused at once.
    pub const fn queue_limit(mut self, limit: usize) -> Self {
        self.pool.queue_limit = limit;
        self
    }

    /// What the arguments of calls that wait for a worker may hold together, in bytes; calls beyond are refused at once. As
    /// much again may be held by requests of clients that are still arriving, as much by those of workers, as much by answers that
    /// clients over TCP have not read, and as much by answers to all others. The default is that of [`PoolConfig`], 512 MiB.
    pub const fn queue_bytes(mut self, bytes: usize) -> Self {
        self.pool.queue_bytes = bytes;
        self
    }

    /// What the requests of one client connection may hold until they are answered, in bytes: those that arrive, those that
    /// wait and those that run. Its large answers may hold as much until it has read them; later ones wait, and values of tools
    /// are dropped beyond twice as much. The default is 256 MiB. One request or answer alone is always let through.
    pub const fn connection_bytes(mut self, bytes: usize) -> Self {
        self.connection_bytes = Some(bytes);
        self
    }

    /// How many client connections there may be over TCP, at least 1; half as many again over the Unix socket. Beyond that,
    /// the connection that has been idle longest is closed for each new one, and when all are in use the new one is. A
    /// connection is in use while a request is open; a stream that clients share for calls counts only while calls of it run, a
    /// watch always. Clients of this project connect again with their next call, and send one that arrived too late again, a few
    /// times; it fails, without having run, where connections are closed more often. The default follows from the process's
    /// limit of open files and leaves workers what they need, see [`default_connections`].
    pub const fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = Some(connections);
        self
    }

    /// The deadline of calls that name none, of Python tools and of the host's own, at most [`MAX_TIMEOUT`]. `None` lets
    /// them take forever. The default is that of [`PoolConfig`].
    pub fn default_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.pool.default_timeout = timeout.map(|timeout| timeout.min(MAX_TIMEOUT));
        self
    }

    /// How long a worker may take from its launch until it takes calls, at most [`MAX_TIMEOUT`].
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout.min(MAX_TIMEOUT));
        self
    }

    /// How long a worker that is asked to stop may take to exit, with Python's own clean-up and its `atexit` functions, before it
    /// is killed. At most a day. The default is that of [`PoolConfig`].
    pub const fn stop_grace(mut self, grace: Duration) -> Self {
        self.pool.stop_grace = grace;
        self
    }

    /// Reaps children of this process that are none of its workers. For a program that is the first process of a container and
    /// starts no processes of its own: what tools daemonize becomes its child, and would stay a zombie. It takes the exit status of
    /// every other child away.
    pub const fn reap_orphans(mut self, reap: bool) -> Self {
        self.reap_orphans = reap;
        self
    }

    /// Whether calls share one stream to each worker that serves one; the default. Without it each call is an RPC of its
    /// own, which costs several times as much: for finding out whether the stream is to blame for something.
    pub const fn multiplex(mut self, multiplex: bool) -> Self {
        self.plain_calls = !multiplex;
        self
    }

    /// Serves gRPC on this TCP address; port 0 picks a free one ([`Snakepit::address`]). Without it, only this
    /// user's processes can connect, through [`Snakepit::socket`].
    pub fn listen(self, address: SocketAddr) -> Self {
        self.listen_on(address.to_string())
    }

    /// Like [`listen`](Self::listen), with a host name or an address and a port: `localhost:50051`. A name is resolved
    /// when the host starts, and served on the first of its addresses that can be bound.
    pub fn listen_on(mut self, host_and_port: impl Into<String>) -> Self {
        self.listen = Some(host_and_port.into());
        self
    }

    /// Permits an address that other machines can reach, without encryption.
    pub const fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }

    /// The directory under which this host keeps its sockets and its ledger of worker processes.
    pub fn run_dir(mut self, base: impl Into<PathBuf>) -> Self {
        self.run_dir = Some(base.into());
        self
    }

    /// Keeps sessions elsewhere than in memory.
    pub fn sessions(mut self, backend: Arc<dyn SessionBackend>) -> Self {
        self.sessions = Some(backend);
        self
    }

    /// Offers a typed async closure as a tool, to Python and to clients: arguments and result by serde. Arguments come
    /// by name, so `A` is a struct or a map. Its name is no Python tool's: both kinds are called by the same names.
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

    /// Offers a tool of the host that needs more than [`host_tool`](Self::host_tool): a description, its parameters,
    /// the context of the call, a stream of results.
    pub fn fn_tool(mut self, tool: FnTool) -> Self {
        self.host_tools.push(tool);
        self
    }

    /// Starts the host and waits until every worker takes calls.
    ///
    /// # Errors
    /// [`Error`]. Whatever was started is gone by the time the error is returned. [`PoolError::NoRuntime`] outside a tokio
    /// runtime. The host lives as long as that runtime: after it, every call fails with
    /// [`NoRuntime`](snakepit_registry::ToolError::NoRuntime).
    ///
    /// # Cancel safety
    /// When the future is dropped, workers that were started are killed in the background, for which the runtime must
    /// live on. [`start_unless`](Self::start_unless) waits for their end.
    pub async fn start(self) -> Result<Snakepit, Error> {
        self.start_unless(std::future::pending()).await
    }

    /// Like [`start`](Self::start), unless `called_off` completes before the workers are ready, say because a signal
    /// arrived.
    ///
    /// # Errors
    /// [`Error::CalledOff`] in that case, and those of `start`. Whatever was started is gone by the time the error is
    /// returned.
    pub async fn start_unless(self, called_off: impl Future<Output = ()>) -> Result<Snakepit, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(PoolError::NoRuntime.into());
        }
        let mut called_off = pin!(called_off);
        // Until it has composed everything, this holds nothing that does not end when it is dropped.
        let python = self.python.clone().map_or_else(Interpreter::find, Interpreter::named);
        let (snakepit, health) = tokio::select! {
            composed = self.compose(&python) => composed?,
            () = &mut called_off => return Err(Error::CalledOff),
        };
        let started = tokio::select! {
            ready = snakepit.pool.ready() => ready.map_err(|error| python.explain(error)),
            () = called_off => Err(Error::CalledOff),
        };
        if let Err(error) = started {
            // The error that is told is the first one.
            let _ended = snakepit.shutdown_within(Duration::ZERO).await;
            return Err(error);
        }
        // Health checks see the server from here on, and see it leave before it stops answering.
        let (hidden, stop) = (snakepit.service.hidden.clone(), snakepit.service.stop.clone());
        let following = grpc::follow_readiness(health, snakepit.pool.readiness(), hidden, stop).await;
        snakepit.service.tasks.spawn(following);
        Ok(snakepit)
    }

    /// Puts all parts together and begins to launch the workers. What can fail comes first; once tasks run and workers
    /// are launched, nothing is awaited and nothing fails, so an error or a dropped future leaves nothing behind.
    async fn compose(self, python: &Interpreter) -> Result<(Snakepit, HealthReporter), Error> {
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
        // Workers of another launcher may need none.
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

        // The host listens before any worker starts, because workers call back while they start.
        let tcp = match &self.listen {
            Some(address) => Some(listen::bind_tcp(address, self.allow_remote).await?),
            None => None,
        };
        let address = tcp.as_ref().map(listen::local_address).transpose()?;
        // Waits for other hosts that start, and may look through all processes.
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
        // Weak, because the host holds the launches.
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
            .map_err(|error| listen::unix_failed(run_dir.host_socket(), &error))?;
        let pool = match Pool::start(self.pool, launcher) {
            Ok(pool) => Arc::new(pool),
            Err(error) => {
                stop.cancel();
                return Err(error.into());
            }
        };
        host.set_pool(&pool);
        if foreign_worker {
            // Such workers announce their tools with their first call, so unknown names must reach them.
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
                    tracing::error!(%error, "cannot reap what tools leave behind");
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
        Ok((Snakepit { host, pool, service }, health))
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

fn config(problem: &str) -> Error {
    Error::Config { problem: problem.to_owned() }
}

/// Reclaims the memory of expired sessions now and then.
async fn sweep(host: Arc<Host>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // A backend that panics must not end the sweeping.
            _ = ticks.tick() => match AssertUnwindSafe(host.sessions.sweep()).catch_unwind().await {
                Ok(Ok(0)) => {}
                Ok(Ok(expired)) => tracing::debug!(expired, "sessions expired"),
                Ok(Err(error)) => tracing::warn!(%error, "failed to sweep expired sessions"),
                Err(_) => tracing::error!("the sweep of expired sessions panicked; the next one is tried"),
            },
        }
    }
}
