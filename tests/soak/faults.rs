//! The faults: what each one does, and how long the daemon takes to be whole again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::json;
use snakepit_proto::pb;
use snakepit_tests::{Client, Redis, Signal, execute, signal, tool_request};
use tokio::time::{Instant, sleep, timeout};
use tonic::Request;

use crate::{
    daemon::{Daemon, WORKERS, workers},
    python::PythonClient,
    rude,
    tally::{DEADLINE, Tally},
};

/// How long the daemon may take to be whole again after a fault.
const RECOVERS_WITHIN: Duration = Duration::from_secs(20);
/// How often that is checked.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the callers run undisturbed between two faults.
const PAUSE: Duration = Duration::from_millis(400);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillWorker,
    StopWorker,
    CrashingTool,
    HangingTool,
    FloodingTool,
    StalledLog,
    NoDescriptors,
    StalledReaders,
    VanishingClients,
    FrozenClient,
    KilledClient,
    RestartedRedis,
    FrozenRedis,
}

const ALL: [Fault; 13] = [
    Fault::KillWorker,
    Fault::StopWorker,
    Fault::CrashingTool,
    Fault::HangingTool,
    Fault::FloodingTool,
    Fault::StalledLog,
    Fault::NoDescriptors,
    Fault::StalledReaders,
    Fault::VanishingClients,
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
            Self::FloodingTool => "tool floods its output",
            Self::StalledLog => "log reader stalls during a flood",
            Self::NoDescriptors => "descriptors exhausted, worker killed",
            Self::StalledReaders => "clients that do not read",
            Self::VanishingClients => "clients vanish in their calls",
            Self::FrozenClient => "Python client frozen",
            Self::KilledClient => "Python client killed",
            Self::RestartedRedis => "Redis killed and restarted",
            Self::FrozenRedis => "Redis frozen",
        }
    }
}

/// How often a fault was injected, and how long each recovery took.
pub(crate) type Recoveries = BTreeMap<&'static str, Vec<Duration>>;

/// The result of all injected faults.
pub(crate) struct Outcome {
    pub(crate) recoveries: Recoveries,
    /// The host's resident memory after each round of faults, in KiB.
    pub(crate) resident_kib: Vec<u64>,
}

pub(crate) struct Faults {
    daemon: Arc<Daemon>,
    redis: Redis,
    python: PythonClient,
    tally: Arc<Tally>,
    /// Opened before any fault, so that it works while no connection is accepted.
    client: Client,
    recoveries: Recoveries,
    random: Random,
    /// The host's resident memory after each round of faults, in KiB.
    resident_kib: Vec<u64>,
}

