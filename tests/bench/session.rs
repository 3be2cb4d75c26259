//! `cargo xtask bench session`: what sessions cost, beside the bare map that they are kept in and beside an empty RPC.

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
    measures::{Extent, Runs},
    sample::Sample,
    stored,
};

const THREADS: usize = 2;
/// As many as the yardstick of old had: more than a cache holds.
const SESSIONS: usize = 10_000;
const MILLION: usize = 1_000_000;
/// The sessions that expire at once.
const EXPIRING: usize = 1000;
const BATCH: usize = 1000;
const VARIABLE: &str = "rate";

/// All measures of sessions.
pub(crate) async fn run(extent: Extent) -> Runs {
    let mut runs = Runs::default();
    println!("a million idle sessions");
    // First, while the allocator has kept nothing from before.
    runs.add("idle-session", idle());
    let time = extent.spell.counted;
    let bare = Bare::new();
    // As little in each as in the bare map; the variables are in a backend of their own.
    let plain = Ours::new();
    let varied = Ours::with_variables();
    for round in 1..=extent.rounds {
        println!("round {round} of {}", extent.rounds);
        // Each beside its yardstick.
        runs.add("bare-get", on_threads(time, |n| bare.get(n)));
        runs.add("session-get", on_threads(time, |n| plain.get(n)));
        runs.add("bare-update", on_threads(time, |n| bare.update(n)));
        runs.add("session-update", on_threads(time, |n| plain.update(n)));
        runs.add("variable-get", on_threads(time, |n| varied.variable(n)));
        runs.add("variable-set", on_threads(time, |n| varied.set_variable(n)));
        runs.add("session-create", create(time));
        runs.add("sweep-among-10k", sweep_among(10_000).await);
        runs.add("sweep-among-1m", sweep_among(MILLION).await);
        let daemon = Daemon::start(1).await;
        runs.add("daemon-ping", daemon.ping(64, extent.spell).await);
        runs.add("daemon-get-session", daemon.get_session(64, extent.spell).await);
        runs.add("daemon-get-variable", daemon.get_variable(64, extent.spell).await);
        runs.add("daemon-set-variable", daemon.set_variable(64, extent.spell).await);
        daemon.stop().await;
        stored::round(&mut runs, extent.spell).await;
    }
    runs
}

/// Operations a second of all threads together.
fn on_threads(time: Duration, operation: impl Fn(usize) + Sync) -> Sample {
    let began = Instant::now();
    let counts = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let operation = &operation;
                scope.spawn(move || {
                    let mut done = 0_usize;
                    while began.elapsed() < time {
                        for n in done..done + BATCH {
                            // Far apart, and each thread its own way.
                            operation((n * 7919 + number * 31) % SESSIONS);
                        }
                        done += BATCH;
                    }
                    done
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no operation panics")).sum::<usize>()
    });
    Sample::default().with("per_second", counts as f64 / began.elapsed().as_secs_f64())
}

/// The operation of a backend that never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory does not wait")
}

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("user".to_owned(), "somebody".to_owned())])
}

/// The concurrent map alone, with a session's worth of fields and the hash that the backend uses.
struct Bare {
    keys: Vec<String>,
    map: DashMap<String, BareSession, RandomState>,
}

#[derive(Clone)]
struct BareSession {
    id: Arc<str>,
    metadata: Arc<BTreeMap<String, String>>,
    last_worker: Arc<str>,
    created_at: SystemTime,
    ttl: Duration,
    used: u64,
}

