//! Tests that each call counts once, by its outcome.

use tower::ServiceExt;

use super::*;
use crate::test_support::{chunk, inner, next, stream, value, worker_lost};

fn totals_with(set: impl FnOnce(&mut CallTotals)) -> CallTotals {
    let mut totals = CallTotals::default();
    set(&mut totals);
    totals
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_outcome() {
    let (inner, mut handle) = inner();
    let totals = Arc::<Totals>::default();
    let service = MetricsLayer(Arc::clone(&totals)).layer(inner);
    let errors = [
        ToolError::Failed(Box::default()),
        ToolError::overloaded(1, 1),
        ToolError::unavailable(""),
        ToolError::deadline_exceeded("", snakepit_registry::CallStage::Queued),
        ToolError::cancelled(""),
        worker_lost(true),
    ];
    for error in errors {
        let answer = service.clone().oneshot(ToolCall::new("t"));
        let (answer, ()) = tokio::join!(answer, async {
            handle.next_request().await.unwrap().1.send_error(error);
        });
        assert!(answer.is_err());
    }
    let (answer, ()) = tokio::join!(service.oneshot(ToolCall::new("t")), async {
        handle.next_request().await.unwrap().1.send_response(value());
    });
    assert!(answer.is_ok());
    let expected = totals_with(|totals| {
        (totals.succeeded, totals.failed, totals.rejected) = (1, 1, 2);
        (totals.timed_out, totals.cancelled, totals.lost) = (1, 1, 1);
    });
    assert_eq!(totals.read(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_counts_as_cancelled() {
    let (inner, mut handle) = inner();
    let totals = Arc::<Totals>::default();
    let call = MetricsLayer(Arc::clone(&totals)).layer(inner).oneshot(ToolCall::new("t"));
    tokio::select! {
        _ = call => panic!("the call was not answered"),
        request = handle.next_request() => assert!(request.is_some()),
    }
    assert_eq!(totals.read(), totals_with(|totals| totals.cancelled = 1));
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_counted_at_its_end() {
    let ends: [(Option<ToolError>, bool, CallTotals); 3] = [
        (None, true, totals_with(|totals| totals.succeeded = 1)),
        (Some(worker_lost(true)), true, totals_with(|totals| totals.lost = 1)),
        (None, false, totals_with(|totals| totals.cancelled = 1)),
    ];
    for (error, reads_to_end, expected) in ends {
        let (inner, mut handle) = inner();
        let totals = Arc::<Totals>::default();
        let call = MetricsLayer(Arc::clone(&totals)).layer(inner).oneshot(ToolCall::new("t").streaming());
        let (reply, chunk_sender) = stream();
        let (answer, ()) = tokio::join!(call, async {
            handle.next_request().await.unwrap().1.send_response(reply);
        });
        let mut reply = answer.unwrap();
        chunk_sender.send(chunk()).unwrap();
        assert!(next(&mut reply).await.is_some());
        assert_eq!(totals.read(), CallTotals::default(), "it has not ended yet");
        if let Some(error) = error {
            chunk_sender.send(Err(error)).unwrap();
        }
        drop(chunk_sender);
        while reads_to_end && next(&mut reply).await.is_some() {}
        drop(reply);
        assert_eq!(totals.read(), expected);
    }
}
