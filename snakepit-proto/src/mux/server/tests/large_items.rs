//! Large items are sent in parts, and small ones pass in between.

use super::*;
use crate::mux::client::Frames;

/// Creates an outbox whose caller accepts parts.
fn replies_in_parts() -> Replies {
    let replies = Replies::new();
    replies.enable_parts();
    replies
}

/// Delivers the messages to a caller. Returns the sizes of chunks and reply for each call.
fn received_sizes(batches: Vec<ReplyBatch>, count: usize) -> Vec<(u64, Vec<usize>, Option<usize>)> {
    let (multiplexer, mut frames) = Frames::open();
    let mut calls: Vec<_> = (0..count).map(|_| multiplexer.start(Default::default(), 0)).collect();
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(frames.poll_take(cx), Poll::Ready(Some(batch)) if batch.takes_parts));
    let mut arrived: Vec<_> = calls.iter().map(|call| (call.id(), Vec::new(), None)).collect();
    for batch in batches {
        frames.deliver(batch);
        for (call, (_, chunks, reply)) in calls.iter_mut().zip(&mut arrived) {
            while reply.is_none()
                && let Poll::Ready(event) = call.poll_event(cx)
            {
                match event {
                    crate::mux::CallEvent::Opened(_) | crate::mux::CallEvent::Reports(_) => {}
                    crate::mux::CallEvent::Chunks(run) => {
                        assert!(run.iter().all(|chunk| chunk.sent_in_parts == 0));
                        chunks.extend(run.iter().map(|chunk| chunk.data.len()));
                    }
                    crate::mux::CallEvent::End(crate::mux::CallEnd::Reply(answer)) => {
                        *reply = Some(data_len(&answer));
                    }
                    crate::mux::CallEvent::End(end) => panic!("{end:?}"),
                }
            }
        }
    }
    arrived
}

#[test]
fn small_replies_pass_between_the_parts_of_a_large_one() {
    const LARGE: usize = 60 * 1024 * 1024;
    let replies = replies_in_parts();
    replies.send_reply(reply_of(1, LARGE));
    let mut batches = Vec::new();
    for id in 2..=100 {
        replies.send_reply(reply_of(id, 10));
        let batch = take(&replies);
        assert!(batch.encoded_len() < PART_BYTES + 1000);
        assert!(batch.replies.iter().map(|reply| reply.id).eq([id]), "the small reply goes first");
        assert_eq!(batch.parts[0].data.len(), PART_BYTES);
        batches.push(batch);
    }
    batches.extend(drain(&replies));
    assert_eq!(batches.len(), LARGE / PART_BYTES);
    assert_eq!(received_sizes(batches, 100)[0], (1, vec![], Some(LARGE)));
}

#[test]
fn a_caller_without_parts_gets_whole_replies() {
    let replies = Replies::new();
    replies.send_reply(reply_of(1, 3 * BATCH_BYTES));
    // Too late: the outbox has already counted the item as whole.
    replies.enable_parts();
    let batches = drain(&replies);
    assert_eq!((batches.len(), batches[0].parts.len()), (1, 0));
    assert_eq!(data_len(&batches[0].replies[0]), 3 * BATCH_BYTES);
}

#[test]
fn large_items_are_sent_round_robin_and_in_order_within_a_call() {
    let replies = replies_in_parts();
    let large = 3 * PART_BYTES + 7;
    replies.send_opened(CallOpened { id: 1, ..CallOpened::default() });
    replies.send_chunks(1, vec![chunk_of(10), chunk_of(large), chunk_of(20)]);
    replies.send_chunks(2, vec![chunk_of(30), chunk_of(40)]);
    replies.send_chunks(1, vec![chunk_of(large + 1), chunk_of(PART_BYTES)]);
    replies.send_reply(reply_of(1, 0));
    replies.send_reply(reply_of(2, 0));
    replies.send_reply(reply_of(3, large + 2));
    let batches = drain(&replies);
    let turns: Vec<u64> = batches.iter().flat_map(|batch| &batch.parts).map(|part| part.id).collect();
    assert_eq!(turns, [1, 3, 1, 3, 1, 3, 1, 1, 1]);
    assert!(batches.iter().all(|batch| batch.encoded_len() <= BATCH_BYTES));
    // Items without a large item before them do not wait.
    assert_eq!((batches[0].chunks.len(), batches[0].replies[0].id), (2, 2));
    let expected = [
        (1, vec![10, large, 20, large + 1, PART_BYTES], Some(0)),
        (2, vec![30, 40], Some(0)),
        (3, vec![], Some(large + 2)),
    ];
    assert_eq!(received_sizes(batches, 3), expected);
}

#[test]
fn a_large_reply_makes_progress_under_load() {
    let replies = replies_in_parts();
    let mut next = 2..;
    let mut fill = || (0..5).for_each(|_| replies.send_reply(reply_of(next.next().unwrap(), 200_000)));
    replies.send_reply(reply_of(1, 2 * PART_BYTES));
    (0..4).for_each(|_| fill());
    let first = take(&replies);
    assert_eq!((first.parts.len(), first.replies.len()), (1, 3));
    fill();
    let ids: Vec<u64> = take(&replies).replies.iter().map(|reply| reply.id).collect();
    assert_eq!(ids, [1, 5, 6, 7]);
}

#[test]
fn one_large_reply_does_not_block_calls_but_many_do() {
    let replies = replies_in_parts();
    let cx = Context::from_waker(Waker::noop());
    let large = MAX_ITEM_BYTES - 1000;
    replies.send_reply(reply_of(1, large));
    assert!(replies.poll_capacity(&cx).is_ready());
    (2..7).for_each(|id| replies.send_reply(reply_of(id, BATCH_BYTES)));
    assert!(replies.poll_capacity(&cx).is_pending());
    let without_parts = Replies::new();
    without_parts.send_reply(reply_of(1, large));
    assert!(without_parts.poll_capacity(&cx).is_pending());
}
