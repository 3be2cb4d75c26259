//! [`ProcessLauncher`], the default launcher: workers as child processes that serve gRPC.
//!
//! ```text
//!   launch:  spawn ──> ready (control line | ready line | ready file) ──> connect + ping ──> Worker
//!              |
//!          supervisor: one task per process, from its start until it is reaped
//!              |
//!   output drained into tracing ... ledger entry ... SIGTERM, grace period, SIGKILL of the process group
//! ```

mod config;
mod connect;
mod connected;
mod environment;
mod exit_watch;
mod hangup_tolerant_stream;
mod host_access;
mod launches;
mod ledger;
mod lineage;
mod orphans;
mod os_process;
mod output;
mod probe;
mod process_group;
mod progress_file;
mod readiness;
mod remote_worker;
mod run_dir;
mod spawn;
mod supervisor;
mod telemetry;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use snakepit_proto::mux::Multiplexer;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::Code;

/// Ends tasks such as [`reap_orphans`].
pub use tokio_util::sync::CancellationToken;

pub use config::{ProcessConfig, WorkerProgram};
pub use connected::{ConnectedWorker, WorkerConnection};
pub use host_access::HostAccess;
pub use launches::{Launch, LaunchGuard, Launches, ServeLaunch};
pub use orphans::{inherits_orphans, reap_orphans};
pub use probe::probe;
pub use run_dir::RunDir;
pub use telemetry::{TELEMETRY_TARGET, WorkerEvents, WorkerTelemetry};

use crate::{LaunchRequest, Worker, WorkerError, WorkerId, WorkerLauncher};
use connect::{Client, Failure};
use progress_file::ProgressFile;
use readiness::{Readiness, WorkerAddress};
use remote_worker::{RemoteWorker, WorkerDiagnostics};
use supervisor::SupervisedProcess;

/// Launches workers as child processes.
///
/// Each worker leads its own process group and exits when the host dies: the kernel kills the worker (`PR_SET_PDEATHSIG`), or
/// the worker reads end-of-file from its lifeline. The ledger of the [`RunDir`] lists every worker, so the next host can kill
/// processes that survive a crash.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use snakepit_worker::{
///     LaunchRequest, ProcessConfig, ProcessLauncher, WorkerId, WorkerLauncher,
///     process::{HostAccess, RunDir, WorkerProgram},
/// };
///
/// # async fn example(host: HostAccess) -> Result<(), snakepit_worker::WorkerError> {
/// let python = WorkerProgram::Python { python: ".venv/bin/python".into(), adapter: "my_tools:Tools".into() };
/// let run_dir = Arc::new(RunDir::create(None)?);
/// let launcher = ProcessLauncher::new(ProcessConfig::new(python), run_dir);
/// let request = LaunchRequest::new(WorkerId::new("pool-0-1")).with_host(host);
/// let worker = launcher.launch(request).await?;
/// println!("worker {} serves at {}", worker.id(), worker.address());
/// launcher.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ProcessLauncher {
    config: Arc<ProcessConfig>,
    run_dir: Arc<RunDir>,
    /// The working directory at creation. Workers use this path if the directory itself is removed later.
    working_dir: Option<PathBuf>,
    tasks: TaskTracker,
    /// Cancelled when the launcher is dropped or shut down. Supervisors then kill their workers.
    stop: CancellationToken,
}

impl ProcessLauncher {
    /// Creates a launcher. Its workers register their tools with the host of the [`LaunchRequest`], so each request must have
    /// one.
    #[must_use]
    pub fn new(config: ProcessConfig, run_dir: Arc<RunDir>) -> Self {
        let working_dir = std::env::current_dir().ok();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Self { config: Arc::new(config), run_dir, working_dir, tasks, stop }
    }

