//! Tests of both ends of a stream in one process, without a network.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, future::join_all, stream};
use snakepit_proto::mux::{CallEnd, CallEvent, Incoming, MAX_ITEM_BYTES, Multiplexer, ReplyBatches, Serve};
use snakepit_proto::pb::bridge_service_client::BridgeServiceClient;
use snakepit_registry::{Chunk, ToolFailure};
use snakepit_session::Payload;
use tokio::{sync::mpsc, task::JoinSet, time::sleep};
use tonic::{
    Request, Response, Streaming,
    codegen::{Service, http},
    server::{Grpc, StreamingService},
};
use tonic_prost::ProstCodec;

use super::*;
use crate::{
    WireError,
    mux::{CallErrors, CallInfo, LostCall, call},
};

mod credit;

/// Factors for the chunk sizes of an uneven stream, so that they do not align with grants.
const SIZE_FACTORS: [usize; 13] = [1, 9, 2, 1, 7, 1, 1, 9, 5, 1, 3, 9, 1];

/// The activity of the tools, and the resources of the stream.
#[derive(Debug, Default)]
struct Observations {
    begun: AtomicUsize,
    running: AtomicUsize,
    cancels: AtomicUsize,
    /// Bytes of chunks that were produced.
    produced: AtomicUsize,
    /// The numbers of open calls and tasks, and the size of the calls. `None` after the stream was dropped.
    usage: Mutex<Option<(usize, usize, usize)>>,
}

/// The tools `echo`, `nap` (a millisecond), `hang`, and `stream`: `count` chunks of `size` bytes, or of varying
/// multiples of `size` with `uneven`.
#[derive(Debug, Clone, Default)]
struct Tools(Arc<Observations>);

struct RunGuard(Arc<Observations>);

impl RunGuard {
    fn begin(observations: &Arc<Observations>) -> Self {
        observations.begun.fetch_add(1, SeqCst);
        observations.running.fetch_add(1, SeqCst);
        Self(Arc::clone(observations))
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl ToolHandler for Tools {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let guard = RunGuard::begin(&self.0);
        let number = |name: &str| call.metadata.get(name).map_or(0, |text| text.parse().unwrap());
        match &*call.tool {
            "nap" => sleep(Duration::from_millis(1)).await,
            "hang" => std::future::pending().await,
            "stream" => {
                let (count, size) = (number("count"), number("size"));
                let uneven = call.metadata.contains_key("uneven");
                let chunks = stream::iter(0..count).map(move |i| {
                    let size = if uneven { size * SIZE_FACTORS[i % SIZE_FACTORS.len()] } else { size };
                    guard.0.produced.fetch_add(size, SeqCst);
                    Ok(Chunk { data: vec![0; size].into(), ..Chunk::default() })
                });
                return Ok(ToolReply::stream(Box::pin(chunks)));
            }
            _ => {}
        }
        Ok(ToolReply::value(Payload::null()))
    }

    async fn cancel(&self, _: CallId) -> Result<(), ToolError> {
        self.0.cancels.fetch_add(1, SeqCst);
        sleep(Duration::from_millis(1)).await;
        Ok(())
    }
}

struct TestService(Tools);

impl MuxService for TestService {
    type Handler = Tools;

    fn handler(&self) -> &Tools {
        &self.0
    }

    fn call_id(&self, id: u64) -> CallId {
        CallId::from_u64(id)
    }

    fn status(&self, error: ToolError) -> Status {
        match error {
            ToolError::Overloaded { .. } => Status::resource_exhausted(error.to_string()),
            error => Status::internal(error.to_string()),
        }
    }

