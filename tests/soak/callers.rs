//! Rust callers: unary and streaming, over per-call RPCs and over the multiplexed stream, with and without sessions.

use std::{sync::Arc, time::Duration};

use futures_util::{TryStreamExt, future::join_all};
use serde_json::{Value, json};
use snakepit_proto::{pb, status::details_of};
use snakepit_server::{Error, SessionId};
use snakepit_tests::{Client, tool_request};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::{Request, Status};

use crate::{
    daemon::Daemon,
    tally::{DEADLINE, Tally},
    windows::Caller,
};

/// The number of concurrent callers of each kind.
const CALLERS: usize = 4;
/// The shortest time between two calls of a caller. It leaves the machine time to recover from faults.
const CALL_INTERVAL: Duration = Duration::from_millis(4);
/// The number of concurrent calls in a burst. It exceeds the number of workers, so calls are running and queued when a fault
/// occurs.
const BURST: usize = 48;
/// The shortest time between two bursts.
const BURST_INTERVAL: Duration = Duration::from_millis(100);
/// Durations of unary calls, in milliseconds. A killed worker is usually running one of the longer ones.
const WORK_MILLIS: [u64; 5] = [0, 0, 1, 5, 20];
/// The number of sessions that the callers share.
const SESSIONS: u64 = 100;
/// The numbers of chunks: a stream that fits into one frame, and one that does not.
const CHUNKS: [u64; 2] = [20, 3000];

/// The running callers.
pub(crate) struct Callers(JoinSet<()>);

impl Callers {
    pub(crate) async fn join(self) {
        self.0.join_all().await;
    }
}

pub(crate) async fn start(daemon: &Daemon, tally: &Arc<Tally>) -> Callers {
    let mut tasks = JoinSet::new();
    let plain = daemon.client().await;
    let multiplexed = snakepit_server::Client::connect(&daemon.url).await.expect("the daemon is up");
    create_sessions(&mut plain.clone()).await;
    for _ in 0..CALLERS {
        tasks.spawn(repeat(Arc::clone(tally), {
            let (client, tally) = (plain.clone(), Arc::clone(tally));
            move |nonce| plain_unary(client.clone(), Arc::clone(&tally), nonce)
        }));
        tasks.spawn(repeat(Arc::clone(tally), {
            let (client, tally) = (plain.clone(), Arc::clone(tally));
            move |nonce| plain_stream(client.clone(), Arc::clone(&tally), nonce)
        }));
        tasks.spawn(repeat(Arc::clone(tally), {
            let (client, tally) = (multiplexed.clone(), Arc::clone(tally));
            move |nonce| multiplexed_unary(client.clone(), Arc::clone(&tally), nonce)
        }));
        tasks.spawn(repeat(Arc::clone(tally), {
            let (client, tally) = (multiplexed.clone(), Arc::clone(tally));
            move |nonce| multiplexed_stream(client.clone(), Arc::clone(&tally), nonce)
        }));
    }
    tasks.spawn(bursts(multiplexed, Arc::clone(tally)));
    Callers(tasks)
}

/// Starts bursts of calls until the run stops.
async fn bursts(client: snakepit_server::Client, tally: Arc<Tally>) {
    let mut ticks = interval(BURST_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !tally.is_stopping() {
        ticks.tick().await;
        let calls = (0..BURST).map(|_| {
            let nonce = tally.nonce();
            call_multiplexed("unary, in bursts", client.clone(), Arc::clone(&tally), nonce)
        });
        join_all(calls).await;
    }
}

async fn create_sessions(client: &mut Client) {
    for number in 0..SESSIONS {
        let request = pb::InitializeSessionRequest { session_id: session(number), ..Default::default() };
        client.initialize_session(request).await.expect("the session is created");
    }
}

async fn repeat<F: Future<Output = ()>>(tally: Arc<Tally>, call: impl Fn(u64) -> F) {
    let mut ticks = interval(CALL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !tally.is_stopping() {
        ticks.tick().await;
        call(tally.nonce()).await;
    }
}

/// The result that the tools compute from a nonce.
pub(crate) const fn expected_result(nonce: u64) -> u64 {
    nonce * 31 + 7
}

fn session(number: u64) -> String {
    format!("soak-{}", number % SESSIONS)
}

/// The session of a call. Half of the calls have one.
fn session_of(nonce: u64) -> Option<String> {
    (nonce / 2).is_multiple_of(2).then(|| session(nonce / 4))
}

fn caller(nonce: u64) -> Caller {
    if session_of(nonce).is_some() { Caller::Session } else { Caller::Plain }
}

const fn unary_tool(nonce: u64) -> &'static str {
    if nonce.is_multiple_of(2) { "mark" } else { "mark_async" }
}

const fn stream_tool(nonce: u64) -> &'static str {
    if nonce.is_multiple_of(2) { "numbers" } else { "numbers_async" }
}

fn unary_args(nonce: u64) -> Value {
    let millis = WORK_MILLIS[usize::try_from(nonce % 5).unwrap_or_default()];
    json!({"nonce": nonce, "millis": millis})
}

