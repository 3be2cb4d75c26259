//! A model test from [`call`] to [`MuxCalls`] and back: random calls, late polls, cancellations, recalls, and a cut at
//! any point. Each call ends exactly once with the outcome of its tool, and streams have no gaps. Both ends are empty
//! afterwards.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use proptest::prelude::*;
use snakepit_proto::{
    mux::{Calls, Frames, Multiplexer, Replies, ReplyBatches},
    pb,
};
use snakepit_registry::{
    CallId, CallMode, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolFailure, ToolHandler, ToolReply,
};
use snakepit_session::Payload;
use tonic::{Code, Status};

use super::{CallInfo, Callee, LostCall, MuxCalls, MuxService, call};
use crate::WireError;

mod run;

/// One step of a run. Numbers select an existing call.
#[derive(Debug, Clone, Copy)]
enum Step {
    Start {
        streams: bool,
    },
    /// The caller polls a call.
    Poll(usize),
    Drop(usize),
    Recall(usize),
    /// Cancels a call and starts waiting for its end.
    Cancel(usize),
    /// The transport of the caller takes a message.
    Send,
    /// A message arrives at the callee.
    Receive,
    /// The task of the callee is polled.
    Serve,
    /// A tool makes progress.
    Work(usize, Did),
    /// A cancelled tool has stopped.
    Confirm(usize),
    /// The transport of the callee takes a message.
    Answer,
    /// A message arrives at the caller.
    Deliver,
}

/// An action of a tool. Sizes are in bytes.
#[derive(Debug, Clone, Copy)]
enum Did {
    Chunk(usize),
    Return(usize),
    Fail,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..2000_usize, 1 => 100_000..1_500_000_usize]
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<usize>;
    let did = prop_oneof![
        3 => size().prop_map(Did::Chunk),
        2 => size().prop_map(Did::Return),
        1 => Just(Did::Fail),
    ];
    prop_oneof![
        5 => any::<bool>().prop_map(|streams| Step::Start { streams }),
        6 => pick().prop_map(Step::Poll),
        1 => pick().prop_map(Step::Drop),
        1 => pick().prop_map(Step::Recall),
        1 => pick().prop_map(Step::Cancel),
        4 => Just(Step::Send),
        5 => Just(Step::Receive),
        6 => Just(Step::Serve),
        12 => (pick(), did).prop_map(|(pick, did)| Step::Work(pick, did)),
        2 => pick().prop_map(Step::Confirm),
        5 => Just(Step::Answer),
        6 => Just(Step::Deliver),
    ]
}

/// The tools, controlled by the run.
#[derive(Debug, Clone, Default)]
struct Tools(Arc<Mutex<HashMap<u64, Work>>>);

/// The state of the tool of one call.
#[derive(Debug, Default)]
struct Work {
    /// Whether the tool runs.
    running: bool,
    streams: bool,
    /// Whether the tool acted, so that the call cannot be recalled.
    begun: bool,
    /// Data of chunks that were not polled yet.
    chunks: VecDeque<Bytes>,
    /// The number of chunks so far.
    count: u64,
    end: Option<Ended>,
    cancelled: bool,
    confirmed: bool,
    wakers: Vec<Waker>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ended {
    Returned(Bytes),
    Failed,
    Recalled,
}

/// Data that depends on its call, its index in the stream, and the position within.
fn data(call: u64, place: u64, bytes: usize) -> Bytes {
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        let tag = (call + 7 * place + data.len() as u64 / 65_536) % 251;
        data.resize(bytes.min(data.len() + 65_536), u8::try_from(tag).unwrap());
    }
    data.into()
}

/// Marks the tool of a call as running until it is dropped.
struct Runs(Tools, u64);

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.lock().entry(self.1).or_default().running = false;
    }
}

