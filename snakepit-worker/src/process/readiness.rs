//! Waits until a worker is ready.
//!
//! This project's workers report readiness on the control channel. Foreign workers may use the control channel, a readiness
//! line on stdout or stderr, or the ready file. The first report counts.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use snakepit_proto::launch::{self, ControlMessage};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixStream,
    time::Instant,
};

use super::{ProcessConfig, run_dir::WorkerFiles, supervisor::SupervisedProcess};
use crate::{CallLimits, WorkerError};

/// The polling interval for the ready file. There is no portable notification for a new file. This project's workers do not
/// use it.
const READY_FILE_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The address at which a worker serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WorkerAddress {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for WorkerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

impl WorkerAddress {
    pub(super) fn parse(address: &str) -> Self {
        match address.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.into()),
            None => Self::Tcp(address.to_owned()),
        }
    }

    fn port(port: u16) -> Self {
        Self::Tcp(format!("127.0.0.1:{port}"))
    }
}

/// The report of a worker that accepts calls.
#[derive(Debug)]
pub(super) struct Readiness {
    pub(super) address: WorkerAddress,
    /// The number of calls that the worker runs concurrently.
    pub(super) concurrency: Option<usize>,
    pub(super) call_limits: Option<CallLimits>,
}

impl Readiness {
    const fn of_foreign(address: WorkerAddress) -> Self {
        Self { address, concurrency: None, call_limits: None }
    }
}

/// Waits until the worker reports that it accepts calls.
///
/// # Errors
/// If the worker reports a failure, exits, or does not report until the deadline.
pub(super) async fn wait_ready(
    supervised: &mut SupervisedProcess,
    files: &WorkerFiles,
    config: &ProcessConfig,
    deadline: Instant,
) -> Result<Readiness, WorkerError> {
    let (exit, mut port) = (supervised.exit_watch(), supervised.ready_port());
    // Tools of this project's workers may print a readiness line, even at import, so only foreign workers may use one.
    let is_foreign = !config.is_native();
    let report = async {
        tokio::select! {
            message = control_message(supervised.control()) => match message {
                ControlMessage::Ready { address, concurrency, call_limits } => Ok(Readiness {
                    address: WorkerAddress::parse(&address),
                    concurrency,
                    call_limits: call_limits.map(call_limits_of),
                }),
                ControlMessage::Failed { error, traceback } => Err(WorkerError::StartFailed { error, traceback, source: None }),
            },
            port = port_from_output(&mut port), if is_foreign => Ok(Readiness::of_foreign(WorkerAddress::port(port))),
            port = port_from_file(&files.ready), if is_foreign => Ok(Readiness::of_foreign(WorkerAddress::port(port))),
        }
    };
    tokio::select! {
        // Prefers the worker's failure message to its exit.
        biased;
        address = report => address,
        exit = exit.exited() => {
            Err(WorkerError::EndedEarly { reason: exit.reason.to_string(), output_lines: exit.output_lines })
        }
        () = tokio::time::sleep_until(deadline) => Err(WorkerError::NotReady {
            timeout: config.start_timeout,
            output_lines: supervised.output().lines(),
        }),
    }
}

fn call_limits_of(limits: launch::CallLimits) -> CallLimits {
    let launch::CallLimits { shared, tools, plain, plain_tools, shared_tools } = limits;
    let mut limits = CallLimits::new(shared).with_plain_tools(plain, plain_tools);
    if let Some(shared_tools) = shared_tools {
        limits = limits.with_other_tools_plain(shared_tools);
    }
    tools.into_iter().fold(limits, |limits, (tool, calls)| limits.with_tool(tool, calls))
}

/// Reads the worker's message from the control channel. Never returns for workers that do not use it.
async fn control_message(control: &mut UnixStream) -> ControlMessage {
    let mut lines = BufReader::new(control).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(message) => return message,
            Err(error) => tracing::warn!(line, %error, "skipped a control message that cannot be parsed"),
        }
    }
    std::future::pending().await
}

/// Waits for the port of a readiness line on stdout or stderr.
async fn port_from_output(port: &mut tokio::sync::watch::Receiver<Option<u16>>) -> u16 {
    match port.wait_for(Option::is_some).await.ok().and_then(|port| *port) {
        Some(port) => port,
        // Both streams ended without a readiness line.
        None => std::future::pending().await,
    }
}

/// Waits for the port in the ready file.
async fn port_from_file(path: &Path) -> u16 {
    let mut ticks = tokio::time::interval(READY_FILE_POLL_INTERVAL);
    loop {
        ticks.tick().await;
        if let Some(port) = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) {
            return port;
        }
    }
}
