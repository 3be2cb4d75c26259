//! Configures a host.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use snakepit_pool::PoolConfig;
use snakepit_registry::{CallLayers, FnTool, HostState, ToolFn, ToolHandler, ToolSpec};
use snakepit_session::SessionBackend;
use snakepit_worker::WorkerLauncher;

use crate::{
    MAX_TIMEOUT, TelemetryFilter, authorization::Authorizer, host::CallReader,
    traceback_policy::TracebackPolicy,
};

mod authorization;
mod call_readers;
mod layers;
mod start;
mod workers;

/// Wraps a launcher.
type Decorator = dyn FnOnce(Arc<dyn WorkerLauncher>) -> Arc<dyn WorkerLauncher> + Send + Sync;

/// Configures a host: [`Snakepit::builder`](crate::Snakepit::builder).
///
/// ```no_run
/// use std::time::Duration;
///
/// use snakepit_server::Snakepit;
///
/// # async fn example() -> Result<(), snakepit_server::Error> {
/// let snakepit = Snakepit::builder()
///     .adapter("shop:Shop")
///     .name("shop")
///     .workers(8)
///     .queue_limit(100)
///     .default_timeout(Some(Duration::from_secs(5)))
///     .max_attempts(3)
///     .listen(([127, 0, 0, 1], 50051).into())
///     .start()
///     .await?;
/// println!("{} serves on {:?}", snakepit.status().name, snakepit.address());
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
#[must_use = "a builder does nothing until `start` is awaited"]
pub struct Builder {
    adapter: Option<String>,
    worker_command: Option<Vec<String>>,
    launcher: Option<Arc<dyn WorkerLauncher>>,
    without_workers: bool,
    decorators: Vec<Box<Decorator>>,
    python: Option<PathBuf>,
    environment: Vec<(String, String)>,
    adapter_args: serde_json::Map<String, serde_json::Value>,
    gpus: Vec<String>,
    library_threads: Option<usize>,
    threads: Option<usize>,
    worker_telemetry: TelemetryFilter,
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
    host_handlers: Vec<(ToolSpec, Arc<dyn ToolHandler>)>,
    state: HostState,
    call_layers: CallLayers,
    attempt_layers: CallLayers,
    call_readers: Vec<CallReader>,
    authorizer: Option<Authorizer>,
    tracebacks: TracebackPolicy,
}

impl Builder {
    /// Sets the adapter that workers serve, in one of the forms of
    /// [adapters.md](https://github.com/snakepit-rs/snakepit/blob/main/docs/adapters.md):
    ///
    /// - `module.path:Class`, for the methods of a class that are tools,
    /// - `module.path:function`, or `module.path:` for the public functions of a module,
    /// - `path/to/app.py`, alone or with `:Class` or `:function`.
    ///
    /// For the first two forms, Python must be able to import the module: from an installed package or from `PYTHONPATH`
    /// ([`env`](Self::env)).
    pub fn adapter(mut self, adapter: impl Into<String>) -> Self {
        self.adapter = Some(adapter.into());
        self
    }

    /// Runs this command as the worker instead of this project's Python runtime. Any program that implements the wire
    /// contract works. The host appends the arguments of the contract (`--port`, `--elixir-address`, ...). If an
    /// [`adapter`](Self::adapter) is also set, the host passes the adapter to the command as `--adapter`, and does not interpret
    /// it.
    ///
    /// Such a worker calls the host over TCP. Each worker gets its own loopback listener, which serves only the RPCs that a
    /// worker needs. On Linux, the host looks up the process behind each connection, and closes the connection unless the
    /// process is the command or one of its descendants and runs as the same user. Other systems do not offer this lookup, so
    /// every process of the machine can connect to the listener while the worker runs.
    pub fn worker_command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.worker_command = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Sets a custom launcher for workers, instead of [`adapter`](Self::adapter) or [`worker_command`](Self::worker_command).
    ///
    /// The workers announce their tools with [`Worker::with_tools`](crate::Worker::with_tools), or register them over the
    /// host's socket with the token of a [`LaunchGuard`](crate::LaunchGuard). The launcher receives the host's address in
    /// [`LaunchRequest::host`](crate::LaunchRequest::host). The host removes the tools when no worker announces them any more.
    ///
    /// The settings of the Python runtime have no effect on a custom launcher: [`python`](Self::python), [`env`](Self::env) and
    /// [`multiplex`](Self::multiplex). A launch that exceeds the [`start_timeout`](Self::start_timeout) is dropped.
    pub fn launcher(mut self, launcher: Arc<dyn WorkerLauncher>) -> Self {
        self.launcher = Some(launcher);
        self
    }

