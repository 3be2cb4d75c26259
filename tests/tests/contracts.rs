//! The contract suites, run with real processes as the launcher and a pool of Python workers as the handler.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use snakepit_pool::{Pool, PoolConfig};
use snakepit_registry::{
    ToolCall,
    contract::{ContractCalls, tool_handler_contract},
};
use snakepit_server::{HostAccess, LaunchRequest, Snakepit, Worker, WorkerError};
use snakepit_tests::{SHOWCASE, plain_calls, python, root};
use snakepit_worker::{
    ProcessConfig, ProcessLauncher, WorkerLauncher,
    contract::launcher_contract,
    process::{RunDir, WorkerProgram},
};

/// A launcher, and the host that its workers call back.
struct Fixture {
    processes: Arc<ProcessLauncher>,
    /// Sets the host of each request.
    launcher: Arc<dyn WorkerLauncher>,
    host: Snakepit,
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
struct WithHost {
    inner: Arc<ProcessLauncher>,
    host: HostAccess,
}

#[async_trait::async_trait]
impl WorkerLauncher for WithHost {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        self.inner.launch(request.with_host(self.host.clone())).await
    }
}

/// Records the host of the requests.
#[derive(Debug)]
struct Recorder {
    inner: Arc<dyn WorkerLauncher>,
    host: Arc<OnceLock<HostAccess>>,
}

#[async_trait::async_trait]
impl WorkerLauncher for Recorder {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        self.host.get_or_init(|| request.host.clone().unwrap());
        self.inner.launch(request).await
    }
}

/// Starts a host, and another launcher whose workers call the same host.
async fn fixture(program: impl FnOnce(PathBuf) -> WorkerProgram) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let access: Arc<OnceLock<HostAccess>> = Arc::default();
    let recorded = Arc::clone(&access);
    let host = Snakepit::builder()
        .decorate_launcher(|inner| Arc::new(Recorder { inner, host: recorded }))
        .adapter(SHOWCASE)
        .python(python())
        .workers(1)
        .listen(([127, 0, 0, 1], 0).into())
        .run_dir(dir.path())
        .start()
        .await
        .unwrap();
    let run_dir = Arc::new(RunDir::create(Some(dir.path())).unwrap());
    let mut config = ProcessConfig::new(program(python()));
    config.multiplex = !plain_calls();
    config.env.push(("SNAKEPIT_TEST_STUBS".into(), root().join(".venv/stubs").display().to_string()));
    let processes = Arc::new(ProcessLauncher::new(config, run_dir));
    let access = access.get().unwrap().clone();
    let launcher = Arc::new(WithHost { inner: Arc::clone(&processes), host: access });
    Fixture { processes, launcher, host, _dir: dir }
}

fn native(python: PathBuf) -> WorkerProgram {
    WorkerProgram::Python { python, adapter: SHOWCASE.to_owned() }
}

fn grpcio(python: PathBuf) -> WorkerProgram {
    let script = root().join("tests/workers/grpcio_worker.py");
    WorkerProgram::Command {
        argv: [python, script].map(|path| path.display().to_string()).to_vec(),
        adapter: None,
    }
}

async fn run_launcher_contract(program: impl FnOnce(PathBuf) -> WorkerProgram) {
    let fixture = fixture(program).await;
    launcher_contract(Arc::clone(&fixture.launcher)).await;
    fixture.processes.shutdown().await;
    fixture.host.shutdown().await.unwrap();
}

#[tokio::test]
async fn processes_of_native_workers_fulfil_the_launcher_contract() {
    run_launcher_contract(native).await;
}

#[tokio::test]
async fn processes_of_foreign_workers_fulfil_the_launcher_contract() {
    run_launcher_contract(grpcio).await;
}

fn calls(endless: &'static str) -> ContractCalls {
    ContractCalls {
        value: Box::new(|| {
            ToolCall::new("add").try_with_argument("a", &1).unwrap().try_with_argument("b", &2).unwrap()
        }),
        stream: Box::new(|| ToolCall::new("count").try_with_argument("n", &100).unwrap().streaming()),
        failure: Box::new(|| ToolCall::new("fail").try_with_argument("message", "on purpose").unwrap()),
        endless: Box::new(move || ToolCall::new(endless).try_with_argument("seconds", &120).unwrap()),
    }
}

#[tokio::test]
async fn a_pool_of_python_workers_fulfils_the_handler_contract() {
    let fixture = fixture(native).await;
    let config = PoolConfig::default().workers(2);
    let pool = Pool::start(config, Arc::clone(&fixture.launcher)).unwrap();
    pool.ready().await.unwrap();
    for endless in ["sleep_for", "async_sleep"] {
        tool_handler_contract(pool.tool(), &calls(endless)).await;
    }
    pool.shutdown(std::time::Duration::ZERO).await;
    fixture.host.shutdown().await.unwrap();
}
