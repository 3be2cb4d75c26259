//! Supervises a worker process with one task, from its start until it is reaped.
//!
//! The task waits for the process, kills its process group, drains its output and removes its ledger entry, even if the launch
//! is cancelled or the pool is dropped. If the runtime drops the task, the process group is killed too.

use std::{
    os::unix::process::ExitStatusExt, panic::AssertUnwindSafe, path::Path, process::ExitStatus, sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use snakepit_proto::launch::output::{ENV_OUTPUT_KEY, KEY_BYTES, Key};
use tokio::{
    net::UnixStream,
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ProcessConfig, RunDir,
    environment::Variable,
    exit_watch::ExitWatch,
    host_access::HostAccess,
    launches::LaunchGuard,
    os_process,
    output::{self, OutputStream, WorkerOutput},
    process_group::ProcessGroup,
    progress_file::ProgressFile,
    run_dir::WorkerFiles,
    spawn::{self, SpawnedProcess},
};
use crate::{ExitReason, LauncherEnd, WorkerCommand, WorkerError, WorkerExit, WorkerId};

/// How long to wait for the end of a dead worker's output. A descendant without the mark can hold the pipe open.
const OUTPUT_DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a process may run after its call stream ended. An exiting process closes its connections shortly before its exit, and
/// its own exit status explains more than a kill.
const EXIT_AFTER_STREAM_TIMEOUT: Duration = Duration::from_millis(250);

/// The launch's handle to a supervised process. Dropping it before [`activate`](SupervisedProcess::activate) kills the process.
#[derive(Debug)]
pub(super) struct SupervisedProcess {
    pid: u32,
    control: UnixStream,
    /// Completes the launch. If it is dropped without a message, the supervisor kills the process.
    activation: oneshot::Sender<(LauncherEnd, UnixStream)>,
    exit: ExitWatch,
    output: WorkerOutput,
    ready_port: watch::Receiver<Option<u16>>,
    /// Cancelled when the worker's call stream ends.
    stream_ended: CancellationToken,
}

impl SupervisedProcess {
    /// Starts a process and its supervisor.
    #[allow(clippy::too_many_arguments, reason = "has a single caller")]
    pub(super) async fn spawn(
        id: &WorkerId,
        config: &ProcessConfig,
        mut environment: Vec<Variable>,
        run_dir: &Arc<RunDir>,
        host: &HostAccess,
        working_dir: Option<&Path>,
        files: WorkerFiles,
        progress: ProgressFile,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, WorkerError> {
        let files_guard = FilesGuard(Some(files.clone()));
        let sigchld = signal(SignalKind::child()).map_err(|error| {
            WorkerError::start_failed("the handler for SIGCHLD cannot be installed").with_source(error)
        })?;
        // Taken before checking `stop`, because a shutdown cancels `stop` before it waits for the tokens.
        let token = tasks.token();
        if stop.is_cancelled() {
            return Err(WorkerError::start_failed("its launcher was shut down"));
        }
        let launch = Self::admit(id, config, host).await?;
        // Foreign workers do not know frames.
        let key = config.is_native().then(new_key);
        if let Some(key) = &key {
            environment.push((ENV_OUTPUT_KEY, String::from_utf8_lossy(key).into_owned()));
        }
        let SpawnedProcess { mut group, control } =
            spawn::spawn(id, config, environment, run_dir, working_dir, &files, &launch, token).await?;
        let pid = group.pid();
        launch.record_pid(pid);
        let output = WorkerOutput::new(id.clone(), key, config.output_lines);
        let (port, ready_port) = watch::channel(None);
        let drain_tasks = TaskTracker::new();
        if let Some(stdout) = group.child.stdout.take() {
            drain_tasks.spawn(output::drain(stdout, OutputStream::Stdout, output.clone(), port.clone()));
        }
        if let Some(stderr) = group.child.stderr.take() {
            drain_tasks.spawn(output::drain(stderr, OutputStream::Stderr, output.clone(), port));
        }
        drain_tasks.close();

        let (exit_sender, exit) = ExitWatch::channel();
        let (activation, activated) = oneshot::channel();
        let stream_ended = CancellationToken::new();
        let supervisor = Supervisor {
            id: id.clone(),
            pid,
            group,
            sigchld,
            output: output.clone(),
            progress,
            drain_tasks,
            stream_ended: stream_ended.clone(),
        };
        files_guard.disarm();
        tasks.spawn(async move {
            // A panic drops the process group, which kills it, and the `LauncherEnd`, which reports the exit to the pool.
            let outcome = AssertUnwindSafe(supervisor.run(activated, stop)).catch_unwind().await;
            drop(launch);
            files.remove();
            let (exit, launcher_end) = outcome.unwrap_or_else(|_| {
                let reason = ExitReason::Killed { reason: "the task that supervised it panicked".to_owned() };
                (WorkerExit { reason, output_lines: Vec::new() }, None)
            });
            // Reports to the pool first, so that the exit is visible there before it is in the watch.
            if let Some(launcher_end) = launcher_end {
                launcher_end.exited(exit.clone());
            }
            exit_sender.send_replace(Some(exit));
        });
        Ok(Self { pid, control, activation, exit, output, ready_port, stream_ended })
    }

    /// Admits the worker to the host: with a token for this project's workers, with a listener for foreign ones.
    async fn admit(
        id: &WorkerId,
        config: &ProcessConfig,
        host: &HostAccess,
    ) -> Result<LaunchGuard, WorkerError> {
        if config.is_native() { Ok(host.admit(id)) } else { Ok(host.admit_on_listener(id).await?.0) }
    }

    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) const fn control(&mut self) -> &mut UnixStream {
        &mut self.control
    }

    pub(super) fn exit_watch(&self) -> ExitWatch {
        self.exit.clone()
    }

    pub(super) const fn output(&self) -> &WorkerOutput {
        &self.output
    }

    pub(super) fn ready_port(&self) -> watch::Receiver<Option<u16>> {
        self.ready_port.clone()
    }

    /// The token to cancel when the worker's call stream ends. The supervisor then kills the worker, because the state of its
    /// calls is unknown.
    pub(super) fn stream_ended(&self) -> CancellationToken {
        self.stream_ended.clone()
    }

    /// Completes the launch. From now on, the supervisor executes the pool's commands.
    pub(super) fn activate(self, launcher_end: LauncherEnd) {
        // Fails if the process has just exited. Dropping the `LauncherEnd` then reports the exit to the pool.
        let _ = self.activation.send((launcher_end, self.control));
    }

    /// Kills the process and waits until it is reaped.
    pub(super) async fn abandon(self) {
        let exit = self.exit;
        drop((self.activation, self.control));
        exit.exited().await;
    }
}

/// Creates the key with which a worker marks its output.
fn new_key() -> Key {
    let mut key = [0; KEY_BYTES];
    let text = uuid::Uuid::new_v4().simple().to_string();
    key.copy_from_slice(&text.as_bytes()[..KEY_BYTES]);
    key
}

/// Removes the files of a worker on drop, unless the supervisor has taken over.
struct FilesGuard(Option<WorkerFiles>);

impl FilesGuard {
    /// Leaves the removal to the supervisor.
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for FilesGuard {
    fn drop(&mut self) {
        if let Some(files) = &self.0 {
            files.remove();
        }
    }
}

#[derive(Debug)]
struct Supervisor {
    id: WorkerId,
    pid: u32,
    group: ProcessGroup,
    /// Receives SIGCHLD.
    sigchld: Signal,
    output: WorkerOutput,
    progress: ProgressFile,
    drain_tasks: TaskTracker,
    stream_ended: CancellationToken,
}

impl Supervisor {
    /// Supervises the process until it is reaped.
    async fn run(
        mut self,
        activated: oneshot::Receiver<(LauncherEnd, UnixStream)>,
        stop: CancellationToken,
    ) -> (WorkerExit, Option<LauncherEnd>) {
        let (reason, launcher_end) = tokio::select! {
            biased;
            activated = activated => match activated {
                Ok((mut launcher_end, control)) => {
                    let reason = self.run_commands(&mut launcher_end, &stop).await;
                    // Closes the lifeline only now, so that a stopping worker does not assume that its host died.
                    drop(control);
                    (reason, Some(launcher_end))
                }
                Err(_) => (self.kill("its launch was cancelled").await, None),
            },
            reason = self.exited() => (reason, None),
            () = stop.cancelled() => (self.kill("its launcher was dropped").await, None),
        };
        let drained = tokio::time::timeout(OUTPUT_DRAIN_TIMEOUT, self.drain_tasks.wait());
        let (drained, ()) = tokio::join!(drained, self.group.kill_descendants());
        if drained.is_err() {
            tracing::debug!(worker = %self.id, "the output of a dead worker is held open by another process");
        }
        if let ExitReason::Signal { .. } = &reason {
            self.progress.stack().iter().for_each(|line| self.output.log_line("stack", line));
        }
        tracing::debug!(worker = %self.id, pid = self.pid, %reason, "process reaped");
        (WorkerExit { reason, output_lines: self.output.lines() }, launcher_end)
    }

    /// Executes the pool's commands until the process exits.
    async fn run_commands(&mut self, launcher_end: &mut LauncherEnd, stop: &CancellationToken) -> ExitReason {
        let stream_ended = self.stream_ended.clone();
        let stream_ended = async {
            stream_ended.cancelled().await;
            tokio::time::sleep(EXIT_AFTER_STREAM_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            reason = self.exited() => reason,
            command = launcher_end.command() => match command {
                WorkerCommand::Kill { reason } => self.kill(&reason).await,
                WorkerCommand::Stop { grace } => self.stop(grace, launcher_end, stop).await,
            },
            () = stream_ended => self.kill("the stream of its calls ended").await,
            () = stop.cancelled() => self.kill("its launcher was dropped").await,
        }
    }

    /// Sends SIGTERM, and kills the process if it still runs after the grace period.
    async fn stop(
        &mut self,
        grace: Duration,
        launcher_end: &mut LauncherEnd,
        stop: &CancellationToken,
    ) -> ExitReason {
        os_process::terminate(self.pid);
        let timeout_reason = format!("it did not stop within {grace:?}");
        let kill_command = async {
            loop {
                if let WorkerCommand::Kill { reason } = launcher_end.command().await {
                    return reason;
                }
            }
        };
        let reason = tokio::select! {
            biased;
            _ = self.exited() => return ExitReason::Stopped,
            () = tokio::time::sleep(grace) => timeout_reason,
            reason = kill_command => reason,
            () = stop.cancelled() => "its launcher was dropped".to_owned(),
        };
        match self.kill(&reason).await {
            killed @ ExitReason::Killed { .. } => killed,
            _ => ExitReason::Stopped,
        }
    }

    /// Kills the process. If it was exiting already, returns its own exit reason. The connections of a crashing process break
    /// before its exit is visible, so the pool may order the kill in between.
    async fn kill(&mut self, reason: &str) -> ExitReason {
        os_process::kill_group(self.pid);
        match self.exited().await {
            ExitReason::Signal { name } if name == "SIGKILL" => {
                ExitReason::Killed { reason: reason.to_owned() }
            }
            own_reason => own_reason,
        }
    }

    /// Waits for the exit, kills the rest of the process group, and reaps the process. Cancel safe.
    async fn exited(&mut self) -> ExitReason {
        self.leader_exited().await;
        // Until the leader is reaped, its pid cannot refer to another group.
        os_process::kill_group(self.pid);
        match self.group.child.wait().await {
            Ok(status) => exit_reason(status),
            Err(error) => {
                tracing::error!(worker = %self.id, %error, "failed to wait for a worker");
                ExitReason::Killed { reason: format!("the host could not wait for its exit: {error}") }
            }
        }
    }
}

impl Supervisor {
    /// Waits until the leader has exited, without reaping it.
    #[cfg(target_os = "linux")]
    async fn leader_exited(&mut self) {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let leader = || Id::Pid(nix::unistd::Pid::from_raw(self.pid.cast_signed()));
        while let Ok(WaitStatus::StillAlive) = waitid(leader(), flags) {
            // `sigchld` was created before the process started, so it cannot miss the exit.
            if self.sigchld.recv().await.is_none() {
                return;
            }
        }
    }

    /// Reaps the leader. Other systems cannot wait without reaping, so the group is killed right after.
    #[cfg(not(target_os = "linux"))]
    async fn leader_exited(&mut self) {
        let _ = self.group.child.wait().await;
    }
}

fn exit_reason(status: ExitStatus) -> ExitReason {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitReason::Code(code),
        (None, signal) => ExitReason::Signal { name: os_process::signal_name(signal.unwrap_or_default()) },
    }
}
