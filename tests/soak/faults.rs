//! The faults, the failures that each one explains, and the time until the daemon has recovered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::json;
use snakepit_proto::pb;
use snakepit_tests::{Client, Redis, Signal, execute, result_of, signal, tool_request};
use tokio::time::{Instant, sleep, timeout};
use tonic::Request;

use crate::{
    bad_clients,
    daemon::{Daemon, WORKERS, workers},
    python::PythonClient,
    tally::{DEADLINE, Tally},
    windows::Caller,
};

/// The time limit of the recovery from a fault.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(20);
/// The interval between two checks for the recovery.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The time between the recovery and the next fault.
const PAUSE: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillWorker,
    StopWorker,
    CrashingTool,
    HangingTool,
    BlockingTask,
    FloodingTool,
    StalledLog,
    NoDescriptors,
    StalledReaders,
    DisconnectingClients,
    FrozenClient,
    KilledClient,
    RestartedRedis,
    FrozenRedis,
}

const ALL: [Fault; 14] = [
    Fault::KillWorker,
    Fault::StopWorker,
    Fault::CrashingTool,
    Fault::HangingTool,
    Fault::BlockingTask,
    Fault::FloodingTool,
    Fault::StalledLog,
    Fault::NoDescriptors,
    Fault::StalledReaders,
    Fault::DisconnectingClients,
    Fault::FrozenClient,
    Fault::KilledClient,
    Fault::RestartedRedis,
    Fault::FrozenRedis,
];

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "worker killed (SIGKILL)",
            Self::StopWorker => "worker stopped (SIGSTOP)",
            Self::CrashingTool => "tool aborts its process",
            Self::HangingTool => "tool hangs in C code",
            Self::BlockingTask => "task blocks the event loop",
            Self::FloodingTool => "tool floods its output",
            Self::StalledLog => "log reader stalls during a flood",
            Self::NoDescriptors => "descriptors exhausted, worker killed",
            Self::StalledReaders => "clients do not read",
            Self::DisconnectingClients => "clients disconnect during calls",
            Self::FrozenClient => "Python client frozen",
            Self::KilledClient => "Python client killed",
            Self::RestartedRedis => "Redis killed and restarted",
            Self::FrozenRedis => "Redis frozen",
        }
    }

    /// Whether this fault explains that a call failed for a reason.
    ///
    /// The load fits into the queue, and at most one worker is missing at a time. So no fault explains `OVERLOADED` or
    /// `NO_WORKER`.
    pub(crate) fn explains(self, caller: Caller, reason: &str) -> bool {
        let reasons: &[&str] = match self {
            Self::KillWorker | Self::CrashingTool | Self::NoDescriptors => &["WORKER_LOST"],
            // The host kills these workers only after a call has missed its deadline.
            Self::StopWorker | Self::HangingTool => &["WORKER_LOST", "DEADLINE_EXCEEDED"],
            // Unread streams occupy all workers until their deadline.
            Self::StalledReaders => &["DEADLINE_EXCEEDED"],
            Self::FrozenClient if caller == Caller::Python => &["DEADLINE_EXCEEDED"],
            Self::RestartedRedis | Self::FrozenRedis if caller == Caller::Session => {
                &["BACKEND_FAILED", "DEADLINE_EXCEEDED"]
            }
            Self::BlockingTask
            | Self::FloodingTool
            | Self::StalledLog
            | Self::DisconnectingClients
            | Self::FrozenClient
            | Self::KilledClient
            | Self::RestartedRedis
            | Self::FrozenRedis => &[],
        };
        reasons.contains(&reason)
    }
}

/// The recovery times of each fault.
pub(crate) type Recoveries = BTreeMap<&'static str, Vec<Duration>>;

/// The results of a run.
pub(crate) struct FaultResults {
    pub(crate) recoveries: Recoveries,
    /// The host's resident memory after each round of faults, in KiB.
    pub(crate) resident_kib: Vec<u64>,
}

/// Injects the faults.
pub(crate) struct Faults {
    daemon: Arc<Daemon>,
    redis: Redis,
    python: PythonClient,
    tally: Arc<Tally>,
    /// A connection from before the faults, which works while the daemon does not accept new ones.
    client: Client,
    recoveries: Recoveries,
    random: Random,
    /// The host's resident memory after each round of faults, in KiB.
    resident_kib: Vec<u64>,
}

/// A generator of repeatable random numbers, which choose the order of faults and their victims.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % end
    }
}

