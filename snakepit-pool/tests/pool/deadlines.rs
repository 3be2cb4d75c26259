//! Tests of deadlines: default and explicit ones, of queued, running and streaming calls.

use std::time::Duration;

use snakepit_registry::{CallStage, ToolCall, ToolError, ToolHandler, ToolReply};
use tokio::time::{Instant, advance};

use crate::puppet::{PoolHarness, chunk, config, next};

const SECOND: Duration = Duration::from_secs(1);

fn stage(error: &ToolError) -> Option<CallStage> {
    match error {
        ToolError::DeadlineExceeded { stage, .. } => Some(*stage),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn the_default_timeout_applies_only_to_calls_without_a_deadline() {
    let with_default_timeout = |timeout| config(1).default_timeout(timeout);
    let now = Instant::now();
    for (default, own, expected) in [
        (SECOND, None, Some(now + SECOND)),
        (SECOND, Some(now + 5 * SECOND), Some(now + 5 * SECOND)),
        // A timeout beyond the range of the clock sets no deadline.
        (Duration::MAX, None, None),
    ] {
        let (mut harness, _workers) = PoolHarness::up(with_default_timeout(default)).await;
        let mut call = ToolCall::new("t");
        call.deadline = own;
        let _answer = harness.call(call).await;
        assert_eq!(harness.next_call().await.call.deadline, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_next_chunk_is_always_ready_ends_at_the_deadline() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let call = ToolCall::new("s").streaming().with_deadline(Instant::now() + SECOND);
    let running = harness.call(call).await;
    let endless = tokio_stream::iter(std::iter::repeat_with(chunk));
    harness.next_call().await.finish(Ok(ToolReply::stream(Box::pin(endless))));
    let mut reply = running.answer().await.unwrap();
    for _ in 0..3 {
        assert!(matches!(next(&mut reply).await, Some(Ok(_))));
    }
    // Neither the pool's timer nor its supervisor runs in between.
    advance(SECOND).await;
    let error = next(&mut reply).await.unwrap().unwrap_err();
    assert_eq!(stage(&error), Some(CallStage::Running));
    assert!(next(&mut reply).await.is_none());
    assert_eq!(harness.status().calls.timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_counts_as_timed_out_even_if_its_caller_has_a_timer_too() {
    let (mut harness, _workers) = PoolHarness::up(config(2)).await;
    for _ in 0..2 {
        let deadline = Instant::now() + SECOND;
        let tool = harness.tool();
        let call = tool.call(ToolCall::new("t").with_deadline(deadline));
        // Acts like a transport that polls a call at its deadline and then drops it.
        let (answer, call) = tokio::join!(tokio::time::timeout_at(deadline, call), harness.next_call());
        assert_eq!(stage(&answer.unwrap().unwrap_err()), Some(CallStage::Running));
        harness.next_cancel().await.answer.send(Ok(())).unwrap();
        drop(call);
    }
    harness.settle().await;
    let status = harness.status();
    assert_eq!((status.calls.timed_out, status.calls.cancelled), (2, 0));
    assert_eq!(status.workers.iter().map(|worker| worker.calls).sum::<u64>(), 2, "the workers count them");
}
