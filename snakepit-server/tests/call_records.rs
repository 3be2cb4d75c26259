//! Each call has exactly one record, however it ends.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde_json::Value;
use snakepit_proto::pb;
use snakepit_server::{
    Builder, CallOutcome, CallRecord, Client, FnTool, Reason, ReplyBody, SessionId, Snakepit, ToolCall,
    ToolError, testing::InProcessWorkers,
};
use tokio::{sync::Semaphore, time::Instant};
use tower::{Service, ServiceBuilder, ServiceExt};

const SECOND: Duration = Duration::from_secs(1);

struct Fixture {
    snakepit: Snakepit,
    workers: InProcessWorkers,
    records: Arc<Mutex<Vec<CallRecord>>>,
    _run_dir: tempfile::TempDir,
}

impl Fixture {
    async fn start(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let strict = FnTool::typed("strict", |_: Value| async { 1 });
        let workers = InProcessWorkers::new()
            .fn_tool(FnTool::typed("value", |_: Value| async { 1 }))
            .fn_tool(FnTool::typed("fail", |_: Value| async { Err::<(), _>("on purpose") }))
            .fn_tool(FnTool::typed("endless", |_: Value| std::future::pending::<()>()))
            .fn_tool(FnTool::new("chunks", |_: Value| stream::iter([1, 2, 3])))
            .fn_tool(FnTool::new("broken", |_: Value| stream::iter([Ok(1), Err("on purpose")])))
            .fn_tool(FnTool::new("open", |_: Value| stream::iter([1]).chain(stream::pending())))
            .fn_tool(
                strict.describe(|spec| spec.parameter("n", "integer", "A number").deny_unknown_arguments()),
            );
        let records = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&records);
        let builder = Snakepit::builder()
            .launcher(Arc::new(workers.clone()))
            .workers(2)
            .run_dir(run_dir.path())
            .fn_tool(FnTool::typed("host_value", |_: Value| async { 1 }))
            .fn_tool(FnTool::typed("host_fail", |_: Value| async { Err::<(), _>("on purpose") }))
            .fn_tool(FnTool::typed("host_endless", |_: Value| std::future::pending::<()>()))
            .fn_tool(FnTool::new("host_chunks", |_: Value| stream::iter([1, 2])))
            .on_call_end(move |record| seen.lock().unwrap().push(record.clone()));
        let snakepit = configure(builder).start().await.unwrap();
        Self { snakepit, workers, records, _run_dir: run_dir }
    }

    /// Makes a call, and returns its only record.
    async fn record(&self, call: ToolCall, end: End) -> CallRecord {
        let name = call.tool.to_string();
        let running = self.snakepit.service().call(call);
        match end {
            End::Read => {
                if let Ok(reply) = running.await
                    && let ReplyBody::Stream(chunks) = reply.body
                {
                    chunks.collect::<Vec<_>>().await;
                }
            }
            End::DropCall => {
                assert!(tokio::time::timeout(SECOND, running).await.is_err(), "{name} does not end");
            }
            End::DropStream => {
                let ReplyBody::Stream(mut chunks) = running.await.unwrap().body else { panic!("a value") };
                chunks.next().await.unwrap().unwrap();
                assert_eq!(self.records.lock().unwrap().len(), 0, "{name} has not ended yet");
            }
        }
        self.only_record(&name)
    }

    fn only_record(&self, name: &str) -> CallRecord {
        let mut records = std::mem::take(&mut *self.records.lock().unwrap());
        assert_eq!(records.len(), 1, "{name}: {records:?}");
        let record = records.pop().unwrap();
        assert_eq!(&*record.tool, name);
        record
    }
}

/// How the caller ends a call.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It reads the reply to its end.
    Read,
    /// It drops the call while it runs.
    DropCall,
    /// It drops the stream after one chunk.
    DropStream,
}

fn call(tool: &str) -> ToolCall {
    ToolCall::new(tool)
}

fn stream_call(tool: &str) -> ToolCall {
    ToolCall::new(tool).streaming()
}

fn late(call: ToolCall) -> ToolCall {
    call.with_deadline(Instant::now() + SECOND)
}

fn without_session() -> ToolCall {
    let mut call = call("value");
    call.session = Some(SessionId::try_new("no-such-session").unwrap());
    call
}

/// A call, its end, and the outcome, the reason, the number of attempts and the number of chunks in its record.
type Ending = (fn() -> ToolCall, End, CallOutcome, Option<Reason>, u32, u64);

