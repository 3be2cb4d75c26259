//! The caller, frame by frame, without a stream.

use std::{
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Wake},
};

use futures_core::Stream;

use super::*;
use crate::pb::{CallArgument, CallCredit, CallStatus, CallValue, ToolFailure};

#[derive(Default)]
struct WakeCount(AtomicUsize);

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl WakeCount {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn multiplexer() -> (Multiplexer, Arc<SharedCalls>) {
    let shared = Arc::new(SharedCalls::new());
    (Multiplexer { owner: Arc::new(CloseOnDrop(Arc::clone(&shared))) }, shared)
}

fn call_of(bytes: usize) -> CallStart {
    let value = CallValue { binary: Some(vec![0; bytes].into()), ..CallValue::default() };
    let arguments = vec![CallArgument { name: "x".to_owned(), value: Some(value) }];
    CallStart { arguments, ..CallStart::default() }
}

fn ids(batch: &CallBatch) -> Vec<u64> {
    batch.calls.iter().map(|call| call.id).collect()
}

#[test]
fn dropping_an_unsent_call_wakes_the_tasks_that_wait_for_its_end() {
    let (multiplexer, shared) = multiplexer();
    let sent = multiplexer.start(CallStart::default(), 7);
    shared.lock().take_batch().unwrap();
    let mut ended = Box::pin(multiplexer.cancel(7));
    let count = Arc::new(WakeCount::default());
    let waker = Waker::from(Arc::clone(&count));
    let cx = &mut Context::from_waker(&waker);
    assert!(ended.as_mut().poll(cx).is_pending());
    // The sent call ends while another one with the same tag is unsent.
    let mut unsent = multiplexer.start(CallStart::default(), 7);
    assert!(unsent.poll_event(cx).is_pending());
    let reply = CallReply { id: sent.id(), ..CallReply::default() };
    shared.update(|state, wakers| {
        state.deliver(ReplyBatch { replies: vec![reply], ..ReplyBatch::default() }, wakers).unwrap();
    });
    assert!(ended.as_mut().poll(cx).is_pending());
    let before = count.get();
    drop(unsent);
    assert_eq!(count.get(), before + 1);
    assert_eq!(ended.as_mut().poll(cx), Poll::Ready(true));
}

#[test]
fn removing_an_unsent_call_wakes_its_task() {
    let (multiplexer, _) = multiplexer();
    let mut call = multiplexer.start(CallStart::default(), 7);
    let count = Arc::new(WakeCount::default());
    let waker = Waker::from(Arc::clone(&count));
    let cx = &mut Context::from_waker(&waker);
    assert!(call.poll_event(cx).is_pending());
    let mut ended = Box::pin(multiplexer.cancel(7));
    assert_eq!(ended.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(true));
    assert_eq!(count.get(), 1);
    assert!(matches!(call.poll_event(cx), Poll::Ready(CallEvent::End(CallEnd::Recalled))));
}

#[test]
fn a_call_is_cancelled_once() {
    let (multiplexer, shared) = multiplexer();
    let call = multiplexer.start(CallStart::default(), 7);
    shared.lock().take_batch().unwrap();
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(Box::pin(multiplexer.cancel(7)).as_mut().poll(cx).is_pending());
    assert!(Box::pin(multiplexer.cancel(7)).as_mut().poll(cx).is_pending());
    drop(call);
    assert_eq!(shared.lock().take_batch().unwrap().cancels, [1]);
    assert!(shared.lock().take_batch().is_none());
}

#[test]
fn only_frames_of_unsent_calls_wait_for_them() {
    let (multiplexer, shared) = multiplexer();
    let first = multiplexer.start(CallStart::default(), 1);
    shared.lock().take_batch().unwrap();
    let large = [(); 3].map(|()| multiplexer.start(call_of(BATCH_BYTES), 2));
    first.grant(10);
    large[2].grant(20);
    multiplexer.recall(1);
    multiplexer.recall(2);
    drop(first);
    let batch = shared.lock().take_batch().unwrap();
    assert_eq!((ids(&batch), batch.cancels), (vec![2], vec![1]));
    let mut recalls = batch.recalls;
    recalls.sort_unstable();
    assert_eq!(recalls, [1, 2]);
    assert_eq!(batch.credits, [CallCredit { id: 1, bytes: 10 }]);
    let batch = shared.lock().take_batch().unwrap();
    assert_eq!((ids(&batch), batch.credits, batch.recalls), (vec![3], vec![], vec![3]));
    let batch = shared.lock().take_batch().unwrap();
    assert_eq!((ids(&batch), batch.credits.len(), batch.recalls), (vec![4], 1, vec![4]));
    assert!(shared.lock().take_batch().is_none());
    assert_eq!(shared.lock().outbox_bytes, 0);
}

#[test]
fn a_call_above_the_limit_of_a_message_fails_alone() {
    let (multiplexer, shared) = multiplexer();
    let mut call = multiplexer.start(call_of(MAX_ITEM_BYTES), 1);
    assert!(shared.lock().take_batch().is_none());
    let event = call.poll_event(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(CallEvent::End(CallEnd::Reply(CallReply { status: Some(status), .. }))) = event else {
        panic!("{event:?}")
    };
    assert!(status.message.contains("the limit is "), "{}", status.message);
    assert!(shared.lock().calls.is_empty());
}

#[test]
fn sizes_are_never_below_the_encoded_size() {
    use prost::Message;
    let metadata = (0..10).map(|i| (i.to_string(), "x".repeat(i * 100))).collect();
    let start = CallStart {
        id: u64::MAX,
        timeout_us: u64::MAX,
        credit: u64::MAX,
        stream: true,
        idempotent: true,
        tool_name: "tool".to_owned(),
        metadata,
        ..call_of(1000)
    };
    let batch = CallBatch { calls: vec![start.clone(), CallStart::default()], ..CallBatch::default() };
    assert!(batch.encoded_len() <= call_size(&start) + call_size(&CallStart::default()));
    let metadata = start.metadata;
    let chunk = CallChunk {
        data: vec![0; 900].into(),
        metadata: metadata.clone(),
        sent_in_parts: u64::MAX,
        binary: Some(vec![0; 100].into()),
    };
    assert!(chunk.encoded_len() as u64 <= super::super::chunk_cost(&chunk));
    // All fields at once, with the longest numbers.
    let value = CallValue {
        r#type: -1,
        json: vec![0; 1000].into(),
        binary: Some(vec![0; 1000].into()),
        sent_in_parts: u64::MAX,
    };
    let status = CallStatus { code: -1, message: "x".repeat(1000), details: vec![0; 1000].into() };
    let reply = CallReply {
        id: u64::MAX,
        value: Some(value),
        failure: Some(Box::new(ToolFailure { message: "x".repeat(1000), ..ToolFailure::default() })),
        status: Some(Box::new(status)),
        metadata,
        execution_time_ns: u64::MAX,
        worker_id: "w".repeat(1000),
    };
    assert!(reply.encoded_len() <= super::super::reply_size(&reply));
}

fn deliver(shared: &SharedCalls, batch: ReplyBatch) {
    shared.update(|state, wakers| state.deliver(batch, wakers)).unwrap();
}

fn cut(shared: &SharedCalls) {
    let status = Status::unavailable("the other side closed the stream");
    shared.update(|state, wakers| state.fail(&status, wakers));
}

fn replies(ids: &[u64]) -> ReplyBatch {
    let replies = ids.iter().map(|id| CallReply { id: *id, ..CallReply::default() }).collect();
    ReplyBatch { replies, ..ReplyBatch::default() }
}

#[test]
fn a_reply_that_arrived_survives_the_end_of_the_stream() {
    let (multiplexer, shared) = multiplexer();
    let [mut answered, mut recalled, mut streams, mut running] =
        [(); 4].map(|()| multiplexer.start(CallStart::default(), 7));
    shared.lock().take_batch().unwrap();
    let named = |tool: &str| CallStart { tool_name: tool.to_owned(), ..CallStart::default() };
    let mut unsent = multiplexer.start(named("unsent"), 8);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(answered.poll_event(cx).is_pending());
    let chunk = CallChunk { data: vec![1].into(), ..CallChunk::default() };
    let batch = ReplyBatch {
        chunks: vec![crate::pb::CallChunks { id: streams.id(), chunks: vec![chunk] }],
        recalled: vec![recalled.id()],
        ..replies(&[answered.id()])
    };
    // One poll of `Incoming` reads both before the callers are polled.
    deliver(&shared, batch);
    cut(&shared);
    let end = |call: &mut Call| match call.poll_event(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(CallEvent::End(end)) => end,
        other => panic!("{other:?}"),
    };
    assert!(matches!(end(&mut answered), CallEnd::Reply(_)));
    assert!(matches!(end(&mut recalled), CallEnd::Recalled));
    assert!(matches!(streams.poll_event(cx), Poll::Ready(CallEvent::Chunks(chunks)) if chunks.len() == 1));
    assert!(matches!(end(&mut streams), CallEnd::Broken(_)));
    assert!(matches!(end(&mut running), CallEnd::Broken(_)));
    assert!(matches!(end(&mut unsent), CallEnd::Unsent(call, _) if call.tool_name == "unsent"));
    let mut late = multiplexer.start(named("late"), 9);
    assert!(matches!(end(&mut late), CallEnd::Unsent(call, _) if call.tool_name == "late"));
    assert!(shared.lock().calls.is_empty());
}

#[test]
fn only_the_first_end_of_a_call_counts() {
    let (multiplexer, shared) = multiplexer();
    let mut call = multiplexer.start(CallStart::default(), 7);
    shared.lock().take_batch().unwrap();
    deliver(&shared, ReplyBatch { recalled: vec![1], ..ReplyBatch::default() });
    deliver(&shared, replies(&[1, 1]));
    let event = call.poll_event(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(event, Poll::Ready(CallEvent::End(CallEnd::Recalled))), "{event:?}");
    assert_eq!(shared.lock().open_count, 0);
}

#[test]
fn cancelling_an_open_call_of_a_broken_stream_is_unconfirmed() {
    let (multiplexer, shared) = multiplexer();
    let (kept, dropped) =
        (multiplexer.start(CallStart::default(), 1), multiplexer.start(CallStart::default(), 2));
    let answered = multiplexer.start(CallStart::default(), 3);
    shared.lock().take_batch().unwrap();
    drop(dropped);
    deliver(&shared, replies(&[answered.id()]));
    let cx = &mut Context::from_waker(Waker::noop());
    let mut waiting = Box::pin(multiplexer.cancel(1));
    assert!(waiting.as_mut().poll(cx).is_pending());
    cut(&shared);
    assert_eq!(waiting.as_mut().poll(cx), Poll::Ready(false));
    let ended =
        |tag| Box::pin(multiplexer.cancel(tag)).as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(
        [1, 2, 3, 4].map(ended),
        [Poll::Ready(false), Poll::Ready(false), Poll::Ready(true), Poll::Ready(true)]
    );
    drop((kept, answered));
}

#[test]
fn credits_and_cancels_are_sent_after_the_close_until_the_last_call_has_ended() {
    let (multiplexer, shared) = multiplexer();
    let mut outgoing = Outgoing(Arc::clone(&shared));
    let [stream, dropped] = [(); 2].map(|()| multiplexer.start(CallStart::default(), 7));
    let count = Arc::new(WakeCount::default());
    let waker = Waker::from(Arc::clone(&count));
    let cx = &mut Context::from_waker(&waker);
    let mut poll = || Pin::new(&mut outgoing).poll_next(cx);
    assert!(matches!(poll(), Poll::Ready(Some(batch)) if ids(&batch) == [1, 2]));
    assert!(poll().is_pending());
    drop(multiplexer);
    assert!(poll().is_pending(), "two calls run");
    stream.grant(10);
    assert!(matches!(poll(), Poll::Ready(Some(batch)) if batch.credits.len() == 1));
    drop(dropped);
    assert!(matches!(poll(), Poll::Ready(Some(batch)) if batch.cancels == [2]));
    deliver(&shared, replies(&[1]));
    assert!(poll().is_pending(), "a cancelled call has not confirmed its end");
    let before = count.get();
    deliver(&shared, replies(&[2]));
    assert_eq!(count.get(), before + 1, "the sending half is not woken to end");
    // The end arrived, even though it was not polled.
    assert!(matches!(poll(), Poll::Ready(None)));
    stream.grant(10);
    assert!(shared.lock().outbox.credits.is_empty(), "credit for a call that has ended");
}

#[test]
fn cancelled_calls_do_not_accumulate_in_the_outbox() {
    const CALLS: usize = 100_000;
    let (multiplexer, shared) = multiplexer();
    let kept = multiplexer.start(call_of(10), 1);
    // The host does not take messages while the caller keeps starting and cancelling calls.
    for _ in 0..CALLS {
        drop(multiplexer.start(call_of(10), 2));
    }
    let state = shared.lock();
    assert!(state.outbox.calls.len() <= 3, "{}", state.outbox.calls.len());
    assert_eq!((state.open_count, state.calls.len()), (1, 1));
    drop(state);
    // Cancels all from the front. At most half of them may remain as empty calls.
    let many: Vec<_> = (0..CALLS).map(|_| multiplexer.start(call_of(10), 2)).collect();
    for (dropped, call) in many.into_iter().enumerate() {
        drop(call);
        let state = shared.lock();
        let live = CALLS - dropped;
        assert!(state.outbox.calls.len() <= 2 * live + 1, "{} entries for {live}", state.outbox.calls.len());
    }
    let batch = shared.lock().take_batch().unwrap();
    assert_eq!(ids(&batch), [kept.id()]);
    let state = shared.lock();
    assert_eq!((state.outbox_bytes, state.withdrawn.len()), (0, 0));
}

#[test]
fn an_unsent_call_is_removed_once() {
    let (multiplexer, shared) = multiplexer();
    let calls = [(); 5].map(|()| multiplexer.start(call_of(10), 1));
    let mut wakers = Vec::new();
    shared.lock().cancel(calls[0].id(), &mut wakers);
    shared.lock().cancel(calls[0].id(), &mut wakers);
    let state = shared.lock();
    let live = state.outbox.calls.iter().filter(|call| !state.withdrawn.contains(&call.id));
    assert_eq!(state.outbox_bytes, live.map(call_size).sum::<usize>());
    assert_eq!(state.open_count, 4);
}

/// Recalls and cancels this many open calls one by one, and returns the time.
fn cancel_each(count: u64) -> std::time::Duration {
    let (multiplexer, shared) = multiplexer();
    let cx = &mut Context::from_waker(Waker::noop());
    let calls: Vec<_> = (1..=count).map(|tag| multiplexer.start(CallStart::default(), tag)).collect();
    while shared.lock().take_batch().is_some() {}
    let start = tokio::time::Instant::now();
    (1..=count).for_each(|tag| multiplexer.recall(tag));
    let mut ending: Vec<_> = (1..=count).map(|tag| Box::pin(multiplexer.cancel(tag))).collect();
    assert!(ending.iter_mut().all(|ended| ended.as_mut().poll(cx).is_pending()));
    let batch = shared.lock().take_batch().unwrap();
    assert_eq!((batch.recalls, batch.cancels), ((1..=count).collect(), (1..=count).collect()));
    for call in &calls {
        deliver(&shared, replies(&[call.id()]));
    }
    assert!(ending.iter_mut().all(|ended| ended.as_mut().poll(cx) == Poll::Ready(true)));
    let elapsed = start.elapsed();
    assert!(shared.lock().tag_index.calls.is_empty() && shared.lock().tag_waiters.is_empty());
    elapsed
}

#[test]
fn ten_thousand_cancels_take_as_long_as_ten_times_a_thousand() {
    // A busy machine only adds time, so the shortest of many interleaved runs counts.
    let (many, few): (Vec<_>, Vec<_>) = (0..20).map(|_| (cancel_each(10_000), cancel_each(1000))).unzip();
    let ratio = many.iter().min().unwrap().as_secs_f64() / few.iter().min().unwrap().as_secs_f64();
    // With quadratic cost, the ratio is near 100.
    assert!(ratio < 40.0, "{ratio}: {many:?} {few:?}");
}

#[test]
fn the_index_finds_all_open_calls_of_a_tag() {
    let (multiplexer, shared) = multiplexer();
    let mut calls = Vec::new();
    // Few new calls after many old ones, and many after few.
    for (count, ended) in [(3, 0), (100, 90), (2, 1), (1, 0), (40, 43)] {
        calls.extend((0..count).map(|i| multiplexer.start(CallStart::default(), i % 3)));
        for call in calls.drain(..ended) {
            deliver(&shared, replies(&[call.id()]));
        }
        let mut state = shared.lock();
        for tag in 0..4 {
            let mut expected: Vec<u64> =
                state.calls.iter().filter(|(_, entry)| entry.tag == tag).map(|(id, _)| *id).collect();
            expected.sort_unstable();
            assert_eq!(state.open_calls_of(tag), expected);
        }
    }
}

fn part(id: u64, bytes: usize) -> ReplyBatch {
    let part = crate::pb::CallPart { id, data: vec![0; bytes].into() };
    ReplyBatch { parts: vec![part], ..ReplyBatch::default() }
}

fn last_part(id: u64, sent_in_parts: u64) -> ReplyBatch {
    let value = CallValue { binary: Some(vec![1; 10].into()), sent_in_parts, ..CallValue::default() };
    let reply = CallReply { id, value: Some(value), ..CallReply::default() };
    ReplyBatch { replies: vec![reply], ..ReplyBatch::default() }
}

/// Creates a stream with one sent call.
fn stream_with_sent_call() -> (Call, crate::mux::client::Frames) {
    let (multiplexer, mut frames) = crate::mux::client::Frames::open();
    let call = multiplexer.start(CallStart::default(), 7);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(frames.poll_take(cx), Poll::Ready(Some(batch)) if batch.takes_parts));
    assert!(frames.poll_take(cx).is_pending(), "the sending half is open while the call runs");
    (call, frames)
}

#[test]
fn parts_that_do_not_match_their_reply_break_the_stream() {
    let wrong = [
        (vec![part(1, 100), last_part(1, 99)], "99 bytes"),
        (vec![last_part(1, 1)], "1 bytes"),
        (vec![part(1, 50), part(1, MAX_ITEM_BYTES - 49)], "more than"),
        (vec![part(1, MAX_ITEM_BYTES - 9), last_part(1, MAX_ITEM_BYTES as u64 - 9)], "more than"),
    ];
    for (batches, problem) in wrong {
        let (mut call, frames) = stream_with_sent_call();
        batches.into_iter().for_each(|batch| frames.deliver(batch));
        match call.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(CallEvent::End(CallEnd::Broken(status))) => {
                assert!(status.message().contains(problem), "{}", status.message());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(frames.calls(), 0);
    }
}

#[test]
fn a_stream_that_is_cut_between_parts_loses_the_call() {
    let (mut call, frames) = stream_with_sent_call();
    frames.deliver(part(1, 100));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(call.poll_event(cx).is_pending());
    frames.cut(&Status::unavailable("cut"));
    frames.deliver(last_part(1, 100));
    assert!(matches!(call.poll_event(cx), Poll::Ready(CallEvent::End(CallEnd::Broken(_)))));
    assert_eq!(frames.calls(), 0);
}

#[test]
fn parts_of_a_call_that_was_dropped_are_not_kept() {
    let (multiplexer, shared) = multiplexer();
    let call = multiplexer.start(CallStart::default(), 7);
    shared.lock().take_batch().unwrap();
    deliver(&shared, part(1, 100));
    assert_eq!(shared.lock().calls[&1].parts.len(), 100);
    drop(call);
    deliver(&shared, part(1, 100));
    assert_eq!(shared.lock().calls[&1].parts.capacity(), 0);
    deliver(&shared, last_part(1, 100));
    assert!(shared.lock().calls.is_empty());
    // Parts of unknown calls are dropped too.
    deliver(&shared, part(9, 100));
    deliver(&shared, last_part(9, 1));
}
