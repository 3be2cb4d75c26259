//! A model test of both ends of a stream, frame by frame: random calls, late polls, cancellations, recalls, credits,
//! and a cut at any point. Each call ends once, by the end that arrived first, after all items that arrived before.
//! Both ends are empty afterwards.

use std::{pin::Pin, task::Context};

use futures_core::Stream;
use proptest::prelude::*;

use super::*;
use crate::{
    mux::{BATCH_BYTES, Replies, chunk_cost},
    pb::{CallArgument, CallValue},
};

/// One step of a run. Numbers select an existing call.
#[derive(Debug, Clone, Copy)]
enum Step {
    Start {
        tag: u64,
        bytes: usize,
    },
    Poll(usize),
    Drop(usize),
    Grant(usize),
    Recall(u64),
    /// Cancels the calls of a tag and starts waiting for their ends.
    End(u64),
    /// Cancels a call twice.
    Cancel(usize),
    /// Closes the stream for new calls.
    Close,
    /// The transport of the caller takes a message.
    Send,
    /// A message arrives at the callee.
    Receive,
    /// The callee begins or continues a call.
    Work {
        pick: usize,
        how: Work,
    },
    /// The transport of the callee takes a message.
    Answer,
    /// A message arrives at the caller.
    Deliver,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Open,
    Chunks { count: usize, bytes: usize },
    Reply { bytes: usize },
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..2000_usize, 1 => 100_000..3 * BATCH_BYTES / 2]
}

fn step() -> impl Strategy<Value = Step> {
    let work = prop_oneof![
        Just(Work::Open),
        (0..4_usize, size()).prop_map(|(count, bytes)| Work::Chunks { count, bytes }),
        size().prop_map(|bytes| Work::Reply { bytes }),
    ];
    prop_oneof![
        6 => (0..4_u64, size()).prop_map(|(tag, bytes)| Step::Start { tag, bytes }),
        6 => any::<usize>().prop_map(Step::Poll),
        2 => any::<usize>().prop_map(Step::Drop),
        1 => any::<usize>().prop_map(Step::Grant),
        1 => (0..4_u64).prop_map(Step::Recall),
        1 => (0..4_u64).prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => Just(Step::Close),
        4 => Just(Step::Send),
        5 => Just(Step::Receive),
        12 => (any::<usize>(), work).prop_map(|(pick, how)| Step::Work { pick, how }),
        4 => Just(Step::Answer),
        6 => Just(Step::Deliver),
    ]
}

/// The expected state of a call at its caller.
#[derive(Debug, Default)]
struct ExpectedCall {
    /// Numbers of the chunks that arrived but were not polled yet.
    chunks: Vec<u64>,
    end: Option<ExpectedEnd>,
}

/// An end, identified by the number of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpectedEnd {
    Reply(u64),
    Recalled,
    Broken,
    Unsent,
}

/// A call at the callee.
#[derive(Debug, Default)]
struct ServedCall {
    begun: bool,
    streams: bool,
    ended: bool,
}

