//! The outbox of the callee: the sizes of its messages, and its wake-ups.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    task::Wake,
};

use prost::Message;

use super::*;
use crate::{
    pb::CallValue,
    status::{ANSWER_TOO_LARGE, details_of},
};

mod inbound;
mod large_items;
mod reports;

#[derive(Default)]
struct WakeCount(AtomicUsize);

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn reply_of(id: u64, bytes: usize) -> CallReply {
    let value = CallValue { binary: Some(vec![0; bytes].into()), ..CallValue::default() };
    CallReply { id, value: Some(value), ..CallReply::default() }
}

fn chunk_of(bytes: usize) -> CallChunk {
    CallChunk { data: vec![0; bytes].into(), ..CallChunk::default() }
}

/// Takes all messages from the outbox.
fn drain(replies: &Replies) -> Vec<ReplyBatch> {
    let mut outbox = replies.lock();
    let batches: Vec<_> = std::iter::from_fn(|| outbox.take_batch()).collect();
    assert_eq!((outbox.bytes, outbox.large.bytes, outbox.large.item_count), (0, 0, 0));
    batches
}

fn take(replies: &Replies) -> ReplyBatch {
    match replies.poll_take(&Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Ok(batch))) => batch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_are_limited_in_size_and_only_large_items_exceed_the_limit() {
    let replies = Replies::new();
    (1..=3000).for_each(|id| replies.send_reply(reply_of(id, 1000)));
    replies.send_reply(reply_of(3001, 3 * BATCH_BYTES));
    replies.send_reply(reply_of(3002, 10));
    let batches = drain(&replies);
    assert!(batches.len() <= 6, "{}", batches.len());
    for batch in &batches {
        assert!(batch.replies.len() == 1 || batch.encoded_len() <= BATCH_BYTES);
    }
    assert!(batches.iter().flat_map(|batch| &batch.replies).map(|reply| reply.id).eq(1..=3002));
}

#[test]
fn a_run_of_chunks_is_divided_and_its_reply_comes_last() {
    let replies = Replies::new();
    replies.send_opened(CallOpened { id: 1, worker_id: "w".to_owned() });
    (0..100).for_each(|_| replies.send_chunks(1, vec![chunk_of(10_000), chunk_of(20_000)]));
    replies.send_chunks(2, vec![chunk_of(7)]);
    replies.send_reply(reply_of(1, 0));
    replies.send_recalled(9);
    let batches = drain(&replies);
    assert!(batches.iter().all(|batch| batch.encoded_len() <= BATCH_BYTES));
    assert!((3..=4).contains(&batches.len()), "{}", batches.len());
    let runs: Vec<_> = batches.iter().flat_map(|batch| &batch.chunks).collect();
    let chunks_of = |id| runs.iter().filter(move |run| run.id == id).flat_map(|run| &run.chunks);
    assert_eq!((chunks_of(1).count(), chunks_of(2).count()), (200, 1));
    assert_eq!((batches[0].opened.len(), batches.last().unwrap().replies.len()), (1, 1));
    assert_eq!(batches.iter().map(|batch| batch.replies.len()).sum::<usize>(), 1);
    assert_eq!(batches.iter().flat_map(|batch| &batch.recalled).collect::<Vec<_>>(), [&9]);
}

#[test]
fn a_reply_above_the_limit_of_a_message_becomes_an_error() {
    let replies = Replies::new();
    replies.send_reply(reply_of(1, MAX_ITEM_BYTES));
    replies.send_reply(reply_of(2, 1));
    let batch = take(&replies);
    let status = tonic::Status::from(*batch.replies[0].status.clone().unwrap());
    let details = details_of(&status);
    assert_eq!(details.reason.as_deref(), Some(ANSWER_TOO_LARGE));
    assert_eq!(details.metadata["limit"], MAX_ITEM_BYTES.to_string());
    assert!(status.message().contains(&format!("the limit is {MAX_ITEM_BYTES}; ")), "{status:?}");
    assert_eq!((batch.replies[0].value.as_ref(), batch.replies[1].status.as_ref()), (None, None));
}

