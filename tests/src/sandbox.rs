//! A daemon for one test, in a temporary directory. Dropping its handle kills it.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde::Deserialize;
use snakepit_proto::{MAX_MESSAGE_BYTES, pb};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};
use tonic::transport::Endpoint;

use crate::{Client, is_alive, signal};

/// The time limit for a start to succeed or fail, and for commands.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The root of the repository.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The Python interpreter of the environment that contains `snakepit_bridge`.
#[must_use]
pub fn python() -> PathBuf {
    let python =
        std::env::var_os("SNAKEPIT_PYTHON").map_or_else(|| root().join(".venv/bin/python"), Into::into);
    assert!(python.exists(), "{} is missing; run `cargo xtask setup`", python.display());
    python
}

/// The path of the daemon's binary. It is in the directory of this program or, for tests, one directory above.
///
/// # Panics
/// If it does not exist. `cargo xtask` builds it before the tests.
#[must_use]
pub fn daemon_binary() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let mut candidates = program.ancestors().skip(1).take(2).map(|dir| dir.join("snakepit"));
    candidates.find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no daemon in the directory of {}; run `cargo build -p snakepit-cli`", program.display())
    })
}

/// Whether the workers receive each call as an RPC instead of on the multiplexed stream. `cargo xtask test` runs the same
/// scenarios in both modes.
#[must_use]
pub fn plain_calls() -> bool {
    std::env::var_os("SNAKEPIT_TEST_PLAIN").is_some()
}

/// The configuration file that the daemon reads from its working directory.
const CONFIG: &str = "snakepit.toml";

/// A running daemon.
#[derive(Debug)]
pub struct Sandbox {
    child: Child,
    ready: Ready,
    dir: tempfile::TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

#[derive(Debug, Deserialize)]
struct Ready {
    grpc: String,
    socket: PathBuf,
    pid: u32,
}

/// The outcome of a daemon that did not become ready.
#[derive(Debug)]
pub struct StartFailure {
    /// The exit code.
    pub code: Option<i32>,
    /// The complete stderr.
    pub stderr: String,
}

/// The options of a daemon to start.
#[derive(Debug)]
pub struct SandboxBuilder {
    args: Vec<String>,
    python: PathBuf,
    dir: tempfile::TempDir,
    listen: String,
    environment: Vec<(String, String)>,
    shell: Option<String>,
    working_dir: Option<PathBuf>,
}

/// A daemon that is starting.
#[derive(Debug)]
pub struct StartingSandbox {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    dir: tempfile::TempDir,
    log: Arc<Mutex<Vec<String>>>,
    drain: JoinHandle<()>,
}

impl Sandbox {
    /// Configures a daemon that serves an adapter with a number of workers.
    #[must_use]
    pub fn adapter(adapter: &str, workers: usize) -> SandboxBuilder {
        SandboxBuilder::new(&["--adapter", adapter], workers)
    }

    /// Configures a daemon whose workers run another program.
    #[must_use]
    pub fn worker_command(command: &str, workers: usize) -> SandboxBuilder {
        SandboxBuilder::new(&["--worker-command", command], workers)
    }

    /// Returns the URL of its gRPC port.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.ready.grpc
    }

    /// Returns the path of its Unix socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.ready.socket
    }

    /// Returns the pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.ready.pid
    }

    /// Returns the temporary directory with its sockets and ledger.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Returns the lines of the log, including those that follow later.
    #[must_use]
    pub fn log_handle(&self) -> Arc<Mutex<Vec<String>>> {
        Arc::clone(&self.log)
    }

    /// Opens a new connection.
    pub async fn client(&self) -> Client {
        let channel = Endpoint::from_shared(self.ready.grpc.clone()).unwrap().connect().await.unwrap();
        Client::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Lists its workers.
    pub async fn workers(&self) -> Vec<pb::WorkerInfo> {
        self.client().await.list_workers(pb::ListWorkersRequest {}).await.unwrap().into_inner().workers
    }

    /// Returns the pids of its workers.
    pub async fn worker_pids(&self) -> Vec<u32> {
        self.workers().await.into_iter().map(|worker| worker.pid).filter(|pid| *pid != 0).collect()
    }

    /// Runs a command against any server.
    pub async fn cli_at(server: &str, args: &[&str]) -> Output {
        let mut command = Command::new(daemon_binary());
        command.args(args).env("SNAKEPIT_SERVER", server).stdin(Stdio::null()).kill_on_drop(true);
        timeout(START_TIMEOUT, command.output()).await.expect("the command did not end").unwrap()
    }

    /// Runs a command against this daemon.
    pub async fn cli(&self, args: &[&str]) -> Output {
        self.cli_into(Stdio::piped(), args).await
    }

    /// Runs a command against this daemon, with the given stdout.
    pub async fn cli_into(&self, stdout: impl Into<Stdio>, args: &[&str]) -> Output {
        let mut command = Command::new(daemon_binary());
        command.args(args).env("SNAKEPIT_SERVER", self.url()).stdin(Stdio::null()).stderr(Stdio::piped());
        let child = command.stdout(stdout).kill_on_drop(true).spawn().unwrap();
        timeout(START_TIMEOUT, child.wait_with_output()).await.expect("the command did not end").unwrap()
    }

    /// Runs a command against this daemon and returns its stdout. Panics if the command fails.
    pub async fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?} failed: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits for the daemon to end and returns its exit code.
    pub async fn wait(&mut self, bound: Duration) -> Option<i32> {
        timeout(bound, self.child.wait()).await.expect("the daemon did not end").unwrap().code()
    }

    /// Sends SIGTERM, waits for the daemon to end, and returns its exit code.
    pub async fn stop(mut self) -> Option<i32> {
        signal(self.ready.pid, Signal::SIGTERM);
        self.wait(Duration::from_secs(20)).await
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the daemon's log\n{}", self.log());
        }
        // The pid in the ready line may belong to another PID namespace.
        if let Some(pid) = self.child.id().filter(|pid| is_alive(*pid)) {
            // SIGKILL is faster than SIGTERM, and the workers must end with their host in any case.
            signal(pid, Signal::SIGKILL);
        }
    }
}

