//! One task a process, from its first moment to its reaping: whatever happens to the launch or the pool, the process
//! is waited for, its group is killed, its output drained, its ledger entry closed. A runtime that drops the task on its
//! way out kills the group too.

use std::{
    net::SocketAddr, os::unix::process::ExitStatusExt, panic::AssertUnwindSafe, path::Path,
    process::ExitStatus, sync::Arc, time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    net::UnixStream,
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ProcessConfig, RunDir,
    exit_watch::ExitWatch,
    launches::{LaunchGuard, Launches},
    os_process,
    output::{self, WorkerOutput},
    process_group::ProcessGroup,
    progress_file::ProgressFile,
    run_dir::WorkerFiles,
    spawn::{self, HostEndpoint, SpawnedProcess},
};
use crate::{DriverCommand, ExitReason, WorkerDriver, WorkerError, WorkerExit, WorkerId};

/// How long the output of a dead worker may take to end: a process that has dropped its mark can hold the pipe open.
const OUTPUT_DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a process may live on after the stream of its calls ended: one that ends by itself closes its connections a
/// moment earlier, and its own exit says more than a kill.
const EXIT_AFTER_STREAM_TIMEOUT: Duration = Duration::from_millis(250);

/// A supervised process, as its launch sees it. Dropping it before [`activate`](SupervisedProcess::activate) has it killed.
#[derive(Debug)]
pub(super) struct SupervisedProcess {
    pid: u32,
    control: UnixStream,
    /// Held until the launch is over; the supervisor kills the process when it is dropped unsent.
    activation: oneshot::Sender<(WorkerDriver, UnixStream)>,
    exit: ExitWatch,
    output: WorkerOutput,
    ready_port: watch::Receiver<Option<u16>>,
    /// Cancelled when the stream of its calls ends.
    stream_ended: CancellationToken,
}

impl SupervisedProcess {
    /// Starts a process and its supervisor.
    #[allow(clippy::too_many_arguments, reason = "the parts of one launch, used once")]
    pub(super) async fn spawn(
        id: &WorkerId,
        config: &ProcessConfig,
        run_dir: &Arc<RunDir>,
        launches: &Arc<Launches>,
        working_dir: Option<&Path>,
        files: WorkerFiles,
        progress: ProgressFile,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Self, WorkerError> {
        let files_guard = FilesGuard(Some(files.clone()));
        let sigchld = signal(SignalKind::child()).map_err(|e| WorkerError::Spawn {
            program: "worker".to_owned(),
            problem: format!("the end of children cannot be watched: {e}"),
        })?;
        // Taken before the look at `stop`, which is cancelled before anybody waits for the tokens.
        let token = tasks.token();
        if stop.is_cancelled() {
            let problem = "its launcher was shut down".to_owned();
            return Err(WorkerError::Spawn { program: "worker".to_owned(), problem });
        }
        let (launch, listener) = Self::begin(id, config, launches).await?;
        let endpoint =
            listener.map_or_else(|| HostEndpoint::Socket { token: launch.token() }, HostEndpoint::Listener);
        let SpawnedProcess { mut group, control } =
            spawn::spawn(id, config, run_dir, working_dir, &files, endpoint, token).await?;
        let pid = group.pid();
        launch.started(pid);
        let output = WorkerOutput::new(id.clone(), config.output_lines);
        let (port, ready_port) = watch::channel(None);
        let drain_tasks = TaskTracker::new();
        if let Some(stdout) = group.child.stdout.take() {
            drain_tasks.spawn(output::drain(stdout, "stdout", output.clone(), port.clone()));
        }
        if let Some(stderr) = group.child.stderr.take() {
            drain_tasks.spawn(output::drain(stderr, "stderr", output.clone(), port));
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
            // A panic drops the process's group, which kills it, and the driver, which tells the pool.
            let outcome = AssertUnwindSafe(supervisor.run(activated, stop)).catch_unwind().await;
            drop(launch);
            files.remove();
            let (exit, driver) = outcome.unwrap_or_else(|_| {
                let reason = ExitReason::Killed { why: "the task that supervised it panicked".to_owned() };
                (WorkerExit { reason, output_lines: Vec::new() }, None)
            });
            // The pool first: who learns of the end from the watch finds it known to the worker's holders too.
            if let Some(driver) = driver {
                driver.exited(exit.clone());
            }
            exit_sender.send_replace(Some(exit));
        });
        Ok(Self { pid, control, activation, exit, output, ready_port, stream_ended })
    }

