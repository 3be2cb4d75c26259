//! Custom launchers that start processes: Python workers that a program starts, and that register over the host's socket.

use std::{
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use snakepit_server::{
    ConnectedWorker, ExitReason, FnTool, LaunchRequest, Snakepit, ToolError, Worker, WorkerCommand,
    WorkerError, WorkerExit, WorkerLauncher,
};
use snakepit_tests::{SHOWCASE, Signal, python, signal};
use tokio::{process::Command, sync::Notify, task::JoinSet};

/// Starts the packaged runtime with its own command line, as a launcher for containers or other machines does.
#[derive(Debug)]
struct OwnProcesses {
    dir: PathBuf,
    /// Whether the launcher passes the pid to the host.
    knows_pid: bool,
    number: AtomicUsize,
    supervisors: Mutex<JoinSet<()>>,
}

impl OwnProcesses {
    fn new(dir: &tempfile::TempDir, knows_pid: bool) -> Self {
        let dir = dir.path().to_owned();
        Self { dir, knows_pid, number: AtomicUsize::new(0), supervisors: Mutex::default() }
    }
}

#[async_trait::async_trait]
impl WorkerLauncher for OwnProcesses {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        let failed = |error: std::io::Error| {
            WorkerError::start_failed("its process cannot be started").with_source(error)
        };
        let host = request.host.ok_or_else(|| WorkerError::start_failed("no host"))?;
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let socket = self.dir.join(format!("own-{number}.sock"));

        let guard = host.admit(&request.id);
        let (mut control, stdin) = UnixStream::pair().map_err(failed)?;
        control.write_all(&guard.first_line()).map_err(failed)?;
        let mut command = Command::new(python());
        command.args(["-m", "snakepit_bridge.worker", "--adapter", SHOWCASE]).args(guard.arguments());
        command.envs(guard.environment()).env("SNAKEPIT_SOCKET", &socket);
        command.stdin(Stdio::from(OwnedFd::from(stdin))).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        match child.id() {
            Some(pid) if self.knows_pid => guard.record_pid(pid),
            _ => guard.accept_any_process(),
        }

        let address = format!("unix:{}", socket.display());
        let connected =
            ConnectedWorker::connect(request.id, child.id(), &address, Duration::from_secs(60)).await?;
        let ConnectedWorker { worker, mut launcher_end, connection, .. } = connected;
        self.supervisors.lock().unwrap().spawn(async move {
            let _alive = (guard, control);
            let reason = tokio::select! {
                command = launcher_end.command() => match command {
                    WorkerCommand::Stop { .. } => ExitReason::Stopped,
                    WorkerCommand::Kill { reason } => ExitReason::Killed { reason },
                },
                () = connection => ExitReason::Killed { reason: "its connection broke".to_owned() },
            };
            let _ = child.kill().await;
            launcher_end.exited(WorkerExit::new(reason));
        });
        Ok(worker)
    }
}

async fn run_calls_and_replace_worker(knows_pid: bool) {
    let dir = tempfile::tempdir().unwrap();
    let same = FnTool::typed("same", |args: Value| async move { args });
    let waiting = Arc::new(Notify::new());
    let wait = {
        let waiting = Arc::clone(&waiting);
        FnTool::typed("wait", move |_: Value| {
            waiting.notify_one();
            std::future::pending::<Value>()
        })
    };
    let host = Snakepit::builder()
        .launcher(Arc::new(OwnProcesses::new(&dir, knows_pid)))
        .fn_tool(same)
        .fn_tool(wait)
        .workers(1)
        .run_dir(dir.path().join("run"));
    let host = host.start().await.unwrap();
    assert_eq!(host.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap(), 3);
    // The worker calls the host, too.
    let arguments = json!({"tool_name": "same", "arguments": {"n": 1}});
    let answer: Value = host.execute("call_host", arguments).await.unwrap();
    assert_eq!(answer["n"], 1, "{answer}");

    let worker = host.status().workers[0].clone();
    let long = host.execute::<Value>("call_host", json!({"tool_name": "wait"}));
    let kill = async {
        // The pool would repeat a call that has not begun.
        waiting.notified().await;
        signal(worker.pid.unwrap(), Signal::SIGKILL);
    };
    let (lost, ()) = tokio::join!(long, kill);
    let lost = lost.unwrap_err();
    assert!(matches!(lost, snakepit_server::Error::Tool(ToolError::WorkerLost { .. })), "{lost}");
    // The pool replaces the worker through the same launcher.
    assert_eq!(host.execute::<i64>("add", json!({"a": 1, "b": 2})).await.unwrap(), 3);
    assert_ne!(host.status().workers[0].id, worker.id);
    host.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_launcher_starts_python_workers_that_register_with_their_token() {
    run_calls_and_replace_worker(true).await;
}

#[tokio::test]
async fn a_launcher_that_does_not_know_the_pid_admits_the_first_process_with_the_token() {
    run_calls_and_replace_worker(false).await;
}

/// Nested calls of a worker are identified although the launcher does not know its pid.
#[tokio::test]
async fn a_deadlock_through_an_unknown_process_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let this: Arc<std::sync::OnceLock<Snakepit>> = Arc::default();
    let host = Arc::clone(&this);
    let call_again = move |()| {
        let host = host.get().unwrap().clone();
        async move { host.execute::<f64>("add", json!({"a": 1, "b": 2})).await.map_err(|error| error.to_string()) }
    };
    let launcher = Arc::new(OwnProcesses::new(&dir, false));
    let host = Snakepit::builder().launcher(launcher).workers(1).run_dir(dir.path().join("run"));
    let host = host.fn_tool(FnTool::typed("call_again", call_again)).start().await.unwrap();
    assert!(this.set(host.clone()).is_ok());
    let nested =
        host.execute::<Value>("call_host", json!({"tool_name": "call_again"})).await.unwrap_err().to_string();
    assert!(nested.contains("would wait for itself"), "{nested}");
    host.shutdown().await.unwrap();
}