impl Tools {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Work>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state of a tool and wakes the tasks that wait for it.
    fn change(&self, call: u64, change: impl FnOnce(&mut Work)) {
        let wakers = {
            let mut all = self.lock();
            let work = all.entry(call).or_default();
            change(work);
            std::mem::take(&mut work.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn poll<T>(&self, call: u64, cx: &Context<'_>, look: impl FnOnce(&mut Work) -> Option<T>) -> Poll<T> {
        let mut all = self.lock();
        let work = all.entry(call).or_default();
        match look(work) {
            Some(found) => Poll::Ready(found),
            None => {
                work.wakers.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn chunks(self, call: u64, runs: Runs) -> ChunkStream {
        let mut open = Some(runs);
        Box::pin(stream::poll_fn(move |cx| {
            assert!(open.is_some(), "call {call} is polled after its end");
            let next = self.poll(call, cx, |work| match (work.chunks.pop_front(), &work.end) {
                (Some(data), _) => Some(Some(Ok(Chunk { data, metadata: Default::default() }))),
                (None, Some(Ended::Returned(_))) => Some(None),
                (None, Some(_)) => Some(Some(Err(failed()))),
                (None, None) => None,
            });
            if matches!(next, Poll::Ready(None | Some(Err(_)))) {
                open = None;
            }
            next
        }))
    }
}

fn failed() -> ToolError {
    ToolError::Failed(Box::new(ToolFailure { message: "boom".to_owned(), ..ToolFailure::default() }))
}

#[async_trait]
impl ToolHandler for Tools {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let id = call.id.as_u64();
        let streams = call.mode == CallMode::Streaming;
        self.change(id, |work| {
            assert!(!work.running && !work.begun, "call {id} runs twice");
            (work.running, work.streams) = (true, streams);
        });
        let runs = Runs(self.clone(), id);
        let end = std::future::poll_fn(|cx| {
            self.poll(id, cx, |work| {
                let opens = streams && work.begun && work.end != Some(Ended::Recalled);
                if opens { Some(None) } else { work.end.clone().map(Some) }
            })
        });
        match end.await {
            None => Ok(ToolReply::stream(self.clone().chunks(id, runs))),
            Some(Ended::Returned(data)) => Ok(ToolReply::value(Payload::bytes(data))),
            Some(Ended::Failed) => Err(failed()),
            Some(Ended::Recalled) => Err(ToolError::Recalled { tool: call.tool.to_string() }),
        }
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let id = call.as_u64();
        self.change(id, |work| work.cancelled = true);
        std::future::poll_fn(|cx| self.poll(id, cx, |work| work.confirmed.then_some(()))).await;
        Ok(())
    }

    fn recall(&self, call: CallId) {
        self.change(call.as_u64(), |work| {
            // A call whose tool does not run yet continues.
            if work.running && !work.begun {
                work.begun = true;
                work.end = Some(Ended::Recalled);
            }
        });
    }
}

struct Own(Tools);

impl MuxService for Own {
    type Handler = Tools;

    fn handler(&self) -> &Tools {
        &self.0
    }

    fn call_id(&self, id: u64) -> CallId {
        CallId::from_u64(id)
    }

    fn status(&self, error: ToolError) -> Status {
        Status::internal(error.to_string())
    }
}

/// The callee, for the errors of the caller.
#[derive(Debug, Clone, Copy)]
struct Other;

#[async_trait]
impl Callee for Other {
    async fn rejected(&self, info: &CallInfo, status: Status) -> ToolError {
        assert_eq!(status.code(), Code::Cancelled, "{status:?}");
        ToolError::Cancelled { tool: info.tool.to_string() }
    }

    async fn broken(&self, _: &CallInfo, _: u64, _: Status) -> LostCall {
        LostCall { answer: None, error: lost(true) }
    }

    async fn unsent(&self, _: &CallInfo, _: Status) -> ToolError {
        lost(false)
    }

    fn failed(&self, _: &CallInfo, failure: ToolFailure) -> ToolError {
        ToolError::Failed(Box::new(failure))
    }

    fn bad_value(&self, error: &WireError) -> ToolError {
        panic!("{error}")
    }

    fn protocol_error(&self, what: &str) -> ToolError {
        panic!("{what}")
    }

    fn worker(&self, _: &str) -> Option<Arc<str>> {
        None
    }
}

fn lost(delivered: bool) -> ToolError {
    let (worker, reason) = ("w".to_owned(), "cut".to_owned());
    ToolError::WorkerLost { worker, reason, delivered, output_lines: Vec::new() }
}

proptest! {
    #[test]
    fn each_call_ends_once_with_what_its_tool_did(
        steps in proptest::collection::vec(step(), 0..200),
        is_cut in any::<bool>(),
        parts in any::<bool>(),
    ) {
        let mut run = run::Run::new(parts);
        steps.into_iter().for_each(|step| run.take(step));
        if is_cut {
            run.cut();
        } else {
            run.settle();
        }
    }
}
