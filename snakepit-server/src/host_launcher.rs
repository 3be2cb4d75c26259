//! [`HostLauncher`]: connects a launcher to the host. It passes the host's address to workers, and registers the tools that
//! they announce.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use snakepit_registry::{HostState, RegistryError, ToolHandler};
use snakepit_worker::{LaunchRequest, Worker, WorkerError, WorkerId, WorkerLauncher, process::HostAccess};
use tokio::time::timeout;

use crate::host::Host;

/// How long a worker whose launch failed may take to exit after it was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The outermost launcher of a pool, around the launchers of the program.
#[derive(Debug)]
pub(crate) struct HostLauncher {
    pub(crate) inner: Arc<dyn WorkerLauncher>,
    /// Weak, because the host's pool owns this launcher.
    pub(crate) host: Weak<Host>,
    pub(crate) access: HostAccess,
    /// The state for tools of workers that run in this process.
    pub(crate) state: Arc<HostState>,
    /// The time limit of a launch, unless the inner launcher enforces it.
    pub(crate) start_timeout: Option<Duration>,
}

impl HostLauncher {
    async fn register(&self, worker: &Worker) -> Result<(), WorkerError> {
        let Some(tools) = worker.tools() else { return Ok(()) };
        let ended = || WorkerError::no_host("the host was dropped");
        let host = self.host.upgrade().ok_or_else(ended)?;
        let pool = host.pool().await.map_err(|_| ended())?;
        let name = pool.status().name;
        let handler: Arc<dyn ToolHandler> = pool.tool();
        let registered = host.registry.register_remote(&name, worker.announcer(), &handler, tools.to_vec());
        registered.map(drop).map_err(|error| rejection_error(worker, error))
    }
}

fn rejection_error(worker: &Worker, error: RegistryError) -> WorkerError {
    WorkerError::tools_rejected(worker.id().to_string(), error)
}

/// The tool registrations that the host rejected, by worker, while the worker's launch is in progress. The worker itself
/// reports only a message.
#[derive(Debug, Default)]
pub(crate) struct Rejections(Mutex<HashMap<WorkerId, Option<RegistryError>>>);

/// The entry of one launch. Dropping it removes the entry.
struct RejectionWatch<'a> {
    rejections: &'a Rejections,
    worker: &'a WorkerId,
}

impl Rejections {
    fn entries(&self) -> MutexGuard<'_, HashMap<WorkerId, Option<RegistryError>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch<'a>(&'a self, worker: &'a WorkerId) -> RejectionWatch<'a> {
        self.entries().insert(worker.clone(), None);
        RejectionWatch { rejections: self, worker }
    }

    /// Stores the rejection until the launch ends. Has no effect if the launch has ended.
    pub(crate) fn record(&self, worker: &WorkerId, error: RegistryError) {
        if let Some(entry) = self.entries().get_mut(worker) {
            *entry = Some(error);
        }
    }
}

impl RejectionWatch<'_> {
    /// If the host rejected the tools of a worker that did not start, replaces the error with the rejection.
    fn explain(&self, error: WorkerError) -> WorkerError {
        let rejection = self.rejections.entries().get_mut(self.worker).and_then(Option::take);
        match (error, rejection) {
            (WorkerError::StartFailed { .. }, Some(source)) => {
                WorkerError::tools_rejected(self.worker.to_string(), source)
            }
            (error, _) => error,
        }
    }
}

impl Drop for RejectionWatch<'_> {
    fn drop(&mut self) {
        self.rejections.entries().remove(self.worker);
    }
}

#[async_trait]
impl WorkerLauncher for HostLauncher {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        let id = request.id.clone();
        let rejections = self.host.upgrade().map(|host| Arc::clone(&host.rejections)).unwrap_or_default();
        let watch = rejections.watch(&id);
        let request = request.with_host(self.access.clone()).with_host_state(Arc::clone(&self.state));
        let launch = self.inner.launch(request);
        let launched = match self.start_timeout {
            None => launch.await,
            Some(limit) => {
                timeout(limit, launch).await.unwrap_or_else(|_| Err(WorkerError::not_ready(limit)))
            }
        };
        let worker = launched.map_err(|error| watch.explain(error))?;
        let accepted = if worker.id() == &id {
            self.register(&worker).await
        } else {
            Err(WorkerError::start_failed(format!(
                "its launcher returned worker `{}` for the launch of `{id}`; create the `Worker` with the id of the request",
                worker.id()
            )))
        };
        if let Err(error) = accepted {
            worker.kill("the host rejected it");
            if timeout(KILL_TIMEOUT, worker.exited()).await.is_err() {
                tracing::warn!(worker = %id, "a worker that the host rejected does not exit");
            }
            return Err(error);
        }
        Ok(worker)
    }
}