    fn stream_deadline(&self, _: &str, deadline: Option<Instant>, _: Instant) -> Option<Instant> {
        deadline
    }
}

/// Records the resources of the calls.
struct ObservedCalls(MuxCalls<TestService>, Arc<Observations>);

impl Calls for ObservedCalls {
    fn receive(&mut self, batch: pb::CallBatch) {
        self.0.receive(batch);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let has_open_calls = self.0.poll(cx);
        let calls = &self.0;
        *self.1.usage.lock().unwrap() = Some((calls.running.len(), calls.tasks.len(), calls.bytes));
        has_open_calls
    }
}

impl Drop for ObservedCalls {
    fn drop(&mut self) {
        *self.1.usage.lock().unwrap() = None;
    }
}

struct Rpc(Tools);

/// The response, and the task that runs the calls.
struct TestResponse(ReplyBatches, #[allow(dead_code)] JoinSet<()>);

impl futures_util::Stream for TestResponse {
    type Item = Result<pb::ReplyBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl StreamingService<pb::CallBatch> for Rpc {
    type Response = pb::ReplyBatch;
    type ResponseStream = TestResponse;
    type Future = Ready<Result<Response<TestResponse>, Status>>;

    fn call(&mut self, request: Request<Streaming<pb::CallBatch>>) -> Self::Future {
        let replies = Replies::new();
        let calls = MuxCalls::new(Arc::new(TestService(self.0.clone())), replies.clone());
        let calls = ObservedCalls(calls, Arc::clone(&self.0.0));
        let (call_loop, body) = Serve::new(request.into_inner(), calls, replies).split();
        let mut task = JoinSet::new();
        task.spawn(call_loop);
        ready(Ok(Response::new(TestResponse(body, task))))
    }
}

type RpcFuture = Pin<Box<dyn Future<Output = Result<http::Response<tonic::body::Body>, Infallible>> + Send>>;

impl Service<http::Request<tonic::body::Body>> for Tools {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = RpcFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> RpcFuture {
        let rpc = Rpc(self.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(usize::MAX);
            Ok(grpc.streaming(rpc, request).await)
        })
    }
}

async fn open(tools: &Tools) -> (Multiplexer, Incoming) {
    let client = BridgeServiceClient::new(tools.clone()).max_decoding_message_size(usize::MAX);
    Multiplexer::open(client).await.unwrap()
}

/// Opens a stream whose frames the test writes.
async fn open_raw(tools: &Tools) -> (mpsc::Sender<pb::CallBatch>, Streaming<pb::ReplyBatch>) {
    let (batches, outgoing) = mpsc::channel(8);
    let outgoing = stream::unfold(outgoing, async |mut outgoing: mpsc::Receiver<_>| {
        outgoing.recv().await.map(|batch| (batch, outgoing))
    });
    let mut client = BridgeServiceClient::new(tools.clone()).max_decoding_message_size(usize::MAX);
    let replies = client.multiplex(Request::new(Box::pin(outgoing))).await.unwrap().into_inner();
    (batches, replies)
}

fn start(id: u64, tool: &str) -> pb::CallStart {
    pb::CallStart { id, tool_name: tool.to_owned(), ..pb::CallStart::default() }
}

fn start_stream(id: u64, count: usize, size: usize) -> pb::CallStart {
    let metadata = [("count".to_owned(), count.to_string()), ("size".to_owned(), size.to_string())];
    pb::CallStart { stream: true, metadata: metadata.into(), ..start(id, "stream") }
}

async fn wait_until(condition: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_mins(1), async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the condition holds within a minute");
}

impl Observations {
    fn usage(&self) -> Option<(usize, usize, usize)> {
        *self.usage.lock().unwrap()
    }
}

#[derive(Debug, Clone, Copy)]
struct TestCallErrors;

#[async_trait]
impl CallErrors for TestCallErrors {
    async fn rejection_error(&self, info: &CallInfo, status: Status) -> ToolError {
        match status.code() {
            Code::Cancelled => ToolError::cancelled(info.tool.to_string()),
            _ => ToolError::internal(status.message()),
        }
    }

    async fn lost_call(&self, info: &CallInfo, _: u64, status: Status) -> LostCall {
        LostCall { stored_reply: None, error: self.unsent_error(info, status).await }
    }

    async fn unsent_error(&self, _: &CallInfo, status: Status) -> ToolError {
        ToolError::unavailable(status.message())
    }

    fn failure_error(&self, _: &CallInfo, failure: ToolFailure) -> ToolError {
        ToolError::Failed(Box::new(failure))
    }

    fn bad_value_error(&self, error: &WireError) -> ToolError {
        ToolError::internal(error.to_string())
    }

    fn protocol_error(&self, violation: &str) -> ToolError {
        ToolError::internal(violation)
    }

    fn worker(&self, _: &str) -> Option<Arc<str>> {
        None
    }
}

fn streaming_call(count: usize, size: usize) -> ToolCall {
    let mut call = ToolCall::new("stream");
    call.mode = CallMode::Streaming;
    call.metadata = [("count".to_owned(), count.to_string()), ("size".to_owned(), size.to_string())].into();
    call
}

/// Waits until all calls have ended, and checks that both ends are empty.
async fn assert_empty(observations: &Observations, multiplexer: &Multiplexer) {
    wait_until(|| observations.usage() == Some((0, 0, 0))).await;
    assert_eq!(observations.running.load(SeqCst), 0);
    let debug = format!("{multiplexer:?}");
    assert!(debug.contains("calls: 0, unsent: 0"), "{debug}");
}

#[tokio::test(start_paused = true)]
async fn calls_of_all_kinds_end_and_release_their_resources() {
    let tools = Tools::default();
    let (multiplexer, incoming) = open(&tools).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(incoming);
    let make_call = async |i: u64| {
        match i % 6 {
            0 | 1 => {
                let tool = if i.is_multiple_of(2) { "echo" } else { "nap" };
                call(&multiplexer, &TestCallErrors, ToolCall::new(tool)).await.unwrap();
            }
            2 => {
                // The call is dropped while it runs, or before it is sent.
                let hanging = call(&multiplexer, &TestCallErrors, ToolCall::new("hang"));
                let _ = tokio::time::timeout(Duration::from_millis(i % 4), hanging).await;
            }
            3 => {
                let hanging = ToolCall::new("hang");
                let tag = hanging.id.as_u64();
                let ended = async {
                    sleep(Duration::from_millis(2)).await;
                    multiplexer.cancel(tag).await
                };
                let (outcome, ended) = tokio::join!(call(&multiplexer, &TestCallErrors, hanging), ended);
                assert!(matches!(outcome, Err(ToolError::Cancelled { .. })));
                assert!(ended);
            }
            4 => {
                let reply = call(&multiplexer, &TestCallErrors, streaming_call(100, 10_000)).await.unwrap();
                let ReplyBody::Stream(mut chunks) = reply.body else { panic!("it streams") };
                let mut count = 0;
                while let Some(chunk) = chunks.next().await {
                    assert_eq!(chunk.unwrap().data.len(), 10_000);
                    count += 1;
                    if i.is_multiple_of(4) {
                        sleep(Duration::from_millis(1)).await;
                    }
                }
                assert_eq!(count, 100);
            }
            _ => {
                let reply = call(&multiplexer, &TestCallErrors, streaming_call(1000, 10_000)).await.unwrap();
                let ReplyBody::Stream(mut chunks) = reply.body else { panic!("it streams") };
                chunks.next().await.unwrap().unwrap();
            }
        }
    };
    join_all((0..300).map(make_call)).await;
    assert_empty(&tools.0, &multiplexer).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_cancelled_repeatedly_ends_once() {
    let tools = Tools::default();
    let (batches, mut replies) = open_raw(&tools).await;
    let calls = vec![start(1, "hang"), start(2, "echo")];
    batches.send(pb::CallBatch { calls, cancels: vec![1; 1000], ..Default::default() }).await.unwrap();
    batches.send(pb::CallBatch { cancels: vec![1, 2, 1], ..Default::default() }).await.unwrap();
    // Ids must not repeat or decrease.
    let calls = vec![start(5, "nap"), start(5, "nap"), start(3, "nap"), start(0, "nap")];
    batches.send(pb::CallBatch { calls, ..Default::default() }).await.unwrap();
    drop(batches);
    let mut answered = BTreeMap::<u64, Vec<_>>::new();
    while let Some(batch) = replies.message().await.unwrap() {
        for reply in batch.replies {
            answered.entry(reply.id).or_default().push(reply.status.map(|status| Code::from(status.code)));
        }
    }
    let cancelled = answered.remove(&1).unwrap();
    assert_eq!(cancelled, [Some(Code::Cancelled)]);
    assert_eq!(tools.0.cancels.load(SeqCst), 2 - usize::from(answered[&2] == [None]));
    assert_eq!(answered[&2].len(), 1);
    assert_eq!(answered[&5], [None]);
    assert_eq!(
        (&answered[&3], &answered[&0]),
        (&vec![Some(Code::InvalidArgument)], &vec![Some(Code::InvalidArgument)])
    );
}

#[tokio::test(start_paused = true)]
async fn calls_end_even_if_their_replies_are_not_read() {
    let tools = Tools::default();
    let (batches, mut replies) = open_raw(&tools).await;
    let calls = (1..=500).map(|id| start(id, "nap")).collect();
    batches.send(pb::CallBatch { calls, ..Default::default() }).await.unwrap();
    wait_until(|| tools.0.begun.load(SeqCst) == 500 && tools.0.running.load(SeqCst) == 0).await;
    assert_eq!(tools.0.usage(), Some((0, 0, 0)));
    drop(batches);
    let mut count = 0;
    while let Some(batch) = replies.message().await.unwrap() {
        count += batch.replies.len();
    }
    assert_eq!(count, 500);
}

#[tokio::test(start_paused = true)]
async fn calls_above_the_limit_are_rejected_and_others_continue() {
    let tools = Tools::default();
    let (batches, mut replies) = open_raw(&tools).await;
    let many = MAX_CALLS as u64 + 100;
    let calls = (1..=many).map(|id| start(id, "hang")).collect();
    batches.send(pb::CallBatch { calls, ..Default::default() }).await.unwrap();
    let rejected = replies.message().await.unwrap().unwrap().replies;
    assert_eq!(rejected.len(), 100);
    let exhausted = i32::from(Code::ResourceExhausted);
    assert!(
        rejected.iter().all(|reply| reply.status.as_ref().is_some_and(|status| status.code == exhausted))
    );
    assert_eq!(tools.0.running.load(SeqCst), MAX_CALLS);
    // Accepts calls again after one of them has ended.
    batches.send(pb::CallBatch { cancels: vec![1], ..Default::default() }).await.unwrap();
    assert_eq!(replies.message().await.unwrap().unwrap().replies[0].id, 1);
    batches.send(pb::CallBatch { calls: vec![start(many + 1, "echo")], ..Default::default() }).await.unwrap();
    let replies = replies.message().await.unwrap().unwrap().replies;
    assert_eq!((replies[0].id, replies[0].status.as_ref()), (many + 1, None));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_above_the_limit_of_a_message_fails_its_call_alone() {
    let tools = Tools::default();
    let (multiplexer, incoming) = open(&tools).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(incoming);
    let reply = call(&multiplexer, &TestCallErrors, streaming_call(1, MAX_ITEM_BYTES + 1)).await.unwrap();
    let ReplyBody::Stream(mut chunks) = reply.body else { panic!("it streams") };
    let error = chunks.next().await.expect("it fails").unwrap_err();
    assert!(error.to_string().contains(&MAX_ITEM_BYTES.to_string()), "{error}");
    assert!(chunks.next().await.is_none());
    drop(chunks);
    let mut echo = multiplexer.start(start(0, "echo"), 0);
    assert!(matches!(echo.event().await, CallEvent::End(CallEnd::Reply(_))));
    assert_empty(&tools.0, &multiplexer).await;
}