/// Repeatable random numbers: the order of faults, and their victims.
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

    /// Injects one fault after the other, each as often as the others, until the time is over.
    pub(crate) async fn inject_for(&mut self, time: Duration, only: Option<&str>) {
        let began = Instant::now();
        while began.elapsed() < time {
            let mut round = ALL.to_vec();
            round.retain(|fault| only.is_none_or(|only| fault.name().contains(only)));
            assert!(!round.is_empty(), "no fault has {only:?} in its name");
            while !round.is_empty() && began.elapsed() < time {
                let fault = round.swap_remove(self.random.below(round.len()));
                eprintln!("{:>6.1?}  {}", began.elapsed(), fault.name());
                let took = self.inject(fault).await;
                self.recoveries.entry(fault.name()).or_default().push(took);
                sleep(PAUSE).await;
            }
            self.resident_kib.push(self.daemon.resident_kib());
        }
    }

    /// Ends the Python client, and with it the last disturbance. The Redis server lives until its handle is dropped.
    pub(crate) async fn finish(self) -> (Outcome, Redis) {
        self.python.finish().await;
        (Outcome { recoveries: self.recoveries, resident_kib: self.resident_kib }, self.redis)
    }

    async fn inject(&mut self, fault: Fault) -> Duration {
        let tally = Arc::clone(&self.tally);
        match fault {
            Fault::KillWorker => {
                let pid = self.some_worker().await;
                signal(pid, Signal::SIGKILL);
                self.recovered(fault, &[pid]).await
            }
            Fault::StopWorker => {
                let pid = self.some_worker().await;
                signal(pid, Signal::SIGSTOP);
                // Only its calls can tell that it does not answer.
                self.recovered(fault, &[pid]).await
            }
            Fault::CrashingTool => {
                self.expect_failure("crash", &["WORKER_LOST"]).await;
                self.recovered(fault, &[]).await
            }
            Fault::HangingTool => {
                self.expect_failure("hang", &["DEADLINE_EXCEEDED", "WORKER_LOST"]).await;
                self.recovered(fault, &[]).await
            }
            Fault::FloodingTool => {
                self.flood().await;
                self.recovered(fault, &[]).await
            }
            Fault::StalledLog => {
                self.daemon.stall_log(true);
                self.flood().await;
                self.flood().await;
                sleep(Duration::from_secs(1)).await;
                let took = self.recovered(fault, &[]).await;
                self.daemon.stall_log(false);
                took
            }
            Fault::NoDescriptors => {
                let held = rude::exhaust(&self.daemon).await;
                let pid = self.some_worker().await;
                signal(pid, Signal::SIGKILL);
                let took = self.recovered(fault, &[pid]).await;
                drop(held);
                took
            }
            Fault::StalledReaders => {
                rude::stall_reading(&self.daemon, DEADLINE + Duration::from_secs(1)).await;
                self.recovered(fault, &[]).await
            }
            Fault::VanishingClients => {
                rude::vanish(&self.daemon).await;
                self.recovered(fault, &[]).await
            }
            Fault::FrozenClient => {
                self.python.freeze(DEADLINE).await;
                self.recovered(fault, &[]).await
            }
            Fault::KilledClient => {
                self.python.replace().await;
                self.recovered(fault, &[]).await
            }
            Fault::RestartedRedis => {
                self.redis.restart(Duration::from_millis(300)).await;
                let took = self.recovered(fault, &[]).await;
                took + self.sessions_work(&tally).await
            }
            Fault::FrozenRedis => {
                self.redis.signal(Signal::SIGSTOP);
                sleep(Duration::from_secs(2)).await;
                self.redis.signal(Signal::SIGCONT);
                let took = self.recovered(fault, &[]).await;
                took + self.sessions_work(&tally).await
            }
        }
    }

    /// A worker chosen at random, preferably one that runs a call.
    async fn some_worker(&mut self) -> u32 {
        let workers = workers(&mut self.client).await.expect("a connection that was open stays open");
        let mut running: Vec<_> = workers.iter().filter(|worker| worker.pid != 0).collect();
        if running.iter().any(|worker| worker.state == "busy") {
            running.retain(|worker| worker.state == "busy");
        }
        assert!(!running.is_empty(), "a worker runs");
        running[self.random.below(running.len())].pid
    }

    /// Calls a tool that ends in this way.
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
        // tonic's channel gives up at the same moment as the server.
        let reason = if reason == "Cancelled" { "DEADLINE_EXCEEDED".to_owned() } else { reason };
        // A pool that is busy recovering may refuse the call.
        if !reasons.contains(&&*reason)
            && !["OVERLOADED", "NO_WORKER", "DEADLINE_EXCEEDED"].contains(&&*reason)
        {
            self.tally.violation(format!("the tool `{tool}` ended as {reason}"));
        }
    }

    async fn flood(&mut self) {
        let args = json!({"lines": 20_000, "characters": 1_000_000});
        let mut request = Request::new(tool_request("flood", &args));
        request.set_timeout(Duration::from_secs(15));
        // It competes with a thousand others and may fail like them.
        if let Err(status) = self.client.execute_tool(request).await {
            self.tally.count("flood", format!("{:?}", status.code()), 1);
        } else {
            self.tally.count("flood", "ok", 1);
        }
    }

    /// Waits until every slot has a worker that takes calls, none of them one of these.
    async fn recovered(&mut self, fault: Fault, condemned: &[u32]) -> Duration {
        let began = Instant::now();
        loop {
            let listed = timeout(DEADLINE, workers(&mut self.client)).await;
            let is_whole = matches!(&listed, Ok(Ok(workers)) if workers.len() == WORKERS && workers.iter().all(|worker| {
                ["idle", "busy"].contains(&&*worker.state) && !condemned.contains(&worker.pid)
            }));
            if is_whole {
                return began.elapsed();
            }
            if began.elapsed() > RECOVERS_WITHIN {
                let states = listed.map(|listed| listed.map(|workers| states(&workers)));
                let log = self.daemon.log_tail(20);
                self.tally.violation(format!("{}: not whole again: {states:?}\n{log}", fault.name()));
                return began.elapsed();
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until a call of a session succeeds.
    async fn sessions_work(&mut self, tally: &Tally) -> Duration {
        let began = Instant::now();
        let request = || {
            let mut request = Request::new(pb::GetSessionRequest { session_id: "soak-0".to_owned() });
            request.set_timeout(DEADLINE);
            request
        };
        while let Err(status) = self.client.get_session(request()).await {
            if began.elapsed() > RECOVERS_WITHIN {
                tally.violation(format!("sessions do not come back: {}", status.message()));
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        began.elapsed()
    }
}

/// What every worker does, for an error message.
pub(crate) fn states(workers: &[pb::WorkerInfo]) -> Vec<String> {
    workers.iter().map(|worker| format!("{} {} {}", worker.worker_id, worker.pid, worker.state)).collect()
}

/// Asks the tool that does nothing, as a last probe.
pub(crate) async fn answers(client: &mut Client, nonce: u64) -> bool {
    let answer = timeout(DEADLINE, execute(client, "mark", &json!({"nonce": nonce}))).await;
    matches!(answer, Ok(Ok(value)) if value == crate::callers::answer(nonce))
}
