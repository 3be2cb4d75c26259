//! Putting a host together: what to run, how many of it, where to listen.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use snakepit_pool::{Pool, PoolConfig};
use snakepit_registry::{FnTool, Registry, ToolHandler};
use snakepit_session::{MemoryBackend, MemoryConfig, SessionBackend};
use snakepit_worker::{
    ProcessConfig, ProcessLauncher, WorkerLauncher,
    process::{RunDir, WorkerProgram},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Error, Snakepit, find_python, grpc, host::Host, listen, snakepit::Service};

/// How often the memory of expired sessions is reclaimed. They are gone for callers the moment they expire.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Prepares a host: [`Snakepit::builder`](crate::Snakepit::builder).
#[derive(Default)]
#[must_use = "a builder does nothing until `start` is awaited"]
pub struct Builder {
    adapter: Option<String>,
    worker_command: Option<Vec<String>>,
    launcher: Option<Arc<dyn WorkerLauncher>>,
    python: Option<PathBuf>,
    environment: Vec<(String, String)>,
    start_timeout: Option<Duration>,
    run_dir: Option<PathBuf>,
    pool: PoolConfig,
    listen: Option<SocketAddr>,
    allow_remote: bool,
    sessions: Option<Arc<dyn SessionBackend>>,
    host_tools: Vec<FnTool>,
}

impl Builder {
    /// The adapter class that workers serve, as `module.path:Class`.
    pub fn adapter(mut self, adapter: impl Into<String>) -> Self {
        self.adapter = Some(adapter.into());
        self
    }

    /// Runs this command as the worker instead of this project's own Python runtime: any program that keeps the wire
    /// contract. The arguments of the contract (`--port`, `--elixir-address`, ...) are appended.
    pub fn worker_command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.worker_command = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Launches workers by other means than child processes.
    pub fn launcher(mut self, launcher: Arc<dyn WorkerLauncher>) -> Self {
        self.launcher = Some(launcher);
        self
    }

    /// The Python interpreter. The default is [`find_python`].
    pub fn python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// Sets an environment variable of the workers.
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

    /// The deadline of calls that name none. `None` lets them take forever.
    pub const fn default_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.pool.default_timeout = timeout;
        self
    }

    /// How long a worker may take from its launch until it takes calls.
    pub const fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// Serves gRPC on this TCP address; port 0 picks a free one ([`Snakepit::address`]). Without it, only this
    /// user's processes can connect, through [`Snakepit::socket`].
    pub const fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
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

    /// Offers a typed async closure as a tool, to Python and to clients: arguments and result by serde.
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
    /// [`Error`]. Whatever was started is gone by the time the error is returned.
    pub async fn start(self) -> Result<Snakepit, Error> {
        let registry = Registry::new();
        for tool in self.host_tools {
            registry.register_host_tool(tool)?;
        }
        let sessions = self.sessions.unwrap_or_else(|| Arc::new(MemoryBackend::new(MemoryConfig::default())));
        let host = Arc::new(Host::new(sessions, registry));

        // The host serves before any worker starts, because workers call back while they start.
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (routes, health) = grpc::routes(Arc::clone(&host)).await;
        let tcp = match self.listen {
            Some(address) => Some(listen::bind_tcp(address, self.allow_remote).await?),
            None => None,
        };
        let mut address = tcp.as_ref().map(listen::local_address).transpose()?;
        let run_dir = Arc::new(RunDir::create(self.run_dir.as_deref())?);
        let unix = listen::bind_unix(run_dir.host_socket())?;

        let foreign_worker = self.worker_command.is_some();
        let mut host_tcp = address.filter(|address| address.ip().is_loopback());
        let mut callback = None;
        if foreign_worker && host_tcp.is_none() {
            let listener = listen::bind_tcp((Ipv4Addr::LOCALHOST, 0).into(), false).await?;
            host_tcp = Some(listen::local_address(&listener)?);
            callback = Some(listener);
        }

        let program = match (self.worker_command, self.adapter) {
            (Some(argv), adapter) => Some(WorkerProgram::Command { argv, adapter }),
            (None, Some(adapter)) => {
                Some(WorkerProgram::Python { python: self.python.unwrap_or_else(find_python), adapter })
            }
            (None, None) => None,
        };
        let (launcher, processes): (Arc<dyn WorkerLauncher>, _) = match (self.launcher, program) {
            (Some(launcher), None) => (launcher, None),
            (None, Some(program)) => {
                let mut config = ProcessConfig::new(program);
                config.host_tcp = host_tcp;
                config.env = self.environment;
                if let Some(timeout) = self.start_timeout {
                    config.start_timeout = timeout;
                }
                let launcher = Arc::new(ProcessLauncher::new(config, Arc::clone(&run_dir)));
                (Arc::clone(&launcher) as _, Some(launcher))
            }
            (Some(_), Some(_)) => {
                return Err(config("a launcher excludes an adapter or a worker command; give one of them"));
            }
            (None, None) => {
                return Err(config(
                    "nothing to run; give an adapter (`module.path:Class`) or a worker command",
                ));
            }
        };

        for listener in tcp.into_iter().chain(callback) {
            listen::serve_tcp(&tasks, routes.clone(), listener, stop.clone());
        }
        listen::serve_unix(&tasks, routes, unix, stop.clone());
        tasks.spawn(sweep(Arc::clone(&host), stop.clone()));

        let pool = Pool::start(self.pool, launcher)?;
        host.set_pool(pool.clone());
        if foreign_worker {
            // Such workers announce their tools with their first call, so unknown names must reach them.
            let tool: Arc<dyn ToolHandler> = pool.tool();
            host.registry.set_fallback(&pool.status().name, tool);
        }
        let hidden = stop.child_token();
        let service =
            Arc::new(Service { hidden, stop, tasks, address: address.take(), launcher: processes, run_dir });
        let snakepit = Snakepit { host, pool, service };
        if let Err(error) = snakepit.pool.ready().await {
            snakepit.shutdown_within(Duration::ZERO).await;
            return Err(error.into());
        }
        // Health checks see the server from here on, and see it leave before it stops answering.
        let following =
            grpc::follow_readiness(health, snakepit.pool.readiness(), snakepit.service.hidden.clone()).await;
        snakepit.service.tasks.spawn(following);
        Ok(snakepit)
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
            _ = ticks.tick() => match host.sessions.sweep().await {
                Ok(0) => {}
                Ok(expired) => tracing::debug!(expired, "sessions expired"),
                Err(error) => tracing::warn!(%error, "failed to sweep expired sessions"),
            },
        }
    }
}