impl Faults {
    pub(crate) async fn new(
        daemon: Arc<Daemon>,
        redis: Redis,
        python: PythonClient,
        tally: Arc<Tally>,
        seed: u64,
    ) -> Self {
        let client = daemon.client().await;
        let (recoveries, random) = (Recoveries::new(), Random(seed));
        Self { daemon, redis, python, tally, client, recoveries, random, resident_kib: Vec::new() }
    }

    /// Injects faults one after another until the time is over. Each round contains every fault once.
    pub(crate) async fn inject_for(&mut self, time: Duration, only: Option<&str>) {
        let began = Instant::now();
        while began.elapsed() < time {
            let mut round = ALL.to_vec();
            round.retain(|fault| only.is_none_or(|only| fault.name().contains(only)));
            assert!(!round.is_empty(), "no fault has {only:?} in its name");
            while !round.is_empty() && began.elapsed() < time {
                let fault = round.swap_remove(self.random.below(round.len()));
                eprintln!("{:>6.1?}  {}", began.elapsed(), fault.name());
                self.tally.windows.open(fault);
                let took = self.inject(fault).await;
                self.tally.windows.close();
                self.recoveries.entry(fault.name()).or_default().push(took);
                sleep(PAUSE).await;
            }
            self.resident_kib.push(self.daemon.resident_kib());
        }
    }

    /// Ends the Python client. The Redis server runs until the returned handle is dropped.
    pub(crate) async fn finish(self) -> (FaultResults, Redis) {
        self.python.finish().await;
        (FaultResults { recoveries: self.recoveries, resident_kib: self.resident_kib }, self.redis)
    }

    async fn inject(&mut self, fault: Fault) -> Duration {
        let tally = Arc::clone(&self.tally);
        match fault {
            Fault::KillWorker => {
                let pid = self.random_worker().await;
                signal(pid, Signal::SIGKILL);
                self.wait_for_recovery(fault, &[pid]).await
            }
            Fault::StopWorker => {
                let pid = self.random_worker().await;
                signal(pid, Signal::SIGSTOP);
                // The host notices only when a call on this worker misses its deadline.
                self.wait_for_recovery(fault, &[pid]).await
            }
            Fault::CrashingTool => {
                self.expect_failure("crash", &["WORKER_LOST"]).await;
                self.wait_for_recovery(fault, &[]).await
            }
            Fault::HangingTool => {
                self.expect_failure("hang", &["DEADLINE_EXCEEDED", "WORKER_LOST"]).await;
                self.wait_for_recovery(fault, &[]).await
            }
            Fault::BlockingTask => {
                let pid = self.leave_blocking_task().await;
                self.wait_for_recovery(fault, pid.as_slice()).await
            }
            Fault::FloodingTool => {
                self.flood().await;
                self.wait_for_recovery(fault, &[]).await
            }
            Fault::StalledLog => {
                self.daemon.stall_log(true);
                self.flood().await;
                self.flood().await;
                sleep(Duration::from_secs(1)).await;
                let took = self.wait_for_recovery(fault, &[]).await;
                self.daemon.stall_log(false);
                took
            }
            Fault::NoDescriptors => {
                let connections = bad_clients::exhaust_descriptors(&self.daemon).await;
                let pid = self.random_worker().await;
                signal(pid, Signal::SIGKILL);
                let took = self.wait_for_recovery(fault, &[pid]).await;
                drop(connections);
                took
            }
            Fault::StalledReaders => {
                bad_clients::stall_reading(&self.daemon, DEADLINE + Duration::from_secs(1)).await;
                self.wait_for_recovery(fault, &[]).await
            }
            Fault::DisconnectingClients => {
                bad_clients::disconnect_during_calls(&self.daemon).await;
                self.wait_for_recovery(fault, &[]).await
            }
            Fault::FrozenClient => {
                self.python.freeze(DEADLINE).await;
                self.wait_for_recovery(fault, &[]).await
            }
            Fault::KilledClient => {
                self.python.replace().await;
                self.wait_for_recovery(fault, &[]).await
            }
            Fault::RestartedRedis => {
                self.redis.restart(Duration::from_millis(300)).await;
                let took = self.wait_for_recovery(fault, &[]).await;
                took + self.wait_for_session_recovery(&tally).await
            }
            Fault::FrozenRedis => {
                self.redis.signal(Signal::SIGSTOP);
                sleep(Duration::from_secs(2)).await;
                self.redis.signal(Signal::SIGCONT);
                let took = self.wait_for_recovery(fault, &[]).await;
                took + self.wait_for_session_recovery(&tally).await
            }
        }
    }