impl SandboxBuilder {
    fn new(args: &[&str], workers: usize) -> Self {
        let mut args: Vec<String> = args.iter().map(ToString::to_string).collect();
        args.extend(["--workers".to_owned(), workers.to_string()]);
        Self {
            args,
            python: python(),
            dir: tempfile::tempdir().unwrap(),
            listen: "127.0.0.1:0".to_owned(),
            environment: Vec::new(),
            shell: None,
            working_dir: None,
        }
    }

    /// Adds command line arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Sets the Python interpreter of the workers.
    #[must_use]
    pub fn python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = python.into();
        self
    }

    /// Sets the listen address; the default is a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = address.into();
        self
    }

    /// Sets an environment variable of the daemon and, by inheritance, of its workers.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Starts the daemon from a shell script, in which `"$@"` is the command line, as in `exec "$@" 2>/dev/full`.
    #[must_use]
    pub fn shell(mut self, line: impl Into<String>) -> Self {
        self.shell = Some(line.into());
        self
    }

    /// Sets the working directory; the default is the temporary directory.
    #[must_use]
    pub fn working_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.working_dir = Some(dir.into());
        self
    }

    /// Writes `snakepit.toml` in the temporary directory.
    #[must_use]
    pub fn config(self, text: &str) -> Self {
        std::fs::write(self.dir.path().join(CONFIG), text).unwrap();
        self
    }

    /// Uses the temporary directory of an earlier daemon.
    #[must_use]
    pub fn after(mut self, mut earlier: Sandbox) -> Self {
        std::mem::swap(&mut self.dir, &mut earlier.dir);
        self
    }

    /// Starts the daemon and waits until it is ready. Panics if it fails.
    pub async fn start(self) -> Sandbox {
        match self.try_start().await {
            Ok(sandbox) => sandbox,
            Err(failure) => panic!("the daemon did not start ({:?}):\n{}", failure.code, failure.stderr),
        }
    }

    /// Starts the daemon and waits until it is ready or has failed.
    pub async fn try_start(self) -> Result<Sandbox, StartFailure> {
        self.spawn().outcome().await
    }

    /// Starts the process without waiting.
    #[must_use]
    pub fn spawn(self) -> StartingSandbox {
        let mut command = match &self.shell {
            Some(line) => {
                let mut command = Command::new("bash");
                command.args(["-c", line, "bash"]).arg(daemon_binary());
                command
            }
            None => Command::new(daemon_binary()),
        };
        command
            .arg("serve")
            .args(&self.args)
            .args(["--listen", &self.listen])
            .arg("--python")
            .arg(&self.python)
            .arg("--run-dir")
            .arg(self.dir.path())
            .current_dir(self.working_dir.as_deref().unwrap_or(self.dir.path()))
            .env("PYTHONPATH", root().join("tests/adapters"))
            .env("SNAKEPIT_TEST_STUBS", root().join(".venv/stubs"))
            .env("SNAKEPIT_LOG", "info,snakepit=debug")
            .envs(self.environment)
            .args(plain_calls().then_some("--no-multiplex"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let drain = tokio::task::spawn(drain(stderr, Arc::clone(&log)));
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        StartingSandbox { child, stdout, dir: self.dir, log, drain }
    }
}

impl StartingSandbox {
    /// Returns the pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the process was not awaited yet")
    }

    /// Returns the directory of its sockets and its ledger.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits for the daemon to end and returns its exit code.
    pub async fn wait(&mut self, bound: Duration) -> Option<i32> {
        timeout(bound, self.child.wait()).await.expect("the daemon did not end").unwrap().code()
    }

    /// Waits until the daemon is ready or has failed.
    pub async fn outcome(mut self) -> Result<Sandbox, StartFailure> {
        let line = timeout(START_TIMEOUT, self.stdout.next_line())
            .await
            .expect("the daemon neither became ready nor failed");
        match line.unwrap() {
            Some(line) => {
                let ready = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                Ok(Sandbox { child: self.child, ready, dir: self.dir, log: self.log })
            }
            None => {
                let code = self.child.wait().await.unwrap().code();
                let files: Vec<_> =
                    std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
                assert!(
                    files.iter().all(|name| name == "lock" || name == CONFIG),
                    "files remain in the run directory: {files:?}"
                );
                self.drain.await.unwrap();
                let stderr = self.log.lock().unwrap().join("\n");
                Err(StartFailure { code, stderr })
            }
        }
    }
}

impl StartFailure {
    /// Returns the line with the error. Panics if stderr does not contain one.
    #[must_use]
    pub fn line(&self) -> &str {
        let line = self.stderr.lines().find(|line| line.starts_with("snakepit: "));
        line.unwrap_or_else(|| panic!("no line begins with `snakepit: `:\n{}", self.stderr))
    }
}

async fn drain(stderr: BufReader<tokio::process::ChildStderr>, log: Arc<Mutex<Vec<String>>>) {
    let mut lines = stderr.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.lock().unwrap().push(line);
    }
}