fn endings() -> Vec<Ending> {
    use CallOutcome::{Cancelled, Failed, Succeeded, TimedOut};
    let (failed, cancelled) = (Some(Reason::ToolFailed), Some(Reason::Cancelled));
    let deadline = Some(Reason::DeadlineExceeded);
    vec![
        (|| call("value"), End::Read, Succeeded, None, 1, 0),
        (|| call("fail"), End::Read, Failed, failed, 1, 0),
        (|| late(call("endless")), End::Read, TimedOut, deadline, 1, 0),
        (|| call("endless"), End::DropCall, Cancelled, cancelled, 1, 0),
        (|| stream_call("chunks"), End::Read, Succeeded, None, 1, 3),
        (|| stream_call("chunks"), End::DropStream, Cancelled, cancelled, 1, 1),
        (|| stream_call("broken"), End::Read, Failed, failed, 1, 1),
        (|| late(stream_call("open")), End::Read, TimedOut, deadline, 1, 1),
        (|| call("host_value"), End::Read, Succeeded, None, 1, 0),
        (|| call("host_fail"), End::Read, Failed, failed, 1, 0),
        (|| late(call("host_endless")), End::Read, TimedOut, deadline, 1, 0),
        (|| call("host_endless"), End::DropCall, Cancelled, cancelled, 1, 0),
        (|| stream_call("host_chunks"), End::Read, Succeeded, None, 1, 2),
        (|| stream_call("host_chunks"), End::DropStream, Cancelled, cancelled, 1, 1),
        // Rejected before the pool.
        (|| call("no_such_tool"), End::Read, Failed, Some(Reason::ToolNotFound), 0, 0),
        (|| call("strict"), End::Read, Failed, Some(Reason::InvalidArgument), 0, 0),
        (|| call("host_chunks"), End::Read, Failed, Some(Reason::Unsupported), 0, 0),
        (without_session, End::Read, Failed, Some(Reason::SessionNotFound), 0, 0),
    ]
}

#[tokio::test(start_paused = true)]
async fn every_ending_has_one_record() {
    let fixture = Fixture::start(|builder| builder).await;
    for (call, end, outcome, reason, attempts, chunks) in endings() {
        let call = call();
        let shown = format!("{} {:?} {end:?}", call.tool, call.mode);
        let record = fixture.record(call, end).await;
        assert_eq!((record.outcome, record.reason()), (outcome, reason), "{shown}");
        assert_eq!((record.attempts, record.chunks), (attempts, chunks), "{shown}");
        assert_eq!(record.first_chunk.is_some(), chunks > 0, "{shown}");
        assert_eq!(record.error.is_none(), matches!(reason, None | Some(Reason::Cancelled)), "{shown}");
        // The stages follow each other. Only calls on workers pass the pool.
        let is_on_worker = attempts > 0 && !record.tool.starts_with("host_");
        let pool_stages = [record.queued, record.assigned].map(|stage| stage.is_some());
        assert_eq!(pool_stages, [is_on_worker; 2], "{shown}");
        assert_eq!((record.worker.is_some(), record.sent.is_some()), (is_on_worker, attempts > 0), "{shown}");
        let stages = [record.queued, record.assigned, record.sent, record.first_chunk, Some(record.total)];
        assert!(stages.into_iter().flatten().is_sorted(), "{shown}: {stages:?}");
    }
    fixture.snakepit.shutdown().await.unwrap();
    let record = fixture.record(call("value"), End::Read).await;
    assert_eq!((record.outcome, record.reason()), (CallOutcome::Rejected, Some(Reason::ShuttingDown)));
}

