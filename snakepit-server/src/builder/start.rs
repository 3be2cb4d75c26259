//! Composes and starts a host from its builder.

use std::{path::Path, pin::pin, sync::Arc, time::Duration};

use snakepit_pool::{Pool, PoolError};
use snakepit_registry::{Registry, ToolHandler, guard::Guarded};
use snakepit_session::{MemoryBackend, SessionLimits, error_chain};
use snakepit_worker::{
    ProcessConfig, ProcessLauncher, WorkerError, WorkerLauncher,
    process::{Launches, RunDir, WorkerProgram, reap_orphans},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::server::HealthReporter;

use super::Builder;
use crate::{
    Snakepit, StartError,
    extract::HostRef,
    grpc,
    host::Host,
    host_launcher::HostLauncher,
    listen::{self, ArrivalBudgets, ListenLimits, Mount, ResponseBudget, default_connections},
    python::Interpreter,
    settings::{ADAPTER, CONNECTION_BYTES, LAUNCHER, QUEUE_BYTES, THREADS, WORKER_COMMAND, WORKER_TELEMETRY},
    snakepit::Service,
};

/// The interval at which the host frees the memory of expired sessions. Callers cannot reach a session after it expires.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The maximum number of threads for tools that are synchronous functions.
const MAX_THREADS: usize = 256;

impl Builder {
    /// The default of [`start_timeout`](Self::start_timeout). Imports of Python packages can be slow.
    pub const DEFAULT_START_TIMEOUT: Duration = Duration::from_secs(60);

    /// The default of [`connection_bytes`](Self::connection_bytes), in bytes.
    pub const DEFAULT_CONNECTION_BYTES: usize = 256 * 1024 * 1024;

    /// Starts the host and waits until every worker accepts calls.
    ///
    /// The host lives as long as the tokio runtime in which it starts. Afterwards, every call fails with
    /// [`RuntimeEnded`](snakepit_registry::ToolError::RuntimeEnded).
    ///
    /// # Errors
    /// [`StartError`] if a step fails, or [`PoolError::NoRuntime`] outside a tokio runtime. Everything that had started has
    /// stopped when this returns.
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
    /// [`StartError::Cancelled`] if `cancelled` completes first, and the errors of `start`. Everything that had started has
    /// stopped when this returns.
    pub async fn start_unless(self, cancelled: impl Future<Output = ()>) -> Result<Snakepit, StartError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(PoolError::NoRuntime.into());
        }
        let mut cancelled = pin!(cancelled);
        // Before the host is composed, cancellation only drops the future.
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
            // The startup error takes precedence.
            let _ended = snakepit.shutdown_within(Duration::ZERO).await;
            return Err(error);
        }
        // Health checks report "serving" from here until the shutdown begins.
        let (hidden, stop) = (snakepit.service.hidden.clone(), snakepit.service.stop.clone());
        let following = grpc::follow_readiness(health, snakepit.pool.readiness(), hidden, stop).await;
        snakepit.service.tasks.spawn(following);
        Ok(snakepit)
    }

    /// Composes the host and begins to launch the workers. All steps that can fail or await come before the first task or worker
    /// starts, so an error or a dropped future leaves nothing behind.
    async fn compose(self, python: &Interpreter) -> Result<(Snakepit, HealthReporter), StartError> {
        if self.connection_bytes == Some(0) || self.pool.queue_bytes == 0 {
            return Err(config_error(format!(
                "{CONNECTION_BYTES} and {QUEUE_BYTES} must be at least 1 byte, because no call fits into 0 bytes"
            )));
        }
        let foreign_worker = self.worker_command.is_some();
        let program = match (self.worker_command, self.adapter) {
            (Some(argv), adapter) => Some(WorkerProgram::Command { argv, adapter }),
            (None, Some(adapter)) => Some(WorkerProgram::Python { python: python.path.clone(), adapter }),
            (None, None) => None,
        };
        if self.without_workers && (program.is_some() || self.launcher.is_some()) {
            return Err(config_error(format!(
                "`Builder::without_workers` excludes {ADAPTER}, {WORKER_COMMAND} and {LAUNCHER}; remove one of them"
            )));
        }
        if !self.without_workers && program.is_some() == self.launcher.is_some() {
            return Err(config_error(match program {
                Some(_) => {
                    format!("{LAUNCHER} excludes {ADAPTER} and {WORKER_COMMAND}; set only one of them")
                }
                None => {
                    format!(
                        "nothing to run; set {ADAPTER} to an adapter such as `module.path:Class`, or set {WORKER_COMMAND}"
                    )
                }
            }));
        }
        if let Some(threads) = self.threads.filter(|threads| *threads > MAX_THREADS) {
            return Err(config_error(format!(
                "{THREADS} is {threads}; set it to a value from 0 to {MAX_THREADS}"
            )));
        }
        // Workers of a custom launcher do not necessarily need file descriptors.
        if program.is_some() {
            listen::check_descriptor_limit(self.pool.workers).map_err(config_error)?;
        }
        let registry = Registry::new();
        let (host_ref, mut state) = (HostRef::default(), self.state);
        state.insert(host_ref.clone());
        let state = Arc::new(state);
        for tool in self.host_tools {
            registry.register_host_tool(tool.with_state(Arc::clone(&state)))?;
        }
        for (spec, handler) in self.host_handlers {
            registry.register_host_handler(spec, handler)?;
        }
        let sessions =
            self.sessions.unwrap_or_else(|| Arc::new(MemoryBackend::new(SessionLimits::default())));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let timeout = self.pool.default_timeout;
        let launches = Launches::new();
        let telemetry = launches.telemetry().set_filter(self.worker_telemetry);
        telemetry.map_err(|error| config_error(format!("{WORKER_TELEMETRY}: {error}")))?;
        let host = Host::new(sessions, registry, Arc::clone(&launches), timeout, &tasks, stop.clone());
        let mut host = host.with_call_readers(self.call_readers).with_authorizer(self.authorizer);
        host.tracebacks = self.tracebacks;
        let host = Arc::new(host);
        host_ref.set(&host);
        host.set_layers(self.call_layers);
        let (services, health) = grpc::services(Arc::clone(&host)).await;

        // The host listens before it launches workers, because workers call the host while they start.
        let tcp = match &self.listen {
            Some(address) => Some(listen::bind_tcp(address, self.allow_remote).await?),
            None => None,
        };
        let address = tcp.as_ref().map(listen::local_address).transpose()?;
        // Runs on a blocking thread, because it waits for other starting hosts and may scan all processes.
        let base = self.run_dir;
        let shown = base.clone().unwrap_or_else(|| "the default run directory".into());
        let created = tokio::task::spawn_blocking(move || RunDir::create(base.as_deref())).await;
        let created =
            created.map_err(|error| WorkerError::io(shown, "its creation did not end").with_source(error))?;
        let run_dir = Arc::new(created?);

        let start_timeout = self.start_timeout.unwrap_or(Self::DEFAULT_START_TIMEOUT);
        let process_launcher = program.map(|program| {
            let mut config = ProcessConfig::new(program);
            config.multiplex = !self.plain_calls;
            config.env = self.environment;
            config.adapter_args = self.adapter_args;
            config.gpus = self.gpus;
            config.library_threads = self.library_threads;
            config.concurrency = self.pool.concurrency;
            config.threads = self.threads;
            config.start_timeout = start_timeout;
            config.stop_grace = self.pool.stop_grace;
            Arc::new(ProcessLauncher::new(config, Arc::clone(&run_dir)))
        });
        // Absent for a host without workers.
        let launcher = match &process_launcher {
            Some(processes) => Some(Arc::clone(processes) as Arc<dyn WorkerLauncher>),
            None => self.launcher,
        };
        let launcher = launcher.map(|launcher| HostLauncher {
            inner: self.decorators.into_iter().fold(launcher, |inner, decorate| decorate(inner)),
            host: Arc::downgrade(&host),
            access: launches.host_access(run_dir.host_socket(), run_dir.id()),
            state,
            // The process launcher measures the time itself, without the wait of decorators.
            start_timeout: process_launcher.is_none().then_some(start_timeout),
        });
        let limits = ListenLimits {
            connections: self.max_connections.unwrap_or_else(|| default_connections(self.pool.workers)),
            connection_bytes: self.connection_bytes.unwrap_or(Self::DEFAULT_CONNECTION_BYTES),
            arriving: ArrivalBudgets::new(self.pool.queue_bytes),
            unread: Arc::new(ResponseBudget::new(self.pool.queue_bytes)),
            unread_local: Arc::new(ResponseBudget::new(self.pool.queue_bytes)),
            unread_mounted: Arc::new(ResponseBudget::new(self.pool.queue_bytes)),
            launches: Arc::downgrade(&host.launches),
            authorizes: host.authorizer().is_some(),
        };
        // Weak, because the host owns the launches.
        let (weak_host, launch_tasks, launch_limits) = (Arc::downgrade(&host), tasks.clone(), limits.clone());
        host.launches.serve_with(Box::new(move |listener, launch| {
            if let Some(host) = weak_host.upgrade() {
                let services = grpc::worker_services(host, Arc::clone(&launch));
                listen::serve_launch(&launch_tasks, services, listener, &launch_limits, launch);
            }
        }));
        let serve = {
            let (tasks, services, limits, stop) =
                (tasks.clone(), services.clone(), limits.clone(), stop.clone());
            move |path: &Path| {
                let listener = listen::bind_unix(path)?;
                listen::serve_unix(&tasks, services.clone(), listener, &limits, stop.clone());
                Ok(())
            }
        };
        run_dir
            .serve_host_socket(serve)
            .map_err(|error| listen::unix_listen_error(run_dir.host_socket(), error))?;
        let started = match launcher {
            Some(launcher) => Pool::start_with_layers(self.pool, Arc::new(launcher), self.attempt_layers),
            None => Pool::without_workers(self.pool),
        };
        let pool = match started {
            Ok(pool) => Arc::new(pool),
            Err(error) => {
                stop.cancel();
                return Err(error.into());
            }
        };
        host.set_pool(&pool);
        if foreign_worker {
            // Foreign workers register tools only with their first call, so calls to unknown tools must reach them.
            let tool: Arc<dyn ToolHandler> = pool.tool();
            host.registry.set_fallback(&pool.status().name, tool);
        }

        if let Some(listener) = tcp {
            listen::serve_tcp(&tasks, services.clone(), listener, &limits, stop.clone());
        }
        tasks.spawn(sweep(Arc::clone(&host), stop.clone()));
        tasks.spawn(host.renew_sessions());
        if self.reap_orphans {
            let (run_dir, stop) = (Arc::clone(&run_dir), stop.clone());
            tasks.spawn(async move {
                if let Err(error) = reap_orphans(run_dir, stop).await {
                    tracing::error!(%error, "cannot reap orphaned processes of tools");
                }
            });
        }
        let (hidden, stopping) = (stop.child_token(), stop.child_token());
        let mount = Mount::new(&tasks, services, &limits, stop.clone());
        let launcher = process_launcher;
        let service = Arc::new(Service { hidden, stopping, stop, tasks, address, mount, launcher, run_dir });
        Ok((Snakepit::new(host, pool, service), health))
    }
}

const fn config_error(problem: String) -> StartError {
    StartError::Config { problem }
}

/// Frees the memory of expired sessions periodically.
async fn sweep(host: Arc<Host>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // A panic of the backend must not end the task.
            _ = ticks.tick() => match Guarded::new(Box::pin(host.sessions.sweep())).await {
                Ok(Ok(0)) => {}
                Ok(Ok(expired)) => tracing::debug!(expired, "sessions expired"),
                Ok(Err(error)) => tracing::warn!(error = %error_chain(&error), "failed to sweep expired sessions"),
                Err(_) => tracing::error!("the sweep of expired sessions panicked; the host will retry at the next interval"),
            },
        }
    }
}