    /// Starts a host without workers, which has only [host tools](Self::host_tool). The host does not start processes, and a call
    /// of another tool fails with [`NotFound`](snakepit_registry::ToolError::NotFound). Worker settings have no effect, and
    /// [`adapter`](Self::adapter), [`worker_command`](Self::worker_command) and [`launcher`](Self::launcher) must not be set.
    ///
    /// ```
    /// use std::collections::HashMap;
    ///
    /// use snakepit_server::{FnTool, Snakepit};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let double = FnTool::typed("double", |args: HashMap<String, i64>| async move { 2 * args["n"] });
    /// # let dir = tempfile::tempdir()?;
    /// let snakepit = Snakepit::builder().without_workers().fn_tool(double)
    /// #     .run_dir(dir.path())
    ///     .start().await?;
    /// let twice: i64 = snakepit.execute("double", serde_json::json!({"n": 4})).await?;
    /// assert_eq!(twice, 8);
    /// snakepit.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn without_workers(mut self) -> Self {
        self.without_workers = true;
        self
    }

    /// Wraps the worker launcher, the default one or a [custom](Self::launcher) one, for example to log launches, to limit
    /// their number, or to inject faults. `decorate` receives the launcher and returns the one that the pool uses. A later call
    /// of this method wraps the launcher of an earlier one.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use snakepit_server::{LaunchRequest, Snakepit, Worker, WorkerError, WorkerLauncher};
    ///
    /// /// Prints each launch.
    /// #[derive(Debug)]
    /// struct Printed(Arc<dyn WorkerLauncher>);
    ///
    /// #[async_trait::async_trait]
    /// impl WorkerLauncher for Printed {
    ///     async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
    ///         println!("launching {}", request.id);
    ///         self.0.launch(request).await
    ///     }
    /// }
    ///
    /// let builder = Snakepit::builder().adapter("shop:Shop").decorate_launcher(|inner| Arc::new(Printed(inner)));
    /// ```
    pub fn decorate_launcher<F>(mut self, decorate: F) -> Self
    where
        F: FnOnce(Arc<dyn WorkerLauncher>) -> Arc<dyn WorkerLauncher> + Send + Sync + 'static,
    {
        self.decorators.push(Box::new(decorate));
        self
    }

    /// Sets the Python interpreter, which must have the package `snakepit_bridge`. The default is
    /// [`find_python`](crate::find_python).
    pub fn python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// Sets an environment variable for the workers. They also inherit the variables of this process. For example,
    /// `PYTHONPATH` makes adapters available that are not installed.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the whole configuration of the pool, and replaces the settings of earlier method calls.
    pub fn pool(mut self, config: PoolConfig) -> Self {
        self.pool = config;
        let timeout = self.pool.default_timeout;
        self.default_timeout(timeout)
    }

    /// Sets the name of the pool: 1 to 64 ASCII letters, digits, `-`, `_` and `.`. Worker ids begin with it, and logs and metrics
    /// contain it. The default is `default`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.pool.name = name.into();
        self
    }

    /// Sets the number of workers, 1 to 1024. [`PoolConfig`] has the default.
    pub const fn workers(mut self, workers: usize) -> Self {
        self.pool.workers = workers;
        self
    }

    /// Limits the number of calls that wait for a worker. The host rejects further calls immediately. With 0, no call waits.
    pub const fn queue_limit(mut self, limit: usize) -> Self {
        self.pool.queue_limit = limit;
        self
    }

    /// Limits the total size of waiting calls' arguments, in bytes. The host rejects further calls immediately. The
    /// default is 512 MiB, from [`PoolConfig`].
    ///
    /// The same limit applies separately to
    ///
    /// - requests of clients that are still arriving,
    /// - requests of workers that are still arriving,
    /// - responses that clients over TCP have not read,
    /// - responses that workers and clients over the Unix socket have not read.
    pub const fn queue_bytes(mut self, bytes: usize) -> Self {
        self.pool.queue_bytes = bytes;
        self
    }

    /// Limits the size of one client connection's requests that are arriving, waiting or running, in bytes. The default is
    /// 256 MiB.
    ///
    /// The same limit applies to large responses that the client has not read. Further responses wait, and the host drops values
    /// of tools beyond twice the limit. A single request or response may exceed the limit.
    ///
    /// The host admits arriving stream messages of up to 2 MiB into an additional headroom, so that it can reject single calls
    /// instead of ending their stream. The headroom is 8 MiB per connection, and 64 MiB for all connections.
    pub const fn connection_bytes(mut self, bytes: usize) -> Self {
        self.connection_bytes = Some(bytes);
        self
    }

    /// Limits the number of client connections over TCP. The minimum is 1. The Unix socket accepts half as many in addition.
    /// The default depends on the process's limit of open files, see [`default_connections`](crate::default_connections).
    ///
    /// At the limit, the host closes the connection that has been idle longest to admit a new one. If all connections are in use,
    /// the host answers the first request of the new connection with
    /// [`TooManyConnections`](snakepit_registry::ToolError::TooManyConnections) and closes the new connection. A connection is in
    /// use while it has an open request. The shared stream of calls counts only while a call runs on it. A watch always counts.
    /// Connections of workers do not count towards the limit.
    ///
    /// Clients of this project reconnect with their next call. If the host closes the connection before it begins a call, they
    /// retry the call a few times on new connections. After that, the call fails without having run.
    pub const fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = Some(connections);
        self
    }

    /// Sets the deadline of calls without one, for Python tools and host tools. The maximum is
    /// [`MAX_TIMEOUT`](crate::MAX_TIMEOUT), 99,999,999 hours. `None` means no deadline. [`PoolConfig`] has the default.
    pub fn default_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.pool.default_timeout = timeout.map(|timeout| timeout.min(MAX_TIMEOUT));
        self
    }

    /// Limits the time from the launch of a worker until it accepts calls, including launches by a custom
    /// [`launcher`](Self::launcher). The maximum is [`MAX_TIMEOUT`](crate::MAX_TIMEOUT), 99,999,999 hours. The default is 60 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout.min(MAX_TIMEOUT));
        self
    }

    /// Limits the time that a stopping worker has to exit, including Python's finalization and `atexit` functions. After this time,
    /// the host kills the worker. The maximum is one day. [`PoolConfig`] has the default.
    pub const fn stop_grace(mut self, grace: Duration) -> Self {
        self.pool.stop_grace = grace;
        self
    }

    /// Sets the grace period of a cancelled call. If the call has not ended by then, the host kills its worker. The maximum is one
    /// day. [`PoolConfig`] has the default.
    pub const fn cancel_grace(mut self, grace: Duration) -> Self {
        self.pool.cancel_grace = grace;
        self
    }

    /// Sets the number of calls that one worker runs concurrently, from 1 to 256. This setting replaces the attribute `concurrency`
    /// of a Python adapter, and limits all calls of a worker together, including those in threads. Without this setting and the
    /// attribute, workers run one call at a time. Calls of a Python worker overlap where coroutines await; synchronous functions
    /// need [`threads`](Self::threads).
    pub const fn concurrency(mut self, calls: usize) -> Self {
        self.pool.concurrency = Some(calls);
        self
    }

    /// Sets the maximum number of attempts at an idempotent call whose workers are lost, including the first, from 1 to 10.
    /// [`PoolConfig`] has the default.
    pub const fn max_attempts(mut self, attempts: usize) -> Self {
        self.pool.max_attempts = attempts;
        self
    }

    /// Reaps children of this process that are not workers. Use this in a program that is PID 1 of a container, where processes
    /// that detach from a tool become children of the program and would remain zombies. Do not use it in a program that starts
    /// other processes, because the host would also take their exit statuses.
    pub const fn reap_orphans(mut self, reap: bool) -> Self {
        self.reap_orphans = reap;
        self
    }

    /// Enables the multiplexed stream, on which all calls to a worker share one RPC if the worker supports it. This is the default.
    /// Otherwise, each call is a separate RPC, which costs several times as much. Disable the stream to find out whether it causes
    /// a problem.
    pub const fn multiplex(mut self, multiplex: bool) -> Self {
        self.plain_calls = !multiplex;
        self
    }

    /// Serves gRPC on this TCP address. Port 0 selects a free port ([`Snakepit::address`](crate::Snakepit::address)). Without an
    /// address, only processes of this user can connect, through [`Snakepit::socket`](crate::Snakepit::socket).
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

    /// Sets the backend that stores sessions. The default is a [`MemoryBackend`](crate::MemoryBackend). For another store,
    /// implement [`SessionBackend`].
    pub fn sessions(mut self, backend: Arc<dyn SessionBackend>) -> Self {
        self.sessions = Some(backend);
        self
    }

    /// Registers an async closure as a tool for Python and for clients. Host tools and Python tools share one namespace, so the
    /// name must be unique.
    ///
    /// The closure takes up to eight arguments: the tool's own arguments as a struct or a map, and
    /// [extractors](crate::Extractor) such as [`State`](crate::State), [`ToolContext`](crate::ToolContext),
    /// [`SessionHandle`](crate::SessionHandle) and [`Host`](crate::Host). [`ToolFn`] lists them. The struct derives
    /// [`JsonSchema`](https://docs.rs/schemars/1/schemars/trait.JsonSchema.html), which defines the tool's
    /// parameters. The host lists them, and rejects calls
    /// with missing or unknown arguments before the closure runs. [`FnTool`] describes the derivation.
    ///
    /// The closure returns a future of any [`IntoAnswer`](crate::IntoAnswer), or a stream of them:
    ///
    /// ```no_run
    /// use futures_util::stream;
    /// use schemars::JsonSchema;
    /// use serde::{Deserialize, Serialize};
    /// use snakepit_server::{Json, SessionHandle, Snakepit, State};
    ///
    /// #[derive(Deserialize, JsonSchema)]
    /// struct Item {
    ///     /// The name on the label.
    ///     name: String,
    /// }
    ///
    /// #[derive(Serialize)]
    /// struct Stock {
    ///     left: u32,
    /// }
    ///
    /// #[derive(Clone)]
    /// struct Shop {
    ///     shelves: u32,
    /// }
    ///
    /// let builder = Snakepit::builder()
    ///     .state(Shop { shelves: 3 })
    ///     // A number, text, a collection, `()` or a `serde_json::Value` is the result itself.
    ///     .host_tool("shelf", |item: Item| async move { format!("shelf of {}", item.name) })
    ///     // A struct or an enum needs `Json`, unless it is in a `Result`.
    ///     .host_tool("stock", |State(shop): State<Shop>| async move { Json(Stock { left: shop.shelves }) })
    ///     // An error becomes an exception in Python, with the error's message.
    ///     .host_tool("take", |item: Item, session: SessionHandle| async move {
    ///         if item.name == "tea" { Ok(format!("tea for {}", session.id())) } else { Err("out of stock") }
    ///     })
    ///     // A stream makes a streaming tool.
    ///     .host_tool("names", |item: Item| stream::iter([item.name.clone(), item.name]));
    /// ```
    ///
    /// The host fails to start with a closure that it cannot call: one whose argument type is a string, a number or a list, or
    /// one that takes a `State` that the host does not have.
    pub fn host_tool<M>(self, name: &str, tool: impl ToolFn<M>) -> Self {
        self.fn_tool(FnTool::new(name, tool))
    }

    /// Registers a host tool with additional settings, such as a [description](FnTool::describe), or
    /// [hidden](FnTool::exposed) from Python.
    ///
    /// ```no_run
    /// use snakepit_server::{FnTool, Snakepit};
    ///
    /// let audit = FnTool::new("audit", || async { "all is well" })
    ///     .describe(|spec| spec.description("Checks the books"))
    ///     .exposed(false);
    /// let builder = Snakepit::builder().fn_tool(audit);
    /// ```
    pub fn fn_tool(mut self, tool: FnTool) -> Self {
        self.host_tools.push(tool);
        self
    }

    /// Sets a value that host tools receive as [`State<S>`](crate::State). A host has one value of each type. Each call gets a
    /// clone, so wrap a value that is expensive to clone in an `Arc`.
    pub fn state<S: Clone + Send + Sync + 'static>(mut self, value: S) -> Self {
        self.state.insert(value);
        self
    }

    /// Registers any [`ToolHandler`] as a host tool, for Python and for clients. The handler may stream
    /// ([`ToolSpec::supports_streaming`]), forward calls, or run in another process. [`ToolSpec::exposed`] hides it from Python.
    ///
    /// The host
    ///
    /// - checks the arguments against the spec,
    /// - drops the future or the stream at the deadline or when the caller cancels the call,
    /// - reports a panic in the handler as a failure of the call.
    ///
    /// A name that is invalid or taken prevents the host from starting.
    pub fn tool(mut self, spec: ToolSpec, handler: Arc<dyn ToolHandler>) -> Self {
        self.host_handlers.push((spec, handler));
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The literal names every field, so a new setting of the pool does not compile without a method here.
    #[test]
    fn every_setting_of_the_pool_has_a_method() {
        let (timeout, grace) = (Duration::from_secs(7), Duration::from_secs(8));
        let builder = Builder::default()
            .name("gpu")
            .workers(2)
            .queue_limit(3)
            .queue_bytes(4)
            .default_timeout(Some(timeout))
            .stop_grace(grace)
            .cancel_grace(timeout)
            .concurrency(5)
            .max_attempts(6);
        let expected = PoolConfig::default()
            .name("gpu")
            .workers(2)
            .queue_limit(3)
            .queue_bytes(4)
            .default_timeout(timeout)
            .stop_grace(grace)
            .cancel_grace(timeout)
            .concurrency(5)
            .max_attempts(6);
        assert_eq!(builder.pool, expected);
    }
}
