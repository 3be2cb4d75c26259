//! The one place where processes are started.
#![allow(clippy::disallowed_methods, reason = "this is that place")]

use std::{
    io::Write,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
};

use snakepit_proto::launch::{self, HostMessage};
use tokio::{net::UnixStream, process::Command, runtime::Handle, sync::oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{ProcessConfig, RunDir, process_group::ProcessGroup, run_dir::WorkerFiles};
use crate::{WorkerError, WorkerId};

/// A process that has just been started.
#[derive(Debug)]
pub(super) struct SpawnedProcess {
    pub(super) group: ProcessGroup,
    /// The host's end of the control channel. The worker reads end-of-file from its own when this one closes.
    pub(super) control: UnixStream,
}

/// How a worker reaches the host, and proves to it who it is.
#[derive(Debug)]
pub(super) enum HostEndpoint<'a> {
    /// Through the host's socket, with this token.
    Socket { token: &'a str },
    /// At this address, which is its own.
    Listener(SocketAddr),
}

/// Starts the process of a worker. The token is held until the process is started or was not, also when nobody waits for
/// that any more. It is handed on before the first pause.
///
/// # Errors
/// [`WorkerError::Spawn`] when the program cannot be run.
pub(super) async fn spawn(
    id: &WorkerId,
    config: &ProcessConfig,
    run_dir: &Arc<RunDir>,
    working_dir: Option<&Path>,
    files: &WorkerFiles,
    endpoint: HostEndpoint<'_>,
    token: TaskTrackerToken,
) -> Result<SpawnedProcess, WorkerError> {
    let (program, args) = config.command_line();
    let shown = program.to_string_lossy().into_owned();
    let failed = |problem: String| WorkerError::Spawn { program: shown.clone(), problem };
    let (mut ours, theirs) = StdUnixStream::pair().map_err(|e| failed(e.to_string()))?;
    if let HostEndpoint::Socket { token } = endpoint {
        // It waits in the channel, where no other process can see it, until the worker reads it. It fits into any buffer.
        let message = HostMessage::Launched { token: token.to_owned() };
        let mut line = serde_json::to_vec(&message).map_err(|e| failed(e.to_string()))?;
        line.push(b'\n');
        ours.write_all(&line).map_err(|e| failed(e.to_string()))?;
    }

    let mut command = Command::new(program);
    command.args(args).args(contract_args(&endpoint, run_dir));
    command.env(launch::ENV_RUN_ID, run_dir.id()).env(launch::ENV_WORKER_ID, id.as_str());
    command.env(launch::ENV_CONTROL, launch::CONTROL_STDIN).env(launch::ENV_HOST_VERSION, launch::VERSION);
    if config.is_native() {
        command.env(launch::ENV_SOCKET, &files.socket).env(launch::ENV_PROGRESS, &files.progress);
        command.env(launch::ENV_STOP_GRACE, config.stop_grace.as_millis().to_string());
    } else {
        command.env(launch::ENV_READY_FILE, &files.ready);
    }
    command.envs(config.env.iter().map(|(name, value)| (name, value)));
    if std::env::current_dir().is_err() {
        // The working directory was removed, as when an old release is pruned. Workers need one that is there; the same path
        // may lead to its successor.
        let dir = working_dir.filter(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
        tracing::warn!(worker = %id, dir = %dir.display(), "the working directory was removed; using another one");
        command.current_dir(dir);
    }
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: signals for this program's terminal do not reach it, and its children can be killed with it.
    command.process_group(0).kill_on_drop(true);
    // Code between fork and exec makes the system copy this program's page tables, which takes ten milliseconds per
    // gigabyte. This project's workers need none: they watch their lifeline before all else.
    if !config.is_native() {
        arm_pdeathsig(&mut command);
    }

    let group = spawn_on_permanent_thread(command, Arc::clone(run_dir), token).await;
    let group = group.map_err(|e| failed(e.to_string()))?;
    let control = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
    Ok(SpawnedProcess { group, control: control.map_err(|e| failed(e.to_string()))? })
}

/// The arguments of the launch contract.
fn contract_args(endpoint: &HostEndpoint<'_>, run_dir: &RunDir) -> [String; 6] {
    let host = match endpoint {
        HostEndpoint::Socket { .. } => format!("unix:{}", run_dir.host_socket().display()),
        HostEndpoint::Listener(address) => address.to_string(),
    };
    let (port, run_id) = ("0".to_owned(), run_dir.id().to_owned());
    let [a, b, c] = [launch::ARG_PORT, launch::ARG_HOST_ADDRESS, launch::ARG_RUN_ID].map(str::to_owned);
    [a, port, b, host, c, run_id]
}

/// Has the kernel kill the process when this one dies, however it dies.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "there is no safe way to run code between fork and exec")]
fn arm_pdeathsig(command: &mut Command) {
    use nix::sys::{prctl::set_pdeathsig, signal::Signal};

    let host = nix::unistd::getpid();
    let arm = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The host may have died before the signal was armed, and then nobody would send it.
        if nix::unistd::getppid() == host { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run. `arm` makes the system calls prctl and
    // getppid; it neither allocates nor takes locks.
    unsafe {
        command.pre_exec(arm);
    }
}

#[cfg(not(target_os = "linux"))]
fn arm_pdeathsig(_: &mut Command) {
    // Elsewhere the lifeline does it: the worker reads end-of-file on its control channel.
}

/// Held from the start of a process until it is entered into its ledger: a child that is not, while this is not held, is none
/// that was started here.
pub(super) fn lock_spawning() -> MutexGuard<'static, ()> {
    static SPAWNING: Mutex<()> = Mutex::new(());
    SPAWNING.lock().unwrap_or_else(PoisonError::into_inner)
}

struct SpawnRequest {
    command: Command,
    run_dir: Arc<RunDir>,
    runtime: Handle,
    answer: oneshot::Sender<std::io::Result<ProcessGroup>>,
    /// Whoever shuts down waits for it, because this thread outlives the runtime, and with it the run directory would.
    token: TaskTrackerToken,
}

impl SpawnRequest {
    /// Starts the process, and enters it into the ledger before anybody can lose sight of it.
    fn run(self) {
        let Self { mut command, run_dir, runtime, answer, token } = self;
        if answer.is_closed() {
            drop(run_dir);
            return drop(token);
        }
        let start = || {
            let _in_runtime = runtime.enter();
            let _spawning = lock_spawning();
            let child = command.spawn()?;
            ProcessGroup::new(child, run_dir).ok_or_else(|| std::io::Error::other("it ended at once"))
        };
        // A runtime that shuts down panics here.
        let started = catch_unwind(AssertUnwindSafe(start))
            .unwrap_or_else(|_| Err(std::io::Error::other("the runtime cannot watch it")));
        // Whoever asked may be gone; the group is then dropped, and so killed.
        let _ = answer.send(started);
        // Last of all: nothing of the run directory is held here any more.
        drop(token);
    }
}

/// The kernel sends the death signal when the *thread* that started a process ends, so processes are started by a
/// thread that never does.
async fn spawn_on_permanent_thread(
    command: Command,
    run_dir: Arc<RunDir>,
    token: TaskTrackerToken,
) -> std::io::Result<ProcessGroup> {
    static THREAD: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    let requests = THREAD.get_or_init(|| {
        let (requests, received) = mpsc::channel::<SpawnRequest>();
        // The thread must go on whatever happens: every worker would die with it.
        let run = move || {
            for request in received {
                let _ = catch_unwind(AssertUnwindSafe(|| request.run()));
            }
        };
        // Without a thread the channel is closed, which the send below reports.
        if let Err(error) = std::thread::Builder::new().name("snakepit-spawn".to_owned()).spawn(run) {
            tracing::error!(%error, "failed to start the thread that starts workers");
        }
        requests
    });
    let stopped = || std::io::Error::other("the thread that starts workers is gone");
    let (answer, answered) = oneshot::channel();
    let request = SpawnRequest { command, run_dir, runtime: Handle::current(), answer, token };
    requests.send(request).map_err(|_| stopped())?;
    answered.await.map_err(|_| stopped())?
}
