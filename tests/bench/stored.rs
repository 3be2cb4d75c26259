//! Measures sessions in a file and in Redis, with a plain disk sync and a plain Redis command as baselines.

use std::{io::Write, sync::Arc, time::Instant};

use snakepit_session::{
    NewSession, NewVariable, Note, Payload, SessionBackend, SessionId, SessionLimits, SetVariable, ValueType,
    VariableName, VariableType,
};
use snakepit_session_redb::RedbBackend;
use snakepit_session_redis::{RedisBackend, RedisConfig};
use snakepit_tests::Redis;

use crate::{
    cpu::Processes,
    load::{Timing, check_result, closed_loop},
    measurements::Runs,
    sample::Sample,
};

const SESSIONS: usize = 1000;
const VARIABLE: &str = "rate";

/// Runs one round of all measurements.
pub(crate) async fn round(runs: &mut Runs, timing: Timing) {
    let files = tempfile::tempdir().expect("a directory");
    let limits = SessionLimits::default;
    let file = RedbBackend::open(files.path().join("sessions.redb"), limits()).await.expect("a file");
    let file = fill(Arc::new(file)).await;
    runs.add("bare-sync", sync_file(files.path(), timing));
    runs.add("file-set", set(&file, 1, timing).await);
    runs.add("file-set-64", set(&file, 64, timing).await);
    runs.add("file-get-64", get(&file, 64, timing).await);
    drop(file);

    let server = Redis::start().await;
    let redis = RedisBackend::connect(&server.url(), RedisConfig::default(), limits()).await;
    let redis = fill(Arc::new(redis.expect("the server accepts"))).await;
    runs.add("bare-redis", set_field(&server, 1, timing).await);
    runs.add("redis-set", set(&redis, 1, timing).await);
    runs.add("bare-redis-64", set_field(&server, 64, timing).await);
    runs.add("redis-set-64", set(&redis, 64, timing).await);
    runs.add("redis-get-64", get(&redis, 64, timing).await);
}

fn id(n: u64) -> SessionId {
    // Each caller counts from a different multiple of 2^20, and should use different sessions from the others.
    SessionId::try_new(format!("session_{:08}", (n ^ (n >> 20)) as usize % SESSIONS)).expect("a valid id")
}

/// Fills a backend with sessions that have one variable each.
async fn fill(backend: Arc<dyn SessionBackend>) -> Arc<dyn SessionBackend> {
    let ty = VariableType::with_constraints(ValueType::Float, r#"{"min": 0}"#).expect("a type");
    let name = VariableName::try_new(VARIABLE).expect("a name");
    for n in 0..SESSIONS as u64 {
        let session = id(n);
        backend.create(&session, NewSession::default()).await.expect("created");
        let new = NewVariable { ty: Arc::clone(&ty), value: Payload::float(0.5), note: Note::default() };
        backend.register_variable(&session, &name, new).await.expect("registered");
    }
    backend
}

async fn set(backend: &Arc<dyn SessionBackend>, in_flight: usize, timing: Timing) -> Sample {
    let backend = Arc::clone(backend);
    closed_loop(in_flight, timing, &Processes::default(), move |n| {
        let backend = Arc::clone(&backend);
        async move {
            let update = SetVariable::new(VARIABLE, Payload::float(0.25));
            check_result(backend.set_variable(&id(n), update).await, |version| *version > 0)
        }
    })
    .await
}

async fn get(backend: &Arc<dyn SessionBackend>, in_flight: usize, timing: Timing) -> Sample {
    let backend = Arc::clone(backend);
    closed_loop(in_flight, timing, &Processes::default(), move |n| {
        let backend = Arc::clone(&backend);
        async move {
            // The file backend may answer without waiting, and the timer must still run.
            tokio::task::coop::consume_budget().await;
            check_result(backend.variable(&id(n), VARIABLE).await, |found| found.value.to_float().is_some())
        }
    })
    .await
}

/// Measures sequential overwrites of a page, each with a sync.
fn sync_file(directory: &std::path::Path, timing: Timing) -> Sample {
    use std::os::unix::fs::FileExt;

    let mut file = std::fs::File::create(directory.join("bare")).expect("a file");
    file.write_all(&[0; 64 * PAGE]).and_then(|()| file.sync_all()).expect("written");
    let began = Instant::now();
    let mut written: u64 = 0;
    while began.elapsed() < timing.measured {
        let page = [written as u8; PAGE];
        file.write_all_at(&page, written % 64 * PAGE as u64).expect("written");
        file.sync_data().expect("synced");
        written += 1;
    }
    Sample::default().with("per_second", written as f64 / began.elapsed().as_secs_f64())
}

const PAGE: usize = 4096;

/// Measures writes of one field of a hash.
async fn set_field(server: &Redis, in_flight: usize, timing: Timing) -> Sample {
    let client = redis::Client::open(server.url()).expect("a valid URL");
    let connection = client.get_multiplexed_async_connection().await.expect("the server accepts");
    closed_loop(in_flight, timing, &Processes::default(), move |n| {
        let mut connection = connection.clone();
        async move {
            let mut command = redis::cmd("HSET");
            command.arg(format!("bare_{}", n % SESSIONS as u64)).arg(VARIABLE).arg("0.25");
            check_result(command.query_async::<i64>(&mut connection).await, |new| (0..=1).contains(new))
        }
    })
    .await
}