impl Bare {
    fn new() -> Self {
        let keys: Vec<_> = (0..SESSIONS).map(|n| format!("session_{n:08}")).collect();
        // Each with texts of its own, which no two threads share.
        let session = |key: &String| BareSession {
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
        let session = self.map.get(&self.keys[n]).expect("it is there").clone();
        black_box((session.id, session.metadata, session.last_worker, session.created_at));
    }

    /// Reads a session and writes to it, as the host does with each call.
    fn update(&self, n: usize) {
        let seen = self.map.get(&self.keys[n]).expect("it is there").clone();
        let mut session = self.map.get_mut(&self.keys[n]).expect("it is there");
        session.used += 1;
        session.ttl = seen.ttl;
        session.last_worker = seen.last_worker;
    }
}

/// The memory backend, behind its trait as the host has it.
struct Ours {
    ids: Vec<SessionId>,
    backend: Arc<dyn SessionBackend>,
}

impl Ours {
    fn new() -> Self {
        let backend: Arc<dyn SessionBackend> = Arc::new(MemoryBackend::new(SessionLimits::default()));
        let ids: Vec<_> = (0..SESSIONS).map(|n| session_id("session", n)).collect();
        for id in &ids {
            now(backend.create(id, NewSession { metadata: metadata(), ttl: None })).expect("created");
            // A text of its own, as in the bare map.
            now(backend.set_last_worker(id, "default-1-1".into())).expect("it is there");
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
            now(backend.register_variable(id, &name, new)).expect("registered");
        }
        Self { ids, backend }
    }

    fn get(&self, n: usize) {
        black_box(now(self.backend.get(&self.ids[n])).expect("it is there"));
    }

    fn update(&self, n: usize) {
        let seen = now(self.backend.get(&self.ids[n])).expect("it is there");
        let worker = seen.last_worker.expect("it was told");
        now(self.backend.set_last_worker(&seen.id, worker)).expect("it is there");
    }

    fn variable(&self, n: usize) {
        black_box(now(self.backend.variable(&self.ids[n], VARIABLE)).expect("it is there"));
    }

    fn set_variable(&self, n: usize) {
        let value = Payload::from_json(ValueType::Float, bytes::Bytes::from_static(b"0.25"));
        let update = SetVariable::new(VARIABLE, value);
        black_box(now(self.backend.set_variable(&self.ids[n], update)).expect("it is there"));
    }
}

fn session_id(kind: &str, n: usize) -> SessionId {
    SessionId::try_new(format!("{kind}_{n:08}")).expect("a sound id")
}

/// Sessions made a second, by one thread.
fn create(time: Duration) -> Sample {
    let backend = MemoryBackend::new(SessionLimits::default());
    let began = Instant::now();
    let mut made = 0;
    while began.elapsed() < time && made < MILLION {
        for n in made..made + BATCH {
            let new = NewSession { metadata: metadata(), ttl: None };
            now(backend.create(&session_id("new", n), new)).expect("created");
        }
        made += BATCH;
    }
    Sample::default().with("per_second", made as f64 / began.elapsed().as_secs_f64())
}

/// What an idle session with little metadata takes, at a million of them.
fn idle() -> Sample {
    let before = resident();
    let backend = MemoryBackend::new(SessionLimits::default());
    for n in 0..MILLION {
        now(backend.create(&session_id("idle", n), NewSession { metadata: metadata(), ttl: None }))
            .expect("created");
    }
    let each = (resident() - before) / MILLION as f64;
    drop(black_box(backend));
    Sample::default().with("bytes", each)
}

/// How long a sweep takes that finds a thousand expired sessions, among so many that live.
async fn sweep_among(live: usize) -> Sample {
    let backend = MemoryBackend::new(SessionLimits { max_sessions: 2 * MILLION, ..SessionLimits::default() });
    for n in 0..live {
        now(backend.create(&session_id("live", n), NewSession::default())).expect("created");
    }
    let gone = NewSession { ttl: Some(Duration::ZERO), ..NewSession::default() };
    for n in 0..EXPIRING {
        now(backend.create(&session_id("gone", n), gone.clone())).expect("created");
    }
    let began = Instant::now();
    assert_eq!(backend.sweep().await.expect("swept"), EXPIRING, "all that expired is found");
    Sample::default().with("us", began.elapsed().as_secs_f64() * 1e6)
}

/// What this process holds in memory, in bytes.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024.0
}
