//! Starts worker processes. No other module starts processes.
#![allow(clippy::disallowed_methods, reason = "this module starts the workers")]

use std::{
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
};

use snakepit_proto::launch::{ENV_PROGRESS, ENV_READY_FILE, ENV_SOCKET, ENV_STOP_GRACE};
use tokio::{net::UnixStream, process::Command, runtime::Handle, sync::oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{
    ProcessConfig, RunDir, environment::Variable, launches::LaunchGuard, process_group::ProcessGroup,
    run_dir::WorkerFiles,
};
use crate::{SharedError, WorkerError, WorkerId};

/// A newly started process.
#[derive(Debug)]
pub(super) struct SpawnedProcess {
    pub(super) group: ProcessGroup,
    /// The host's end of the control channel. When it closes, the worker reads end-of-file from its end.
    pub(super) control: UnixStream,
}

/// Starts the process of a worker.
///
/// `token` keeps its task tracker open until the process has started or failed to start.
///
/// # Errors
/// [`WorkerError::Spawn`] if the program cannot be executed, [`WorkerError::StartFailed`] if its control channel cannot be
/// created.
///
/// # Cancel safety
/// If the future is dropped, a process that starts later is killed. `token` is moved to the spawning thread before the first
/// await, so a shutdown also waits for that process.
#[allow(clippy::too_many_arguments, reason = "the parts of one process, used once")]
pub(super) async fn spawn(
    id: &WorkerId,
    config: &ProcessConfig,
    environment: Vec<Variable>,
    run_dir: &Arc<RunDir>,
    working_dir: Option<&Path>,
    files: &WorkerFiles,
    launch: &LaunchGuard,
    token: TaskTrackerToken,
) -> Result<SpawnedProcess, WorkerError> {
    let (program, args) = config.command_line();
    let program_name = program.to_string_lossy().into_owned();
    let no_channel = |error: std::io::Error| {
        WorkerError::start_failed("its control channel cannot be created").with_source(error)
    };
    let (mut host_end, worker_end) = StdUnixStream::pair().map_err(no_channel)?;
    // Written before the worker starts. No other process can read the channel, and the line fits into its buffer.
    host_end.write_all(&launch.first_line()).map_err(no_channel)?;

    let mut command = Command::new(program);
    command.args(args).args(launch.arguments()).envs(launch.environment()).envs(environment);
    if config.is_native() {
        command.env(ENV_SOCKET, &files.socket).env(ENV_PROGRESS, &files.progress);
        command.env(ENV_STOP_GRACE, config.stop_grace.as_millis().to_string());
    } else {
        command.env(ENV_READY_FILE, &files.ready);
    }
    command.envs(config.env.iter().map(|(name, value)| (name, value)));
    if std::env::current_dir().is_err() {
        // The working directory was removed, for example with an old release. Workers need an existing directory, which may
        // be a new one at the same path.
        let dir = working_dir.filter(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
        tracing::warn!(worker = %id, dir = %dir.display(), "the working directory was removed; using another one");
        command.current_dir(dir);
    }
    command.stdin(Stdio::from(OwnedFd::from(worker_end))).stdout(Stdio::piped()).stderr(Stdio::piped());
    // In its own process group, the worker does not receive signals of this program's terminal, and the host can kill it together
    // with its children.
    command.process_group(0).kill_on_drop(true);
    // With a `pre_exec` hook, the standard library cannot use `posix_spawn`. Its `fork` copies this program's page tables, which
    // takes ten milliseconds per gigabyte. This project's workers do not need PDEATHSIG, because they watch their lifeline from
    // the beginning.
    if !config.is_native() {
        arm_pdeathsig(&mut command);
    }

    let group = spawn_on_permanent_thread(command, Arc::clone(run_dir), token).await;
    let group = group
        .map_err(|error| WorkerError::Spawn { program: program_name, source: SharedError::new(error) })?;
    let control = host_end.set_nonblocking(true).and_then(|()| UnixStream::from_std(host_end));
    Ok(SpawnedProcess { group, control: control.map_err(no_channel)? })
}

/// Sets `PR_SET_PDEATHSIG`, so that the kernel kills the worker when the host dies.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "there is no safe way to run code between fork and exec")]
fn arm_pdeathsig(command: &mut Command) {
    use nix::sys::{prctl::set_pdeathsig, signal::Signal};

    let host = nix::unistd::getpid();
    let arm = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // If the host died before this call, the kernel will not send the signal.
        if nix::unistd::getppid() == host { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    // SAFETY: only async-signal-safe functions may run between fork and exec. `arm` only makes the system calls prctl and
    // getppid. It neither allocates nor locks.
    unsafe {
        command.pre_exec(arm);
    }
}

#[cfg(not(target_os = "linux"))]
fn arm_pdeathsig(_: &mut Command) {
    // Other systems rely on the lifeline: the worker reads end-of-file from its control channel.
}

/// The lock that spawning holds from the start of a process until the ledger lists it. While a caller holds it, every child that
/// the ledger does not list is not a worker.
pub(super) fn lock_spawning() -> MutexGuard<'static, ()> {
    static SPAWNING: Mutex<()> = Mutex::new(());
    SPAWNING.lock().unwrap_or_else(PoisonError::into_inner)
}

struct SpawnRequest {
    command: Command,
    run_dir: Arc<RunDir>,
    runtime: Handle,
    result_sender: oneshot::Sender<std::io::Result<ProcessGroup>>,
    /// Makes the shutdown wait for this request. The spawning thread outlives the runtime and would otherwise keep the run
    /// directory.
    token: TaskTrackerToken,
}

impl SpawnRequest {
    /// Starts the process and adds it to the ledger.
    fn run(self) {
        let Self { mut command, run_dir, runtime, result_sender, token } = self;
        if result_sender.is_closed() {
            drop(run_dir);
            return drop(token);
        }
        let start = || {
            let _in_runtime = runtime.enter();
            let _spawning = lock_spawning();
            let child = command.spawn()?;
            ProcessGroup::new(child, run_dir).ok_or_else(|| std::io::Error::other("it exited immediately"))
        };
        // Panics if the runtime is shutting down.
        let started = catch_unwind(AssertUnwindSafe(start))
            .unwrap_or_else(|_| Err(std::io::Error::other("the tokio runtime is shutting down")));
        // If the caller was cancelled, this drops the group, which kills the process.
        let _ = result_sender.send(started);
        // Released last, when this thread holds no reference to the run directory.
        drop(token);
    }
}

/// Starts the process on a thread that never exits, because the kernel sends the PDEATHSIG when the *thread* that started the
/// process exits.
async fn spawn_on_permanent_thread(
    command: Command,
    run_dir: Arc<RunDir>,
    token: TaskTrackerToken,
) -> std::io::Result<ProcessGroup> {
    static THREAD: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    let requests = THREAD.get_or_init(|| {
        let (requests, request_receiver) = mpsc::channel::<SpawnRequest>();
        // A panic must not end the thread, because the kernel would then kill all workers.
        let run_requests = move || {
            for request in request_receiver {
                let _ = catch_unwind(AssertUnwindSafe(|| request.run()));
            }
        };
        // If the thread cannot be started, the channel closes, and the send below fails.
        if let Err(error) = std::thread::Builder::new().name("snakepit-spawn".to_owned()).spawn(run_requests)
        {
            tracing::error!(%error, "failed to start the thread that starts workers");
        }
        requests
    });
    let stopped = || std::io::Error::other("the thread that starts workers has stopped");
    let (result_sender, result) = oneshot::channel();
    let request = SpawnRequest { command, run_dir, runtime: Handle::current(), result_sender, token };
    requests.send(request).map_err(|_| stopped())?;
    result.await.map_err(|_| stopped())?
}