#[cfg(test)]
mod tests {
    use snakepit_registry::{FnTool, ToolSpec};
    use snakepit_worker::{WorkerId, testing::InProcessWorkers};

    use crate::{Builder, Error, Snakepit, StartError, error_chain};

    use super::*;

    fn double() -> FnTool {
        FnTool::typed("double", |args: std::collections::HashMap<String, i64>| async move { args["n"] * 2 })
    }

    fn host(dir: &tempfile::TempDir, launcher: impl WorkerLauncher) -> Builder {
        Snakepit::builder().launcher(Arc::new(launcher)).run_dir(dir.path()).workers(2)
    }

    #[tokio::test(start_paused = true)]
    async fn announced_tools_are_registered_before_the_host_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let workers = InProcessWorkers::new().fn_tool(double());
        let snakepit = host(&dir, workers.clone()).start().await.unwrap();
        let tools = snakepit.tools();
        assert_eq!((tools[0].0.name.as_str(), tools[0].1.as_str()), ("double", "default"));
        let args = serde_json::json!({"n": 4});
        assert_eq!(snakepit.execute::<i64>("double", args.clone()).await.unwrap(), 8);
        // The tools remain while the workers are replaced.
        workers.workers().iter().for_each(|worker| assert!(workers.crash(worker)));
        assert_eq!(snakepit.execute::<i64>("double", args).await.unwrap(), 8);
        snakepit.shutdown().await.unwrap();
        assert!(workers.workers().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflict_of_tools_fails_the_launch_and_names_the_tool() {
        let dir = tempfile::tempdir().unwrap();
        let workers = InProcessWorkers::new().fn_tool(double());
        let error = host(&dir, workers.clone()).fn_tool(double()).start().await.unwrap_err();
        let text = error_chain(&error).to_string();
        assert!(text.contains("tool name `double` is taken by host") && text.contains("default-"), "{text}");
        assert!(matches!(error, StartError::Pool(_)), "{error:?}");
        assert!(workers.workers().is_empty(), "the rejected worker was killed");
    }

    /// Launches a worker, and modifies it before returning it.
    #[derive(Debug)]
    struct ModifyingLauncher(InProcessWorkers, fn(&LaunchRequest, Worker) -> Worker);

    #[async_trait]
    impl WorkerLauncher for ModifyingLauncher {
        async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
            let worker = self.0.launch(request.clone()).await?;
            Ok((self.1)(&request, worker))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn workers_of_one_pool_must_announce_the_same_tools() {
        let dir = tempfile::tempdir().unwrap();
        fn describe(request: &LaunchRequest, worker: Worker) -> Worker {
            worker.with_tools([ToolSpec::new("double").description(request.id.as_str())])
        }
        let modifying = ModifyingLauncher(InProcessWorkers::new(), describe);
        let text = error_chain(&host(&dir, modifying).start().await.unwrap_err()).to_string();
        assert!(text.contains("duplicate_tool: tool `double`"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn tools_that_a_replacement_does_not_announce_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        fn rename(request: &LaunchRequest, worker: Worker) -> Worker {
            let is_first = request.id.as_str().ends_with("-1");
            worker.with_tools([ToolSpec::new(if is_first { "old" } else { "new" })])
        }
        let workers = InProcessWorkers::new();
        let snakepit =
            host(&dir, ModifyingLauncher(workers.clone(), rename)).workers(1).start().await.unwrap();
        let names = || snakepit.tools().into_iter().map(|(spec, _)| spec.name).collect::<Vec<_>>();
        assert_eq!(names(), ["old"]);
        assert!(workers.crash(&workers.workers()[0]));
        workers.launched(2).await;
        // On paused time, this lets every task run.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(names(), ["new"]);
        snakepit.shutdown().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_launcher_that_returns_another_worker_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        fn rename(_: &LaunchRequest, _: Worker) -> Worker {
            let handler = Arc::new(FnTool::typed("x", |(): ()| async {}));
            Worker::new(WorkerId::new("mine"), None, "nowhere", handler).0
        }
        let modifying = ModifyingLauncher(InProcessWorkers::new(), rename);
        let text = error_chain(&host(&dir, modifying).start().await.unwrap_err()).to_string();
        assert!(text.contains("returned worker `mine` for the launch of `default-"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_start_timeout_applies_to_custom_launchers() {
        let dir = tempfile::tempdir().unwrap();
        let workers = InProcessWorkers::new();
        workers.delay_launches(2, Duration::from_secs(100));
        let slow = host(&dir, workers).start_timeout(Duration::from_secs(3)).start().await.unwrap_err();
        assert!(error_chain(&slow).to_string().contains("not ready within 3s"), "{slow:?}");
        let workers = InProcessWorkers::new();
        workers.delay_launches(2, Duration::from_secs(100));
        let by_default = host(&dir, workers).start().await.unwrap_err();
        assert!(error_chain(&by_default).to_string().contains("not ready within 60s"), "{by_default:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn decorators_see_every_launch_from_the_outside_in() {
        /// Logs launches with its name.
        #[derive(Debug)]
        struct LoggingLauncher(&'static str, Arc<std::sync::Mutex<Vec<String>>>, Arc<dyn WorkerLauncher>);

        #[async_trait]
        impl WorkerLauncher for LoggingLauncher {
            async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
                assert!(request.host.is_some(), "decorators can use the host too");
                self.1.lock().unwrap().push(format!("{} {}", self.0, request.id));
                self.2.launch(request).await
            }
        }

        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(std::sync::Mutex::default());
        let (first, second) = (Arc::clone(&log), Arc::clone(&log));
        let host = host(&dir, InProcessWorkers::new().fn_tool(double())).workers(1);
        let host = host
            .decorate_launcher(|inner| Arc::new(LoggingLauncher("inner", first, inner)))
            .decorate_launcher(|inner| Arc::new(LoggingLauncher("outer", second, inner)));
        let snakepit = host.start().await.unwrap();
        assert_eq!(*log.lock().unwrap(), ["outer default-0-1", "inner default-0-1"]);
        snakepit.execute::<i64>("double", serde_json::json!({"n": 1})).await.unwrap();
        snakepit.shutdown().await.unwrap();
    }

    /// Tests of applications replace Python tools with closures. Both kinds can use the host.
    #[tokio::test(start_paused = true)]
    async fn tools_in_the_process_may_use_the_host_its_state_and_the_session() {
        use crate::{Host, SessionHandle, State};

        let dir = tempfile::tempdir().unwrap();
        let count = |State(step): State<i64>, host: Host, session: SessionHandle| async move {
            let doubled: i64 = host.execute("double", serde_json::json!({"n": step})).await?;
            Ok::<_, Error>(format!("{doubled} in {}", session.id()))
        };
        let workers = InProcessWorkers::new().fn_tool(FnTool::new("count", count));
        let builder = host(&dir, workers).state(4_i64).fn_tool(double());
        let snakepit = builder.start().await.unwrap();
        let session = snakepit.session("s").await.unwrap();
        assert_eq!(session.execute::<String>("count", serde_json::json!({})).await.unwrap(), "8 in s");
        snakepit.shutdown().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn any_handler_is_a_host_tool() {
        #[derive(Debug)]
        struct Echo;

        #[async_trait]
        impl ToolHandler for Echo {
            async fn call(
                &self,
                call: snakepit_registry::ToolCall,
            ) -> Result<snakepit_registry::ToolReply, snakepit_registry::ToolError> {
                let text = call.arguments.get("text").cloned();
                Ok(snakepit_registry::ToolReply::value(text.unwrap_or_else(snakepit_session::Payload::null)))
            }
        }

        let dir = tempfile::tempdir().unwrap();
        let spec = || ToolSpec::new("echo").parameter("text", "string", "").deny_unknown_arguments();
        let echo = || host(&dir, InProcessWorkers::new()).tool(spec(), Arc::new(Echo));
        let twice = echo().tool(spec(), Arc::new(Echo)).start().await.unwrap_err();
        assert!(error_chain(&twice).to_string().contains("tool name `echo` is taken by host"), "{twice:?}");
        let snakepit = echo().start().await.unwrap();
        let answer: String = snakepit.execute("echo", serde_json::json!({"text": "hi"})).await.unwrap();
        assert_eq!(answer, "hi");
        let wrong = snakepit.execute::<String>("echo", serde_json::json!({"txt": 1})).await.unwrap_err();
        assert!(
            matches!(wrong, Error::Tool(snakepit_registry::ToolError::InvalidArguments { .. })),
            "{wrong}"
        );
        snakepit.shutdown().await.unwrap();
    }
}