#[test]
fn a_producer_waits_for_capacity_of_a_full_outbox() {
    let (replies, count) = (Replies::new(), Arc::new(WakeCount::default()));
    let waker = Waker::from(Arc::clone(&count));
    let cx = Context::from_waker(&waker);
    for id in 1..=4 {
        assert!(replies.poll_capacity(&cx).is_ready());
        replies.send_reply(reply_of(id, BATCH_BYTES));
    }
    assert!(replies.poll_capacity(&cx).is_pending());
    assert!(replies.poll_capacity(&cx).is_pending());
    assert_eq!(take(&replies).replies[0].id, 1);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(replies.poll_capacity(&cx).is_ready());
}

#[test]
fn a_closed_outbox_discards_its_items() {
    let (replies, count) = (Replies::new(), Arc::new(WakeCount::default()));
    let waker = Waker::from(Arc::clone(&count));
    (1..=5).for_each(|id| replies.send_reply(reply_of(id, BATCH_BYTES)));
    assert!(replies.poll_capacity(&Context::from_waker(&waker)).is_pending());
    drop(ReplyBatches(replies.clone()));
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    replies.send_reply(reply_of(6, 1));
    replies.send_chunks(7, vec![chunk_of(1)]);
    assert!(drain(&replies).is_empty());
    assert!(replies.poll_capacity(&Context::from_waker(&waker)).is_ready());
}

#[test]
fn replies_precede_the_end() {
    let replies = Replies::new();
    let cx = Context::from_waker(Waker::noop());
    replies.send_reply(reply_of(1, 1));
    replies.lock().end = Some(Err(Status::unavailable("broken")));
    assert_eq!(take(&replies).replies[0].id, 1);
    assert!(matches!(replies.poll_take(&cx), Poll::Ready(Some(Err(status))) if status.message() == "broken"));
    assert!(matches!(replies.poll_take(&cx), Poll::Ready(None)));
}

#[test]
fn the_sending_task_is_woken_once_for_all_items() {
    let (replies, count) = (Replies::new(), Arc::new(WakeCount::default()));
    let waker = Waker::from(Arc::clone(&count));
    let wakes = || count.0.load(Ordering::Relaxed);
    assert!(replies.poll_take(&Context::from_waker(&waker)).is_pending());
    replies.send_reply(reply_of(1, 1));
    replies.send_reply(reply_of(2, 1));
    assert_eq!(wakes(), 1);
    assert_eq!(take(&replies).replies.len(), 2);
    replies.send_reply(reply_of(3, 1));
    assert_eq!(wakes(), 1);
    assert!(replies.poll_take(&Context::from_waker(&waker)).is_ready());
}

#[test]
fn an_empty_list_of_chunks_is_not_sent() {
    let replies = Replies::new();
    replies.send_chunks(1, vec![]);
    assert!(drain(&replies).is_empty());
    (0..3).for_each(|_| replies.send_chunks(1, vec![chunk_of(BATCH_BYTES)]));
    replies.send_chunks(2, vec![]);
    assert_eq!(drain(&replies).len(), 3);
}

#[test]
fn a_response_that_is_ended_sends_its_queued_items_first() {
    let replies = Replies::new();
    let wake_ups = Arc::new(WakeCount::default());
    assert!(replies.poll_take(&Context::from_waker(&Waker::from(Arc::clone(&wake_ups)))).is_pending());
    replies.end();
    assert_eq!(wake_ups.0.load(Ordering::Relaxed), 1);
    replies.send_reply(reply_of(1, 1));
    assert_eq!(take(&replies).replies.len(), 1);
    assert!(matches!(replies.poll_take(&Context::from_waker(Waker::noop())), Poll::Ready(None)));
}
