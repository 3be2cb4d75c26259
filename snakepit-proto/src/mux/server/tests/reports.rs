//! Reports of running calls: their order, and their limits if the caller reads too slowly.

use std::task::{Context, Poll, Waker};

use prost::Message;

use super::{super::*, drain, reply_of};
use crate::{
    mux::{CallEnd, CallEvent, Frames},
    pb::{CallLog, CallReport, call_report::Report},
};

fn report_of(id: u64, text: &str) -> CallReport {
    CallReport { id, report: Some(Report::Log(CallLog { text: text.to_owned(), ..CallLog::default() })) }
}

#[test]
fn reports_arrive_before_the_reply_of_their_call() {
    let cx = &mut Context::from_waker(Waker::noop());
    let (multiplexer, mut frames) = Frames::open();
    let [mut first, mut second] = [(); 2].map(|()| multiplexer.start(Default::default(), 0));
    assert!(frames.poll_take(cx).is_ready());
    let replies = Replies::new();
    replies.send_report(report_of(1, "one"));
    replies.send_reply(reply_of(1, 3 * BATCH_BYTES));
    replies.send_report(report_of(2, "two"));
    replies.send_report(report_of(2, "three"));
    // The call does not exist.
    replies.send_report(report_of(9, "lost"));
    drain(&replies).into_iter().for_each(|batch| frames.deliver(batch));
    let Poll::Ready(CallEvent::Reports(reports)) = first.poll_event(cx) else { panic!("no report") };
    assert_eq!(reports, [report_of(1, "one")]);
    assert!(matches!(first.poll_event(cx), Poll::Ready(CallEvent::End(CallEnd::Reply(_)))));
    let Poll::Ready(CallEvent::Reports(reports)) = second.poll_event(cx) else { panic!("no report") };
    assert_eq!(reports, [report_of(2, "two"), report_of(2, "three")]);
    assert!(second.poll_event(cx).is_pending());
    // A call that was dropped receives nothing.
    drop(second);
    frames.deliver(ReplyBatch { reports: vec![report_of(2, "late")], ..ReplyBatch::default() });
}

#[test]
fn reports_are_dropped_while_the_caller_does_not_read() {
    let replies = Replies::new();
    let text = "x".repeat(10_000);
    (0..10_000).for_each(|_| replies.send_report(report_of(1, &text)));
    replies.send_reply(reply_of(1, 10));
    let batches = drain(&replies);
    let reports = batches.iter().map(|batch| batch.reports.len()).sum::<usize>();
    // The last one is the notice.
    let reports = reports - 1;
    assert!((OUTBOX_BYTES / 11_000..=OUTBOX_BYTES / 10_000 + 1).contains(&reports), "{reports}");
    assert!(batches.iter().all(|batch| batch.encoded_len() <= BATCH_BYTES + 20_000));
    assert_eq!(batches.last().map(|batch| batch.replies.len()), Some(1));

    let cx = &mut Context::from_waker(Waker::noop());
    let (multiplexer, mut frames) = Frames::open();
    let mut call = multiplexer.start(Default::default(), 0);
    assert!(frames.poll_take(cx).is_ready());
    for _ in 0..10 {
        let reports = (0..1000).map(|_| report_of(1, "")).collect();
        frames.deliver(ReplyBatch { reports, ..ReplyBatch::default() });
    }
    assert!(matches!(call.poll_event(cx), Poll::Ready(CallEvent::Reports(reports)) if reports.len() == 4097));
}