struct Run {
    multiplexer: Option<Multiplexer>,
    shared: Arc<SharedCalls>,
    outgoing: Outgoing,
    calls: Vec<(Call, u64)>,
    expected: HashMap<u64, ExpectedCall>,
    to_callee: Vec<CallBatch>,
    served: HashMap<u64, ServedCall>,
    last_served: u64,
    replies: Replies,
    to_caller: Vec<ReplyBatch>,
    number: u64,
    /// The data of chunks and replies, by their numbers.
    sent: HashMap<u64, bytes::Bytes>,
    /// Whether the callee supports parts.
    parts: bool,
    received: usize,
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Run {
    fn new(parts: bool) -> Self {
        let shared = Arc::new(SharedCalls::new());
        Self {
            multiplexer: Some(Multiplexer { owner: Arc::new(CloseOnDrop(Arc::clone(&shared))) }),
            outgoing: Outgoing(Arc::clone(&shared)),
            shared,
            calls: Vec::new(),
            expected: HashMap::new(),
            to_callee: Vec::new(),
            served: HashMap::new(),
            last_served: 0,
            replies: Replies::new(),
            to_caller: Vec::new(),
            number: 0,
            sent: HashMap::new(),
            parts,
            received: 0,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Start { tag, bytes } => self.start(tag, bytes),
            Step::Poll(pick) if !self.calls.is_empty() => {
                let pick = pick % self.calls.len();
                self.poll(pick);
            }
            Step::Drop(pick) if !self.calls.is_empty() => {
                let (call, _) = self.calls.swap_remove(pick % self.calls.len());
                self.expected.remove(&call.id());
                drop(call);
            }
            Step::Grant(pick) if !self.calls.is_empty() => self.calls[pick % self.calls.len()].0.grant(10),
            Step::Recall(tag) => {
                if let Some(multiplexer) = &self.multiplexer {
                    multiplexer.recall(tag);
                }
            }
            Step::End(tag) => self.end(tag),
            Step::Cancel(pick) if !self.calls.is_empty() => self.cancel(pick % self.calls.len()),
            Step::Close => drop(self.multiplexer.take()),
            Step::Send => drop(self.send()),
            Step::Receive if !self.to_callee.is_empty() => {
                let batch = self.to_callee.remove(0);
                self.receive(batch);
            }
            Step::Work { pick, how } => self.work(pick, how),
            Step::Answer => drop(self.answer()),
            Step::Deliver if !self.to_caller.is_empty() => {
                let batch = self.to_caller.remove(0);
                self.deliver(batch);
            }
            _ => {}
        }
    }

    fn start(&mut self, tag: u64, bytes: usize) {
        let Some(multiplexer) = &self.multiplexer else { return };
        let value = CallValue { binary: Some(vec![0; bytes].into()), ..CallValue::default() };
        let arguments = vec![CallArgument { name: "x".to_owned(), value: Some(value) }];
        let call = multiplexer.start(CallStart { arguments, ..CallStart::default() }, tag);
        self.expected.insert(call.id(), ExpectedCall::default());
        self.calls.push((call, tag));
    }

    /// Polls a call once. Items must be in order of arrival, with the end last.
    fn poll(&mut self, pick: usize) {
        let (call, _) = &mut self.calls[pick];
        let id = call.id();
        let expected = self.expected.get_mut(&id).unwrap();
        match call.poll_event(&mut noop()) {
            Poll::Pending => {
                assert!(
                    expected.chunks.is_empty() && expected.end.is_none(),
                    "call {id} is pending: {expected:?}"
                );
            }
            Poll::Ready(CallEvent::Opened(opened)) => assert_eq!(opened.id, id),
            Poll::Ready(CallEvent::Reports(reports)) => panic!("call {id} asked for no reports: {reports:?}"),
            Poll::Ready(CallEvent::Chunks(chunks)) => {
                let numbers: Vec<_> = chunks.iter().map(number_of).collect();
                for chunk in &chunks {
                    assert_eq!((&chunk.data, chunk.sent_in_parts), (&self.sent[&number_of(chunk)], 0));
                }
                assert_eq!(numbers, std::mem::take(&mut expected.chunks));
            }
            Poll::Ready(CallEvent::End(end)) => {
                assert!(expected.chunks.is_empty(), "call {id} ended before its chunks");
                let end = match end {
                    CallEnd::Reply(reply) => {
                        let value = reply.value.unwrap();
                        let number = reply.execution_time_ns;
                        assert_eq!((value.binary.as_ref(), value.sent_in_parts), (self.sent.get(&number), 0));
                        ExpectedEnd::Reply(number)
                    }
                    CallEnd::Recalled => ExpectedEnd::Recalled,
                    CallEnd::Broken(_) => ExpectedEnd::Broken,
                    CallEnd::Unsent(..) => ExpectedEnd::Unsent,
                };
                assert_eq!(Some(end), expected.end, "call {id}");
                self.calls.swap_remove(pick);
                self.expected.remove(&id);
            }
        }
    }

    fn cancel(&mut self, pick: usize) {
        let id = self.calls[pick].0.id();
        if self.is_unsent(id) {
            self.expected.get_mut(&id).unwrap().end.get_or_insert(ExpectedEnd::Recalled);
        }
        (0..2).for_each(|_| self.shared.update(|state, wakers| state.cancel(id, wakers)));
        self.check_outbox();
    }

    fn is_unsent(&self, id: u64) -> bool {
        self.shared.lock().outbox.calls.iter().any(|call| call.id == id)
    }

    fn check_outbox(&self) {
        let state = self.shared.lock();
        let live = state.outbox.calls.iter().filter(|call| !state.withdrawn.contains(&call.id));
        assert_eq!(state.outbox_bytes, live.map(call_size).sum::<usize>());
    }

    /// Cancelled calls that were not sent end immediately.
    fn end(&mut self, tag: u64) {
        let Some(multiplexer) = self.multiplexer.clone() else { return };
        let unsent: Vec<u64> = self.shared.lock().outbox.calls.iter().map(|call| call.id).collect();
        for (call, of) in &self.calls {
            if *of == tag && unsent.contains(&call.id()) {
                self.expected.get_mut(&call.id()).unwrap().end.get_or_insert(ExpectedEnd::Recalled);
            }
        }
        let ended = Box::pin(multiplexer.cancel(tag)).as_mut().poll(&mut noop());
        let runs = self.shared.lock().calls.values().any(|entry| entry.tag == tag && entry.end.is_none());
        assert_eq!(ended, if runs { Poll::Pending } else { Poll::Ready(true) });
    }

    /// Returns whether there was a message.
    fn send(&mut self) -> bool {
        let Poll::Ready(Some(batch)) = Pin::new(&mut self.outgoing).poll_next(&mut noop()) else {
            return false;
        };
        let bytes: usize = batch.calls.iter().map(call_size).sum();
        assert!(batch.calls.len() == 1 || bytes <= BATCH_BYTES);
        self.to_callee.push(batch);
        true
    }

    fn receive(&mut self, batch: CallBatch) {
        assert_eq!(batch.takes_parts, self.received == 0, "set in the first message");
        self.received += 1;
        if batch.takes_parts && self.parts {
            self.replies.enable_parts();
        }
        for call in batch.calls {
            assert!(call.id > self.last_served, "ids rise");
            assert!(!call.arguments.is_empty(), "a withdrawn call was sent");
            self.last_served = call.id;
            self.served.insert(call.id, ServedCall::default());
        }
        for id in &batch.cancels {
            assert!(self.served.contains_key(id), "call {id} is unknown");
        }
        for id in batch.cancels {
            if !self.served[&id].ended {
                self.reply(id, 0);
            }
        }
        for id in batch.recalls {
            // A recall of a call that was cancelled before it was sent has no effect.
            let Some(served) = self.served.get_mut(&id) else { continue };
            if !served.begun && !served.ended {
                served.ended = true;
                self.replies.send_recalled(id);
            }
        }
    }

    fn work(&mut self, pick: usize, how: Work) {
        let mut open: Vec<u64> =
            self.served.iter().filter(|(_, served)| !served.ended).map(|(id, _)| *id).collect();
        open.sort_unstable();
        if open.is_empty() {
            return;
        }
        let id = open[pick % open.len()];
        let served = self.served.get_mut(&id).unwrap();
        match how {
            Work::Open if !served.begun => {
                (served.begun, served.streams) = (true, true);
                self.replies.send_opened(CallOpened { id, ..CallOpened::default() });
            }
            Work::Chunks { count, bytes } if served.streams => {
                let chunk = |_| {
                    let (number, data) = self.data(bytes);
                    let metadata = [(number.to_string(), String::new())].into();
                    CallChunk { data, metadata, ..CallChunk::default() }
                };
                let chunks = (0..count).map(chunk).collect();
                self.replies.send_chunks(id, chunks);
            }
            Work::Reply { bytes } => self.reply(id, bytes),
            _ => {}
        }
    }

    fn reply(&mut self, id: u64, bytes: usize) {
        let served = self.served.get_mut(&id).unwrap();
        (served.begun, served.ended) = (true, true);
        let (execution_time_ns, data) = self.data(bytes);
        let value = CallValue { binary: Some(data), ..CallValue::default() };
        self.replies.send_reply(CallReply {
            id,
            value: Some(value),
            execution_time_ns,
            ..CallReply::default()
        });
    }

    /// Data that depends on its number, and on the position within.
    fn data(&mut self, bytes: usize) -> (u64, bytes::Bytes) {
        self.number += 1;
        let mut data = Vec::with_capacity(bytes);
        while data.len() < bytes {
            let tag = (self.number + data.len() as u64 / 65_536) % 251;
            data.resize(bytes.min(data.len() + 65_536), u8::try_from(tag).unwrap());
        }
        let data = bytes::Bytes::from(data);
        self.sent.insert(self.number, data.clone());
        (self.number, data)
    }

    /// Returns whether there was a message.
    fn answer(&mut self) -> bool {
        let mut body = std::mem::ManuallyDrop::new(self.replies.body());
        let Poll::Ready(Some(Ok(batch))) = Pin::new(&mut *body).poll_next(&mut noop()) else { return false };
        let chunks = batch.chunks.iter().flat_map(|run| &run.chunks);
        let bytes = chunks.clone().map(|chunk| usize::try_from(chunk_cost(chunk)).unwrap()).sum::<usize>()
            + batch.replies.iter().map(crate::mux::reply_size).sum::<usize>()
            + batch.parts.iter().map(|part| part.data.len()).sum::<usize>();
        let items = chunks.count() + batch.replies.len();
        assert!(items == 1 && batch.parts.is_empty() || bytes <= BATCH_BYTES, "{bytes}");
        assert!(!self.parts || bytes <= BATCH_BYTES, "{bytes}");
        self.to_caller.push(batch);
        true
    }

    fn deliver(&mut self, batch: ReplyBatch) {
        for run in &batch.chunks {
            if let Some(expected) = self.expected.get_mut(&run.id).filter(|expected| expected.end.is_none()) {
                expected.chunks.extend(run.chunks.iter().map(number_of));
            }
        }
        for reply in &batch.replies {
            if let Some(expected) = self.expected.get_mut(&reply.id) {
                expected.end.get_or_insert(ExpectedEnd::Reply(reply.execution_time_ns));
            }
        }
        for id in &batch.recalled {
            if let Some(expected) = self.expected.get_mut(id) {
                expected.end.get_or_insert(ExpectedEnd::Recalled);
            }
        }
        self.shared.update(|state, wakers| state.deliver(batch, wakers)).unwrap();
    }

    /// Breaks the stream and loses the messages in transit.
    fn cut(&mut self) {
        let unsent: Vec<u64> = self.shared.lock().outbox.calls.iter().map(|call| call.id).collect();
        for (id, expected) in &mut self.expected {
            expected.end.get_or_insert(if unsent.contains(id) {
                ExpectedEnd::Unsent
            } else {
                ExpectedEnd::Broken
            });
        }
        self.shared.update(|state, wakers| state.fail(&Status::unavailable("cut"), wakers));
        drop(self.replies.body());
    }

    /// Delivers all messages and ends all calls.
    fn settle(&mut self) {
        drop(self.multiplexer.take());
        loop {
            let mut moved = self.send();
            moved |= !self.to_callee.is_empty();
            std::mem::take(&mut self.to_callee).into_iter().for_each(|batch| self.receive(batch));
            let open: Vec<u64> =
                self.served.iter().filter(|(_, served)| !served.ended).map(|(id, _)| *id).collect();
            open.into_iter().for_each(|id| self.reply(id, 0));
            moved |= self.answer();
            std::mem::take(&mut self.to_caller).into_iter().for_each(|batch| self.deliver(batch));
            if !moved {
                break;
            }
        }
        let sent_all = Pin::new(&mut self.outgoing).poll_next(&mut noop());
        assert!(matches!(sent_all, Poll::Ready(None)), "the sending half ends with the last call");
    }

    /// Checks that each call ends and that both ends are empty.
    fn check(mut self) {
        while let Some(last) = self.calls.len().checked_sub(1) {
            let before = (self.calls.len(), self.expected[&self.calls[last].0.id()].chunks.len());
            self.poll(last);
            // `Opened` may come first.
            let again = self.calls.get(last).map(|(call, _)| self.expected[&call.id()].chunks.len());
            if again == Some(before.1) && before.1 == 0 {
                self.poll(last);
            }
        }
        let state = self.shared.lock();
        assert!(state.calls.is_empty(), "{:?} remain", state.calls.keys());
        assert_eq!(
            (state.open_count, state.outbox_bytes, state.withdrawn.len(), state.tag_waiters.len()),
            (0, 0, 0, 0)
        );
        assert!(self.replies.is_empty());
    }
}

fn number_of(chunk: &CallChunk) -> u64 {
    chunk.metadata.first_key_value().unwrap().0.parse().unwrap()
}

proptest! {
    #[test]
    fn each_call_ends_once_with_the_end_that_arrived_first(
        steps in proptest::collection::vec(step(), 0..150),
        is_cut in any::<bool>(),
        parts in any::<bool>(),
    ) {
        let mut run = Run::new(parts);
        steps.into_iter().for_each(|step| run.take(step));
        if is_cut {
            run.cut();
        } else {
            run.settle();
        }
        run.check();
    }
}