    /// Kills all workers, and returns when every process is reaped. Later launches fail.
    ///
    /// # Cancel safety
    /// Cancel safe. The shutdown continues if the future is dropped; call it again to wait for its end.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl ProcessLauncher {
    /// Forwards the events of a worker to the host until the worker exits.
    fn forward_telemetry(
        &self,
        id: &WorkerId,
        host: &HostAccess,
        client: &Client,
        supervised: &SupervisedProcess,
    ) {
        let (id, client, telemetry) = (id.clone(), client.clone(), host.telemetry().clone());
        let (exit, stop) = (supervised.exit_watch(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = telemetry.forward(&id, client) => {}
                _ = exit.exited() => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Opens the stream that all calls share. Returns `None` if the worker does not serve `Multiplex`.
    async fn multiplex(
        &self,
        client: &Client,
        address: &WorkerAddress,
        supervised: &SupervisedProcess,
        deadline: Instant,
    ) -> Result<Option<Multiplexer>, WorkerError> {
        let failed = |Failure { problem, source }| WorkerError::Connect {
            address: address.to_string(),
            problem: format!("its stream for calls cannot be opened: {problem}"),
            output_lines: supervised.output().lines(),
            source,
        };
        match tokio::time::timeout_at(deadline, Multiplexer::open(client.clone())).await {
            Ok(Ok((multiplexer, incoming))) => {
                // Cancelled when the stream ends, even if the task that reads it panics.
                let stream_ended = supervised.stream_ended().drop_guard();
                let stop = self.stop.clone();
                self.tasks.spawn(async move {
                    let _stream_ended = stream_ended;
                    // `incoming` may never end: a descendant of a dead worker may hold its socket open.
                    tokio::select! {
                        () = incoming => {}
                        () = stop.cancelled() => {}
                    }
                });
                Ok(Some(multiplexer))
            }
            Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(None),
            Ok(Err(status)) => Err(failed(Failure::of_status(status))),
            Err(_) => Err(failed(Failure::new("it did not answer before the start timeout"))),
        }
    }
}

impl Drop for ProcessLauncher {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[async_trait]
impl WorkerLauncher for ProcessLauncher {
    async fn launch(
        &self,
        LaunchRequest { id, slot, host, .. }: LaunchRequest,
    ) -> Result<Worker, WorkerError> {
        let host = host.ok_or_else(|| {
            WorkerError::no_host(
                "its launcher starts processes, which need one; call `LaunchRequest::with_host`",
            )
        })?;
        // The ledger of this launcher's run directory finds processes by this id.
        let host = host.with_run_id(self.run_dir.id());
        environment::check(&self.config)?;
        let deadline = Instant::now() + self.config.start_timeout;
        self.run_dir.restore(&self.tasks).await?;
        let files = self.run_dir.worker_files(&id);
        let progress = if self.config.is_native() {
            ProgressFile::create(&files.progress).map_err(|error| {
                WorkerError::io(&files.progress, "it cannot be created").with_source(error)
            })?
        } else {
            ProgressFile::default()
        };
        let mut supervised = SupervisedProcess::spawn(
            &id,
            &self.config,
            environment::slot_variables(&self.config, slot.as_ref()),
            &self.run_dir,
            &host,
            self.working_dir.as_deref(),
            files.clone(),
            progress.clone(),
            &self.tasks,
            self.stop.clone(),
        )
        .await?;
        let connected = async {
            let ready = readiness::wait_ready(&mut supervised, &files, &self.config, deadline).await?;
            let address = &ready.address;
            let client = connect::connect(address, &supervised, deadline).await?;
            let multiplexer = match self.config.multiplex {
                true => self.multiplex(&client, address, &supervised, deadline).await?,
                false => None,
            };
            Ok::<_, WorkerError>((ready, client, multiplexer))
        }
        .await;
        let (Readiness { address, concurrency, call_limits }, client, multiplexer) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                supervised.abandon().await;
                return Err(error);
            }
        };
        self.forward_telemetry(&id, &host, &client, &supervised);
        let output_lines = self.config.output_lines;
        let diagnostics =
            WorkerDiagnostics { id: id.clone(), exit: supervised.exit_watch(), progress, output_lines };
        // A worker that serves `Multiplex` queues the calls of the stream for the thread that runs Python.
        let queues_calls = multiplexer.is_some();
        let handler =
            RemoteWorker::new(client, multiplexer, diagnostics, supervised.output().report_receivers());
        let (worker, launcher_end) =
            Worker::new(id.clone(), Some(supervised.pid()), address.to_string(), Arc::new(handler));
        supervised.activate(launcher_end);
        let worker = worker.with_call_queue(queues_calls);
        let worker = match concurrency {
            Some(calls) => worker.with_concurrency(calls),
            None => worker,
        };
        let worker = match call_limits {
            Some(limits) => worker.with_call_limits(limits),
            None => worker,
        };
        tracing::debug!(worker = %id, pid = worker.pid(), %address, "worker ready");
        Ok(worker)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn request(id: &str) -> LaunchRequest {
        let launches = Launches::new();
        launches.serve_with(Box::new(|_, _| {}));
        LaunchRequest::new(WorkerId::new(id)).with_host(launches.host_access("/host.sock".as_ref(), "run"))
    }

    fn launcher(base: &std::path::Path, program: &str) -> Arc<ProcessLauncher> {
        let run_dir = Arc::new(RunDir::create(Some(base)).unwrap());
        let argv = vec![program.to_owned(), "60".to_owned()];
        let python = WorkerProgram::Python { python: program.into(), adapter: "a:A".to_owned() };
        let program =
            if program.starts_with('/') { python } else { WorkerProgram::Command { argv, adapter: None } };
        Arc::new(ProcessLauncher::new(ProcessConfig::new(program), run_dir))
    }

    fn names(dir: &std::path::Path) -> Vec<std::ffi::OsString> {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[tokio::test]
    async fn a_failed_spawn_leaves_no_files() {
        let base = tempfile::tempdir().unwrap();
        let launcher = launcher(base.path(), "/nonexistent/python");
        launcher.launch(request("w")).await.unwrap_err();
        let alone = launcher.launch(LaunchRequest::new(WorkerId::new("w"))).await.unwrap_err();
        assert!(matches!(alone, WorkerError::NoHost { .. }), "{alone}");
        assert_eq!(names(launcher.run_dir.path()), ["ledger"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn cancelled_launches_release_the_run_directory_before_shutdown_returns() {
        for pause in 0..10 {
            let base = tempfile::tempdir().unwrap();
            let launcher = launcher(base.path(), "sleep");
            let mut launches = tokio::task::JoinSet::new();
            for number in 0..16 {
                let launcher = Arc::clone(&launcher);
                let request = request(&format!("w-{number}"));
                launches.spawn(async move { launcher.launch(request).await.map(drop) });
            }
            tokio::time::sleep(Duration::from_micros(pause * 300)).await;
            launches.shutdown().await;
            launcher.shutdown().await;
            launcher.launch(request("late")).await.unwrap_err();
            drop(launcher);
            assert_eq!(names(base.path()), ["lock"]);
        }
    }
}
