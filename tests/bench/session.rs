//! `cargo xtask bench session`: measures sessions, with a plain map and an empty RPC as baselines.

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use dashmap::DashMap;
use foldhash::quality::RandomState;
use futures_util::FutureExt;
use snakepit_server::SessionId;
use snakepit_session::{
    MemoryBackend, NewSession, NewVariable, Note, Payload, SessionBackend, SessionLimits, SetVariable,
    ValueType, VariableName, VariableType,
};

use crate::{
    daemon::Daemon,
    measurements::{Extent, Runs},
    sample::Sample,
    stored,
};

const THREADS: usize = 2;
/// The number of sessions, which exceeds the cache of a processor.
const SESSIONS: usize = 10_000;
const MILLION: usize = 1_000_000;
/// The number of sessions that one sweep removes.
const EXPIRING: usize = 1000;
/// The number of operations between two looks at the clock.
const BATCH: usize = 1000;
const VARIABLE: &str = "rate";

/// Runs all measurements of sessions.
pub(crate) async fn run(extent: Extent) -> Runs {
    let mut runs = Runs::default();
    println!("a million idle sessions");
    // This measurement comes first, because later the allocator holds freed memory.
    runs.add("idle-session", idle());
    let time = extent.timing.measured;
    let map = PlainMap::new();
    // Sessions of the first backend have the same fields as those of the map. Only the second has variables.
    let sessions = Backend::new();
    let variables = Backend::with_variables();
    for round in 1..=extent.rounds {
        println!("round {round} of {}", extent.rounds);
        // Each measurement runs after its baseline.
        runs.add("bare-get", on_threads(time, |n| map.get(n)));
        runs.add("session-get", on_threads(time, |n| sessions.get(n)));
        runs.add("bare-update", on_threads(time, |n| map.update(n)));
        runs.add("session-update", on_threads(time, |n| sessions.update(n)));
        runs.add("variable-get", on_threads(time, |n| variables.variable(n)));
        runs.add("variable-set", on_threads(time, |n| variables.set_variable(n)));
        runs.add("session-create", create(time));
        runs.add("sweep-among-10k", sweep_among(10_000).await);
        runs.add("sweep-among-1m", sweep_among(MILLION).await);
        let daemon = Daemon::start(1).await;
        runs.add("daemon-ping", daemon.ping(64, extent.timing).await);
        runs.add("daemon-get-session", daemon.get_session(64, extent.timing).await);
        runs.add("daemon-get-variable", daemon.get_variable(64, extent.timing).await);
        runs.add("daemon-set-variable", daemon.set_variable(64, extent.timing).await);
        daemon.stop().await;
        stored::round(&mut runs, extent.timing).await;
    }
    runs
}

/// Measures the operations per second of all threads together.
fn on_threads(time: Duration, operation: impl Fn(usize) + Sync) -> Sample {
    let began = Instant::now();
    let counts = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let operation = &operation;
                scope.spawn(move || {
                    let mut completed = 0_usize;
                    while began.elapsed() < time {
                        for n in completed..completed + BATCH {
                            // Consecutive operations are far apart, and the threads take different paths.
                            operation((n * 7919 + number * 31) % SESSIONS);
                        }
                        completed += BATCH;
                    }
                    completed
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no operation panics")).sum::<usize>()
    });
    Sample::default().with("per_second", counts as f64 / began.elapsed().as_secs_f64())
}

/// Completes an operation of the memory backend, which never waits.
fn complete<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory does not wait")
}

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("user".to_owned(), "alice".to_owned())])
}

/// A concurrent map whose values have the fields of a session, with the hash function of the backend.
struct PlainMap {
    keys: Vec<String>,
    map: DashMap<String, MapSession, RandomState>,
}

#[derive(Clone)]
struct MapSession {
    id: Arc<str>,
    metadata: Arc<BTreeMap<String, String>>,
    last_worker: Arc<str>,
    created_at: SystemTime,
    ttl: Duration,
    used: u64,
}

impl PlainMap {
    fn new() -> Self {
        let keys: Vec<_> = (0..SESSIONS).map(|n| format!("session_{n:08}")).collect();
        // Each session has separate strings, so threads share no reference counts.
        let session = |key: &String| MapSession {
            id: key.as_str().into(),
            metadata: Arc::new(metadata()),
            last_worker: "default-1-1".into(),
            created_at: SystemTime::now(),
            ttl: Duration::from_secs(3600),
            used: 0,
        };
        let map = keys.iter().map(|key| (key.clone(), session(key))).collect();
        Self { keys, map }
    }

