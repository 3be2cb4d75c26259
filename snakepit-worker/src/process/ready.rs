//! Waiting until a worker is ready: by its message on the control channel, or, for workers of others, by whichever of the
//! three signals comes first.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use snakepit_proto::launch::ControlMessage;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixStream,
    time::Instant,
};

use super::{ProcessConfig, run_dir::WorkerFiles, supervise::Supervised};
use crate::WorkerError;

/// How often the ready file is looked for. Nothing portable tells when a file appears, and the first look that finds
/// it ends the wait; workers of this project do not use it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Where a worker serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

impl Address {
    fn parse(address: &str) -> Self {
        match address.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.into()),
            None => Self::Tcp(address.to_owned()),
        }
    }

    fn port(port: u16) -> Self {
        Self::Tcp(format!("127.0.0.1:{port}"))
    }
}

/// Waits until the worker says where it serves.
///
/// # Errors
/// When it says that it cannot, ends, or says nothing until the deadline.
pub(super) async fn wait(
    supervised: &mut Supervised,
    files: &WorkerFiles,
    config: &ProcessConfig,
    deadline: Instant,
) -> Result<Address, WorkerError> {
    let (mut exit, mut port) = (supervised.exit_watch(), supervised.ready_port());
    // A tool of our own workers may print anything, at import too, and must not be believed.
    let foreign = !config.is_native();
    let signal = async {
        tokio::select! {
            message = control_message(supervised.control()) => match message {
                ControlMessage::Ready { address } => Ok(Address::parse(&address)),
                ControlMessage::Failed { error, traceback } => Err(WorkerError::Refused { error, traceback }),
            },
            port = announced(&mut port), if foreign => Ok(Address::port(port)),
            port = written(&files.ready), if foreign => Ok(Address::port(port)),
        }
    };
    tokio::select! {
        // A worker that says why it ends is believed before its end is reported.
        biased;
        ready = signal => ready,
        exit = ended(&mut exit) => {
            Err(WorkerError::EndedEarly { reason: exit.reason.to_string(), output_lines: exit.output_lines })
        }
        () = tokio::time::sleep_until(deadline) => Err(WorkerError::NotReady {
            timeout: config.start_timeout,
            output_lines: supervised.output().lines(),
        }),
    }
}

/// The worker's one message; never, for workers that do not speak on the control channel.
async fn control_message(control: &mut UnixStream) -> ControlMessage {
    let mut lines = BufReader::new(control).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(message) => return message,
            Err(error) => tracing::warn!(line, %error, "skipped a control message that cannot be read"),
        }
    }
    std::future::pending().await
}

/// The port of a readiness line on stdout or stderr.
async fn announced(port: &mut tokio::sync::watch::Receiver<Option<u16>>) -> u16 {
    let known = port.wait_for(Option::is_some).await.ok().and_then(|port| *port);
    match known {
        Some(port) => port,
        // Both streams ended without a readiness line.
        None => std::future::pending().await,
    }
}

/// The port in the ready file.
async fn written(path: &Path) -> u16 {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        look.tick().await;
        if let Some(port) = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()) {
            return port;
        }
    }
}

/// The worker's end.
pub(super) async fn ended(exit: &mut super::supervise::ExitWatch) -> crate::WorkerExit {
    match exit.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(exit)) => exit.clone(),
        _ => crate::WorkerExit {
            reason: crate::ExitReason::Killed { why: "its supervisor was dropped".to_owned() },
            output_lines: Vec::new(),
        },
    }
}