    /// Begins the launch: with a token for a worker that knows what to do with it, with a listener for another.
    async fn begin(
        id: &WorkerId,
        config: &ProcessConfig,
        launches: &Arc<Launches>,
    ) -> Result<(LaunchGuard, Option<SocketAddr>), WorkerError> {
        if config.is_native() {
            return Ok((launches.begin(id), None));
        }
        let begun = launches.begin_with_listener(id).await;
        let (launch, address) =
            begun.map_err(|problem| WorkerError::Spawn { program: config.program_name(), problem })?;
        Ok((launch, Some(address)))
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

    /// To be cancelled when the stream of its calls has ended: what it runs then cannot be told, so it must not live on.
    pub(super) fn stream_ended(&self) -> CancellationToken {
        self.stream_ended.clone()
    }

    /// Ends the launch: from here on the driver gives the orders.
    pub(super) fn activate(self, driver: WorkerDriver) {
        // The supervisor is gone if the process ended just now; the driver is dropped with it, which tells the pool.
        let _ = self.activation.send((driver, self.control));
    }

    /// Has the process killed, and waits until it is gone.
    pub(super) async fn abandon(self) {
        let exit = self.exit;
        drop((self.activation, self.control));
        exit.exited().await;
    }
}

/// The files of a worker whose process is not there yet: removed when it never will be.
struct FilesGuard(Option<WorkerFiles>);

impl FilesGuard {
    /// From here on its supervisor removes them.
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
    /// SIGCHLD: some child ended.
    sigchld: Signal,
    output: WorkerOutput,
    progress: ProgressFile,
    drain_tasks: TaskTracker,
    stream_ended: CancellationToken,
}

impl Supervisor {
    /// Runs the process to its end.
    async fn run(
        mut self,
        activated: oneshot::Receiver<(WorkerDriver, UnixStream)>,
        stop: CancellationToken,
    ) -> (WorkerExit, Option<WorkerDriver>) {
        let (reason, driver) = tokio::select! {
            biased;
            activated = activated => match activated {
                Ok((mut driver, control)) => {
                    let reason = self.run_commands(&mut driver, &stop).await;
                    // The lifeline closes only now, so that a worker asked to stop is not told that its host is gone.
                    drop(control);
                    (reason, Some(driver))
                }
                Err(_) => (self.kill("its launch was given up").await, None),
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
            self.progress.stack().iter().for_each(|line| self.output.log("stack", line));
        }
        tracing::debug!(worker = %self.id, pid = self.pid, %reason, "process reaped");
        (WorkerExit { reason, output_lines: self.output.lines() }, driver)
    }

    /// Waits for the process, doing what the driver says meanwhile.
    async fn run_commands(&mut self, driver: &mut WorkerDriver, stop: &CancellationToken) -> ExitReason {
        let stream_ended = self.stream_ended.clone();
        let stream_ended = async {
            stream_ended.cancelled().await;
            tokio::time::sleep(EXIT_AFTER_STREAM_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            reason = self.exited() => reason,
            command = driver.command() => match command {
                DriverCommand::Kill { why } => self.kill(&why).await,
                DriverCommand::Stop { grace } => self.stop(grace, driver, stop).await,
            },
            () = stream_ended => self.kill("the stream of its calls ended").await,
            () = stop.cancelled() => self.kill("its launcher was dropped").await,
        }
    }

    /// Asks the process to stop, and kills it if it does not.
    async fn stop(
        &mut self,
        grace: Duration,
        driver: &mut WorkerDriver,
        stop: &CancellationToken,
    ) -> ExitReason {
        os_process::terminate(self.pid);
        let late = format!("it did not stop within {grace:?}");
        let kill_command = async {
            loop {
                if let DriverCommand::Kill { why } = driver.command().await {
                    return why;
                }
            }
        };
        let why = tokio::select! {
            biased;
            _ = self.exited() => return ExitReason::Stopped,
            () = tokio::time::sleep(grace) => late,
            why = kill_command => why,
            () = stop.cancelled() => "its launcher was dropped".to_owned(),
        };
        match self.kill(&why).await {
            killed @ ExitReason::Killed { .. } => killed,
            _ => ExitReason::Stopped,
        }
    }

    /// Kills the process. One that was about to end otherwise is reported with its own end: the connections of a process that
    /// crashes break before its end is seen, and by then somebody may have ordered to kill it.
    async fn kill(&mut self, why: &str) -> ExitReason {
        os_process::kill_group(self.pid);
        match self.exited().await {
            ExitReason::Signal { name } if name == "SIGKILL" => ExitReason::Killed { why: why.to_owned() },
            own => own,
        }
    }

    /// Waits for the end, kills what is left of the group, and reaps. Cancel safe.
    async fn exited(&mut self) -> ExitReason {
        self.leader_exited().await;
        // What the leader started goes with it. Its pid names this group and no other as long as it is not reaped.
        os_process::kill_group(self.pid);
        match self.group.child.wait().await {
            Ok(status) => exit_reason(status),
            Err(error) => {
                tracing::error!(worker = %self.id, %error, "failed to wait for a worker");
                ExitReason::Killed { why: format!("it could not be waited for: {error}") }
            }
        }
    }
}

impl Supervisor {
    /// Waits until the leader has ended, without reaping it.
    #[cfg(target_os = "linux")]
    async fn leader_exited(&mut self) {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let leader = || Id::Pid(nix::unistd::Pid::from_raw(self.pid.cast_signed()));
        while let Ok(WaitStatus::StillAlive) = waitid(leader(), look) {
            // The signal was subscribed to before the process started, so its end cannot be missed.
            if self.sigchld.recv().await.is_none() {
                return;
            }
        }
    }

    /// Elsewhere the leader is reaped first, and its group killed right after.
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