    fn get(&self, n: usize) {
        let session = self.map.get(&self.keys[n]).expect("it exists").clone();
        black_box((session.id, session.metadata, session.last_worker, session.created_at));
    }

    /// Reads and writes a session, as the host does for each call.
    fn update(&self, n: usize) {
        let copy = self.map.get(&self.keys[n]).expect("it exists").clone();
        let mut session = self.map.get_mut(&self.keys[n]).expect("it exists");
        session.used += 1;
        session.ttl = copy.ttl;
        session.last_worker = copy.last_worker;
    }
}

/// The memory backend, called through its trait as in the host.
struct Backend {
    ids: Vec<SessionId>,
    backend: Arc<dyn SessionBackend>,
}

impl Backend {
    fn new() -> Self {
        let backend: Arc<dyn SessionBackend> = Arc::new(MemoryBackend::new(SessionLimits::default()));
        let ids: Vec<_> = (0..SESSIONS).map(|n| session_id("session", n)).collect();
        for id in &ids {
            complete(backend.create(id, NewSession { metadata: metadata(), ttl: None })).expect("created");
            // A separate string, as in the map.
            complete(backend.set_last_worker(id, "default-1-1".into())).expect("it exists");
        }
        Self { ids, backend }
    }

    fn with_variables() -> Self {
        let Self { ids, backend } = Self::new();
        let ty = VariableType::with_constraints(ValueType::Float, r#"{"min": 0}"#).expect("a type");
        let name = VariableName::try_new(VARIABLE).expect("a name");
        for id in &ids {
            let value = Payload::try_from_serde(&0.5).expect("a number");
            let new = NewVariable { ty: Arc::clone(&ty), value, note: Note::default() };
            complete(backend.register_variable(id, &name, new)).expect("registered");
        }
        Self { ids, backend }
    }

    fn get(&self, n: usize) {
        black_box(complete(self.backend.get(&self.ids[n])).expect("it exists"));
    }

    fn update(&self, n: usize) {
        let session = complete(self.backend.get(&self.ids[n])).expect("it exists");
        let worker = session.last_worker.expect("it was set");
        complete(self.backend.set_last_worker(&session.id, worker)).expect("it exists");
    }

    fn variable(&self, n: usize) {
        black_box(complete(self.backend.variable(&self.ids[n], VARIABLE)).expect("it exists"));
    }

    fn set_variable(&self, n: usize) {
        let value = Payload::from_json(ValueType::Float, bytes::Bytes::from_static(b"0.25"));
        let update = SetVariable::new(VARIABLE, value);
        black_box(complete(self.backend.set_variable(&self.ids[n], update)).expect("it exists"));
    }
}

fn session_id(kind: &str, n: usize) -> SessionId {
    SessionId::try_new(format!("{kind}_{n:08}")).expect("a valid id")
}

/// Measures the sessions that one thread creates per second.
fn create(time: Duration) -> Sample {
    let backend = MemoryBackend::new(SessionLimits::default());
    let began = Instant::now();
    let mut created = 0;
    while began.elapsed() < time && created < MILLION {
        for n in created..created + BATCH {
            let new = NewSession { metadata: metadata(), ttl: None };
            complete(backend.create(&session_id("new", n), new)).expect("created");
        }
        created += BATCH;
    }
    Sample::default().with("per_second", created as f64 / began.elapsed().as_secs_f64())
}

/// Measures the memory of an idle session with little metadata, among a million.
fn idle() -> Sample {
    let before = resident();
    let backend = MemoryBackend::new(SessionLimits::default());
    for n in 0..MILLION {
        complete(backend.create(&session_id("idle", n), NewSession { metadata: metadata(), ttl: None }))
            .expect("created");
    }
    let each = (resident() - before) / MILLION as f64;
    drop(black_box(backend));
    Sample::default().with("bytes", each)
}

/// Measures a sweep of a thousand expired sessions among `live` sessions.
async fn sweep_among(live: usize) -> Sample {
    let backend = MemoryBackend::new(SessionLimits::default().max_sessions(2 * MILLION));
    for n in 0..live {
        complete(backend.create(&session_id("live", n), NewSession::default())).expect("created");
    }
    let expired = NewSession { ttl: Some(Duration::ZERO), ..NewSession::default() };
    for n in 0..EXPIRING {
        complete(backend.create(&session_id("expired", n), expired.clone())).expect("created");
    }
    let began = Instant::now();
    assert_eq!(backend.sweep().await.expect("swept"), EXPIRING, "the sweep removes all expired sessions");
    Sample::default().with("us", began.elapsed().as_secs_f64() * 1e6)
}

/// The resident memory of this process, in bytes.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc has the memory");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("/proc has the memory");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024.0
}
