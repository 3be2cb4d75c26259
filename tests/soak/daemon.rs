//! The daemon under test, with few descriptors and a log reader that can stall.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use serde::Deserialize;
use snakepit_proto::pb;
use snakepit_tests::{Client, Redis, Signal, daemon_binary, python, root, signal};
use tokio::{
    io::AsyncBufReadExt,
    process::{Child, Command},
    time::timeout,
};
use tonic::transport::Endpoint;

/// The number of workers.
pub(crate) const WORKERS: usize = 4;
/// The limit of descriptors: low enough for the test to exhaust them, high enough for clients and workers.
const DESCRIPTORS: u32 = 256;
/// The number of recent log lines that error messages can show.
const MAX_LOG_LINES: usize = 400;

/// A running `snakepit serve`.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) url: String,
    pub(crate) pid: u32,
    dir: tempfile::TempDir,
    log: Arc<Log>,
}

#[derive(Deserialize)]
struct Ready {
    grpc: String,
    pid: u32,
}

#[derive(Default)]
struct Log {
    is_stalled: Mutex<bool>,
    resumed: Condvar,
    lines: Mutex<VecDeque<String>>,
    panics: Mutex<Vec<String>>,
}

impl Daemon {
    pub(crate) async fn start(redis: &Redis) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        std::fs::create_dir(dir.path().join("marks")).unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"")])
            .arg(daemon_binary())
            .args(["serve", "--adapter", "soak_tools:SoakTools", "--listen", "127.0.0.1:0"])
            .args(["--workers", &WORKERS.to_string(), "--sessions", &redis.url()])
            .arg("--run-dir")
            .arg(dir.path().join("run"))
            .arg("--python")
            .arg(python())
            .current_dir(dir.path())
            .env("PYTHONPATH", root().join("tests/adapters"))
            .env("SNAKEPIT_TEST_SOAK_MARKS", dir.path().join("marks"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().unwrap().into_owned_fd().unwrap();
        let reader = BufReader::new(std::fs::File::from(stderr));
        // The reader has its own thread, because it blocks on the pipe, and while the log is stalled.
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || log.read(reader)
        });
        let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let line =
            timeout(Duration::from_secs(60), stdout.next_line()).await.expect("the daemon becomes ready");
        let line = line.unwrap().unwrap_or_else(|| panic!("the daemon did not start:\n{}", log.tail(50)));
        let Ready { grpc, pid } = serde_json::from_str(&line).unwrap();
        Self { child, url: grpc, pid, dir, log }
    }

    /// Opens a new connection.
    pub(crate) async fn client(&self) -> Client {
        Client::new(Endpoint::from_shared(self.url.clone()).unwrap().connect().await.unwrap())
    }

    /// Returns `host:port`.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    pub(crate) fn run_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn marks(&self) -> std::path::PathBuf {
        self.dir.path().join("marks")
    }

    /// Stops or resumes reading the log.
    pub(crate) fn stall_log(&self, is_stalled: bool) {
        *self.log.is_stalled.lock().unwrap() = is_stalled;
        self.log.resumed.notify_all();
    }

    pub(crate) fn log_tail(&self, lines: usize) -> String {
        self.log.tail(lines)
    }

    pub(crate) fn panics(&self) -> Vec<String> {
        self.log.panics.lock().unwrap().clone()
    }

    /// The number of open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }

    /// The resident memory, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        resident_kib(self.pid)
    }

    /// Stops the daemon. Returns its exit code, the files left in its run directory, and the temporary directory.
    pub(crate) async fn stop(mut self) -> (Option<i32>, Vec<String>, tempfile::TempDir) {
        signal(self.pid, Signal::SIGTERM);
        let code = match timeout(Duration::from_secs(30), self.child.wait()).await {
            Ok(status) => status.unwrap().code(),
            Err(_) => None,
        };
        (code, names(&self.run_dir()), self.dir)
    }
}

/// Lists the workers.
pub(crate) async fn workers(client: &mut Client) -> Result<Vec<pb::WorkerInfo>, tonic::Status> {
    Ok(client.list_workers(pb::ListWorkersRequest {}).await?.into_inner().workers)
}

/// The resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

impl Log {
    fn read(&self, reader: BufReader<std::fs::File>) {
        // Tools may print invalid UTF-8.
        for line in reader.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line[..line.len().min(2000)]).into_owned();
            if line.contains("panicked") {
                self.panics.lock().unwrap().push(line.clone());
            }
            let mut lines = self.lines.lock().unwrap();
            if lines.len() == MAX_LOG_LINES {
                lines.pop_front();
            }
            lines.push_back(line);
            drop(lines);
            let is_stalled = self.is_stalled.lock().unwrap();
            drop(self.resumed.wait_while(is_stalled, |is_stalled| *is_stalled).unwrap());
        }
    }

    fn tail(&self, count: usize) -> String {
        let lines = self.lines.lock().unwrap();
        lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect::<Vec<_>>().join("\n")
    }
}