    /// Returns the pid of a random worker, preferably of a busy one.
    async fn random_worker(&mut self) -> u32 {
        let workers = workers(&mut self.client).await.expect("the open connection works");
        let mut running: Vec<_> = workers.iter().filter(|worker| worker.pid != 0).collect();
        if running.iter().any(|worker| worker.state == "busy") {
            running.retain(|worker| worker.state == "busy");
        }
        assert!(!running.is_empty(), "a worker runs");
        running[self.random.below(running.len())].pid
    }

    /// Calls a tool that fails, and checks the reason. The call may also miss its deadline in the queue.
    async fn expect_failure(&mut self, tool: &str, reasons: &[&str]) {
        let mut request = Request::new(tool_request(tool, &json!({})));
        request.set_timeout(Duration::from_secs(1));
        let ended = timeout(DEADLINE * 3, self.client.execute_tool(request)).await;
        let reason = match ended {
            Ok(Err(status)) => snakepit_proto::status::details_of(&status)
                .reason
                .unwrap_or_else(|| format!("{:?}", status.code())),
            Ok(Ok(_)) => "success".to_owned(),
            Err(_) => "no end".to_owned(),
        };
        // tonic's channel has a timer for the deadline too, and may cancel the call before the server's response arrives.
        let reason = if reason == "Cancelled" { "DEADLINE_EXCEEDED".to_owned() } else { reason };
        if !reasons.contains(&&*reason) && reason != "DEADLINE_EXCEEDED" {
            self.tally.violation(format!("the tool `{tool}` ended as {reason}"));
        }
        self.tally.count("tool of a fault", reason, 1);
    }

    /// Makes a tool return, and leave a task that blocks the event loop of its worker. Returns the pid of the worker.
    async fn leave_blocking_task(&mut self) -> Option<u32> {
        let mut request = Request::new(tool_request("leave_blocking_task", &json!({})));
        request.set_timeout(DEADLINE);
        match self.client.execute_tool(request).await {
            Ok(response) => {
                self.tally.count("tool of a fault", "ok", 1);
                result_of(response.into_inner()).as_u64().and_then(|pid| u32::try_from(pid).ok())
            }
            Err(status) => {
                self.tally.violation(format!("the tool `leave_blocking_task` failed: {status}"));
                None
            }
        }
    }

    async fn flood(&mut self) {
        let args = json!({"lines": 20_000, "characters": 1_000_000});
        let mut request = Request::new(tool_request("flood", &args));
        request.set_timeout(Duration::from_secs(15));
        match self.client.execute_tool(request).await {
            Ok(_) => self.tally.count("tool of a fault", "ok", 1),
            Err(status) => self.tally.violation(format!("the tool `flood` failed: {status}")),
        }
    }

    /// Waits until every slot has a worker that accepts calls, and the host has replaced the workers `to_replace`.
    async fn wait_for_recovery(&mut self, fault: Fault, to_replace: &[u32]) -> Duration {
        let began = Instant::now();
        loop {
            let listed = timeout(DEADLINE, workers(&mut self.client)).await;
            let is_recovered = matches!(&listed, Ok(Ok(workers)) if workers.len() == WORKERS && workers.iter().all(|worker| {
                ["idle", "busy"].contains(&&*worker.state) && !to_replace.contains(&worker.pid)
            }));
            if is_recovered {
                return began.elapsed();
            }
            if began.elapsed() > RECOVERY_TIMEOUT {
                let states = listed.map(|listed| listed.map(|workers| states(&workers)));
                let log = self.daemon.log_tail(20);
                self.tally.violation(format!("{}: no recovery: {states:?}\n{log}", fault.name()));
                return began.elapsed();
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until a read of a session succeeds.
    async fn wait_for_session_recovery(&mut self, tally: &Tally) -> Duration {
        let began = Instant::now();
        let request = || {
            let mut request = Request::new(pb::GetSessionRequest { session_id: "soak-0".to_owned() });
            request.set_timeout(DEADLINE);
            request
        };
        while let Err(status) = self.client.get_session(request()).await {
            if began.elapsed() > RECOVERY_TIMEOUT {
                tally.violation(format!("sessions do not recover: {}", status.message()));
                break;
            }
            sleep(POLL_INTERVAL).await;
        }
        began.elapsed()
    }
}

/// Describes the workers for an error message.
pub(crate) fn states(workers: &[pb::WorkerInfo]) -> Vec<String> {
    workers.iter().map(|worker| format!("{} {} {}", worker.worker_id, worker.pid, worker.state)).collect()
}

/// Whether a call returns the right result.
pub(crate) async fn call_succeeds(client: &mut Client, nonce: u64) -> bool {
    let outcome = timeout(DEADLINE, execute(client, "mark", &json!({"nonce": nonce}))).await;
    matches!(outcome, Ok(Ok(value)) if value == crate::callers::expected_result(nonce))
}
