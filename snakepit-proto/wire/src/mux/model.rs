//! A model test from [`call`] to [`MuxCalls`] and back, with random calls, late polls, cancellations, recalls, and a cut at any
//! point. Each call ends exactly once with the outcome of its tool, and streams have no gaps. Both ends are empty
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

use super::{CallErrors, CallInfo, LostCall, MuxCalls, MuxService, call};
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
    Work(usize, ToolAction),
    /// A cancelled tool has stopped.
    Confirm(usize),
    /// The transport of the callee takes a message.
    Answer,
    /// A message arrives at the caller.
    Deliver,
}

/// An action of a tool. Sizes are in bytes.
#[derive(Debug, Clone, Copy)]
enum ToolAction {
    Chunk(usize),
    Return(usize),
    Fail,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..2000_usize, 1 => 100_000..1_500_000_usize]
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<usize>;
    let action = prop_oneof![
        3 => size().prop_map(ToolAction::Chunk),
        2 => size().prop_map(ToolAction::Return),
        1 => Just(ToolAction::Fail),
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
        12 => (pick(), action).prop_map(|(pick, action)| Step::Work(pick, action)),
        2 => pick().prop_map(Step::Confirm),
        5 => Just(Step::Answer),
        6 => Just(Step::Deliver),
    ]
}

/// The tools, controlled by the run.
#[derive(Debug, Clone, Default)]
struct Tools(Arc<Mutex<HashMap<u64, ToolState>>>);

/// The state of one call's tool.
#[derive(Debug, Default)]
struct ToolState {
    /// Whether the tool runs.
    is_running: bool,
    streams: bool,
    /// Whether the tool acted, so that the call cannot be recalled.
    has_begun: bool,
    /// Data of chunks that were not polled yet.
    chunks: VecDeque<Bytes>,
    /// The number of chunks so far.
    count: u64,
    end: Option<ToolEnd>,
    is_cancelled: bool,
    is_confirmed: bool,
    wakers: Vec<Waker>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ToolEnd {
    Returned(Bytes),
    Failed,
    Recalled,
}

/// Data that depends on its call, its index in the stream, and the position within.
fn data(call: u64, index: u64, bytes: usize) -> Bytes {
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        let tag = (call + 7 * index + data.len() as u64 / 65_536) % 251;
        data.resize(bytes.min(data.len() + 65_536), u8::try_from(tag).unwrap());
    }
    data.into()
}

/// Marks the tool of a call as running until it is dropped.
struct RunGuard(Tools, u64);

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.0.lock().entry(self.1).or_default().is_running = false;
    }
}

impl Tools {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, ToolState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state of a tool and wakes the tasks that wait for it.
    fn change(&self, call: u64, change: impl FnOnce(&mut ToolState)) {
        let wakers = {
            let mut states = self.lock();
            let work = states.entry(call).or_default();
            change(work);
            std::mem::take(&mut work.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn poll<T>(
        &self,
        call: u64,
        cx: &Context<'_>,
        check: impl FnOnce(&mut ToolState) -> Option<T>,
    ) -> Poll<T> {
        let mut states = self.lock();
        let work = states.entry(call).or_default();
        match check(work) {
            Some(result) => Poll::Ready(result),
            None => {
                work.wakers.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn chunks(self, call: u64, guard: RunGuard) -> ChunkStream {
        let mut guard = Some(guard);
        Box::pin(stream::poll_fn(move |cx| {
            assert!(guard.is_some(), "call {call} is polled after its end");
            let next = self.poll(call, cx, |work| match (work.chunks.pop_front(), &work.end) {
                (Some(data), _) => Some(Some(Ok(Chunk { data, ..Chunk::default() }))),
                (None, Some(ToolEnd::Returned(_))) => Some(None),
                (None, Some(_)) => Some(Some(Err(failure()))),
                (None, None) => None,
            });
            if matches!(next, Poll::Ready(None | Some(Err(_)))) {
                guard = None;
            }
            next
        }))
    }
}

fn failure() -> ToolError {
    ToolError::Failed(Box::new(ToolFailure::new("", "boom")))
}

#[async_trait]
impl ToolHandler for Tools {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let id = call.id.as_u64();
        let streams = call.mode == CallMode::Streaming;
        self.change(id, |work| {
            assert!(!work.is_running && !work.has_begun, "call {id} runs twice");
            (work.is_running, work.streams) = (true, streams);
        });
        let guard = RunGuard(self.clone(), id);
        let end = std::future::poll_fn(|cx| {
            self.poll(id, cx, |work| {
                let opens = streams && work.has_begun && work.end != Some(ToolEnd::Recalled);
                if opens { Some(None) } else { work.end.clone().map(Some) }
            })
        });
        match end.await {
            None => Ok(ToolReply::stream(self.clone().chunks(id, guard))),
            Some(ToolEnd::Returned(data)) => Ok(ToolReply::value(Payload::bytes(data))),
            Some(ToolEnd::Failed) => Err(failure()),
            Some(ToolEnd::Recalled) => Err(ToolError::recalled(call.tool.to_string())),
        }
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let id = call.as_u64();
        self.change(id, |work| work.is_cancelled = true);
        std::future::poll_fn(|cx| self.poll(id, cx, |work| work.is_confirmed.then_some(()))).await;
        Ok(())
    }

    fn recall(&self, call: CallId) {
        self.change(call.as_u64(), |work| {
            // If the tool does not run yet, the call continues.
            if work.is_running && !work.has_begun {
                work.has_begun = true;
                work.end = Some(ToolEnd::Recalled);
            }
        });
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
        Status::internal(error.to_string())
    }
}

/// The callee, for the errors of the caller.
#[derive(Debug, Clone, Copy)]
struct TestCallErrors;

#[async_trait]
impl CallErrors for TestCallErrors {
    async fn rejection_error(&self, info: &CallInfo, status: Status) -> ToolError {
        assert_eq!(status.code(), Code::Cancelled, "{status:?}");
        ToolError::cancelled(info.tool.to_string())
    }

    async fn lost_call(&self, _: &CallInfo, _: u64, _: Status) -> LostCall {
        LostCall { stored_reply: None, error: lost(true) }
    }

    async fn unsent_error(&self, _: &CallInfo, _: Status) -> ToolError {
        lost(false)
    }

    fn failure_error(&self, _: &CallInfo, failure: ToolFailure) -> ToolError {
        ToolError::Failed(Box::new(failure))
    }

    fn bad_value_error(&self, error: &WireError) -> ToolError {
        panic!("{error}")
    }

    fn protocol_error(&self, violation: &str) -> ToolError {
        panic!("{violation}")
    }

    fn worker(&self, _: &str) -> Option<Arc<str>> {
        None
    }
}

fn lost(may_have_run: bool) -> ToolError {
    let (worker, reason) = ("w".to_owned(), "cut".to_owned());
    ToolError::worker_lost(worker, reason).with_may_have_run(may_have_run)
}

proptest! {
    #[test]
    fn each_call_ends_once_with_the_outcome_of_its_tool(
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