fn chunks(nonce: u64) -> u64 {
    CHUNKS[usize::from(nonce.is_multiple_of(7))]
}

fn request(tool: &str, nonce: u64, args: &Value) -> Request<pb::ExecuteToolRequest> {
    let mut message = tool_request(tool, args);
    message.session_id = session_of(nonce).unwrap_or_default();
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

async fn plain_unary(mut client: Client, tally: Arc<Tally>, nonce: u64) {
    let started_at = Instant::now();
    let outcome = client.execute_tool(request(unary_tool(nonce), nonce, &unary_args(nonce))).await;
    let outcome = outcome.map(|response| snakepit_tests::result_of(response.into_inner()));
    match outcome {
        Ok(value) => finish_unary("unary, plain", &tally, nonce, started_at, &value),
        Err(status) => record_failure("unary, plain", &tally, nonce, started_at, &status),
    }
}

async fn multiplexed_unary(client: snakepit_server::Client, tally: Arc<Tally>, nonce: u64) {
    call_multiplexed("unary, multiplexed", client, tally, nonce).await;
}

async fn call_multiplexed(
    kind: &'static str,
    client: snakepit_server::Client,
    tally: Arc<Tally>,
    nonce: u64,
) {
    let started_at = Instant::now();
    let mut call = client.call(unary_tool(nonce)).args(unary_args(nonce)).timeout(DEADLINE);
    if let Some(session) = session_of(nonce) {
        call = call.session(SessionId::try_new(session).expect("a session id"));
    }
    match call.unary::<Value>().await {
        Ok(reply) => finish_unary(kind, &tally, nonce, started_at, &reply.value),
        Err(error) => record_error(kind, &tally, nonce, started_at, &error),
    }
}

fn finish_unary(kind: &'static str, tally: &Tally, nonce: u64, started_at: Instant, value: &Value) {
    if *value != expected_result(nonce) {
        tally.violation(format!("{kind}: the result for nonce {nonce} is {value}"));
    }
    tally.must_have_run(nonce);
    tally.record_success(kind, started_at);
}

async fn plain_stream(mut client: Client, tally: Arc<Tally>, nonce: u64) {
    let started_at = Instant::now();
    let args = json!({"nonce": nonce, "n": chunks(nonce)});
    let outcome = async {
        let mut stream =
            client.execute_streaming_tool(request(stream_tool(nonce), nonce, &args)).await?.into_inner();
        let (mut received, mut is_final) = (Vec::new(), false);
        while let Some(chunk) = stream.message().await? {
            is_final = chunk.is_final;
            if !chunk.data.is_empty() {
                received.push(serde_json::from_slice(&chunk.data).expect("chunks are JSON"));
            }
        }
        if !is_final {
            tally.violation(format!("stream, plain: nonce {nonce} ended without a final chunk"));
        }
        Ok::<Vec<u64>, Status>(received)
    };
    match outcome.await {
        Ok(received) => finish_stream("stream, plain", &tally, nonce, started_at, &received),
        Err(status) => record_failure("stream, plain", &tally, nonce, started_at, &status),
    }
}

async fn multiplexed_stream(client: snakepit_server::Client, tally: Arc<Tally>, nonce: u64) {
    let started_at = Instant::now();
    let args = json!({"nonce": nonce, "n": chunks(nonce)});
    let mut call = client.call(stream_tool(nonce)).args(args).timeout(DEADLINE);
    if let Some(session) = session_of(nonce) {
        call = call.session(SessionId::try_new(session).expect("a session id"));
    }
    let outcome = async { call.stream::<u64>().await?.try_collect::<Vec<u64>>().await };
    match outcome.await {
        Ok(received) => finish_stream("stream, multiplexed", &tally, nonce, started_at, &received),
        Err(error) => record_error("stream, multiplexed", &tally, nonce, started_at, &error),
    }
}

fn finish_stream(kind: &'static str, tally: &Tally, nonce: u64, started_at: Instant, received: &[u64]) {
    let first = expected_result(nonce);
    if !received.iter().copied().eq(first..first + chunks(nonce)) {
        tally.violation(format!("{kind}: the {} chunks of nonce {nonce} are wrong", received.len()));
    }
    tally.record_success(kind, started_at);
}

fn record_failure(kind: &'static str, tally: &Tally, nonce: u64, started_at: Instant, status: &Status) {
    let reason = details_of(status).reason.unwrap_or_else(|| format!("{:?}", status.code()));
    // tonic's channel has a timer for the deadline too, and may cancel the call before the server's response arrives.
    let reason = if reason == "Cancelled" && started_at.elapsed() >= DEADLINE {
        "DEADLINE_EXCEEDED".into()
    } else {
        reason
    };
    tally.record_failure(kind, caller(nonce), started_at, reason, status.message());
}

fn record_error(kind: &'static str, tally: &Tally, nonce: u64, started_at: Instant, error: &Error) {
    tally.record_failure(kind, caller(nonce), started_at, crate::report::reason(error), &error.to_string());
}