#[tokio::test(start_paused = true)]
async fn a_retried_call_has_one_record_with_its_attempts() {
    let fixture = Fixture::start(|builder| builder).await;
    fixture.workers.crash_in_calls("value", 1);
    let mut idempotent = call("value");
    idempotent.idempotent = true;
    let retried = fixture.record(idempotent, End::Read).await;
    assert_eq!((retried.outcome, retried.attempts), (CallOutcome::Succeeded, 2));

    fixture.workers.crash_in_calls("value", 1);
    let lost = fixture.record(call("value"), End::Read).await;
    assert_eq!(
        (lost.outcome, lost.reason(), lost.attempts),
        (CallOutcome::Lost, Some(Reason::WorkerLost), 1)
    );
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_record_has_the_sizes_and_the_times_of_its_call() {
    let slow = FnTool::typed("slow", |_: Value| async {
        tokio::time::sleep(3 * SECOND).await;
        "12345678"
    });
    let fixture = Fixture::start(|builder| builder.fn_tool(slow)).await;
    let with_argument = call("slow").try_with_argument("text", "1234").unwrap();
    let record = fixture.record(with_argument, End::Read).await;
    assert!((4..100).contains(&record.request_bytes), "{record:?}");
    assert!((8..100).contains(&record.response_bytes), "{record:?}");
    assert_eq!((record.sent, record.total), (Some(Duration::ZERO), 3 * SECOND));
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_call_that_a_layer_rejects_and_a_call_of_a_client_have_a_record() {
    let limit = ServiceBuilder::new().load_shed().concurrency_limit(1);
    let fixture = Fixture::start(|builder| builder.layer(limit)).await;
    let client = Client::connect(&format!("unix:{}", fixture.snakepit.socket().display())).await.unwrap();
    let mut endless = Box::pin(client.execute::<Value>("endless", ()));
    while fixture.workers.calls("endless") == 0 {
        tokio::select! {
            _ = &mut endless => panic!("it ended"),
            () = tokio::task::yield_now() => {}
        }
    }
    let shed = client.execute::<Value>("value", ()).await.unwrap_err();
    assert!(shed.is_overloaded(), "{shed:?}");
    let record = fixture.only_record("value");
    assert_eq!((record.outcome, record.reason()), (CallOutcome::Rejected, Some(Reason::Overloaded)));
    assert_eq!((record.attempts, record.queued), (0, None));
    assert!(matches!(record.error, Some(ToolError::Layer { may_have_run: false, .. })));
    // The host learns of the cancellation later.
    drop(endless);
    while fixture.records.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.only_record("endless").outcome, CallOutcome::Cancelled);
    fixture.snakepit.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_panic_of_a_reader_is_counted_and_affects_neither_the_call_nor_other_readers() {
    let later = Arc::new(Mutex::new(0));
    let count = Arc::clone(&later);
    let fixture = Fixture::start(|builder| {
        builder.on_call_end(|_| panic!("on purpose")).on_call_end(move |_| *count.lock().unwrap() += 1)
    })
    .await;
    assert_eq!(fixture.snakepit.execute::<i64>("value", ()).await.unwrap(), 1);
    assert!(fixture.snakepit.execute::<i64>("no_such_tool", ()).await.is_err());
    assert_eq!((fixture.snakepit.reader_panics(), *later.lock().unwrap()), (2, 2));
    assert_eq!(fixture.records.lock().unwrap().len(), 2);
    fixture.snakepit.shutdown().await.unwrap();
}

/// Frames a message as gRPC does.
fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend(message);
    bytes
}

/// A stream of requests that stays open after the first one.
fn open_stream(message: &impl prost::Message) -> axum::body::Body {
    let items = stream::iter([Ok::<_, std::io::Error>(framed(message))]);
    axum::body::Body::from_stream(items.chain(stream::pending()))
}

/// If the host drops the answer of a call because the client does not read answers, the record of the call is a failure.
#[tokio::test]
async fn a_dropped_answer_is_no_success() {
    const CALLS: usize = 3;
    for is_multiplexed in [false, true] {
        let (started, release) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let tool = {
            let (started, release) = (Arc::clone(&started), Arc::clone(&release));
            FnTool::new("large", move || {
                let (started, release) = (Arc::clone(&started), Arc::clone(&release));
                async move {
                    started.add_permits(1);
                    release.acquire().await.unwrap().forget();
                    "x".repeat(900 << 10)
                }
            })
        };
        let fixture = Fixture::start(|builder| builder.connection_bytes(1 << 20).fn_tool(tool)).await;
        let request = |rpc: &str, body| {
            let request =
                http::Request::post(format!("http://localhost/snakepit.bridge.BridgeService/{rpc}"));
            fixture
                .snakepit
                .routes()
                .oneshot(request.header("content-type", "application/grpc").body(body).unwrap())
        };
        let responses = if is_multiplexed {
            let call = |id| pb::CallStart { id, tool_name: "large".to_owned(), ..Default::default() };
            let batch = pb::CallBatch { calls: (1..=CALLS as u64).map(call).collect(), ..Default::default() };
            vec![request("Multiplex", open_stream(&batch))]
        } else {
            let call = pb::ExecuteToolRequest { tool_name: "large".to_owned(), ..Default::default() };
            // A unary request must be complete.
            let whole = |_| axum::body::Body::from(framed(&call));
            (0..CALLS).map(whole).map(|body| request("ExecuteTool", body)).collect()
        };
        let running = futures_util::future::join_all(responses);
        // All calls begin before the first value counts as unread.
        let releasing = async {
            started.acquire_many(CALLS as u32).await.unwrap().forget();
            release.add_permits(CALLS);
        };
        let (_unread, ()) = tokio::join!(running, releasing);
        while fixture.records.lock().unwrap().len() < CALLS {
            tokio::task::yield_now().await;
        }
        let records = fixture.records.lock().unwrap().clone();
        let dropped: Vec<_> =
            records.iter().filter(|record| record.outcome != CallOutcome::Succeeded).collect();
        assert_eq!(dropped.len(), 1, "two values fit into twice the limit: {records:?}");
        assert_eq!(dropped[0].reason(), Some(Reason::AnswerDropped));
        fixture.snakepit.shutdown().await.unwrap();
    }
}
