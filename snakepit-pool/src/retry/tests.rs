//! Tests of the conditions for retries and of their number.

use std::time::Duration;

use snakepit_registry::CallStage;
use tokio::time::advance;
use tower::ServiceExt;

use super::*;
use crate::test_support::{chunk, inner, next, stream, value, worker_lost};

/// Runs a call whose attempts all fail with `error`. Returns their number and the caller's error.
async fn attempts(max_attempts: usize, call: ToolCall, error: ToolError) -> (usize, ToolError) {
    attempts_on_workers(max_attempts, call, error, false).await
}

async fn attempts_on_workers(
    max_attempts: usize,
    call: ToolCall,
    error: ToolError,
    was_only_call: bool,
) -> (usize, ToolError) {
    let (inner, mut handle) = inner();
    let inner = inner.map_err(move |error| AttemptError { error, was_only_call });
    let totals = Arc::<Totals>::default();
    let layer = RetryLayer { max_attempts, totals: Arc::clone(&totals) };
    let mut attempts = 0;
    let answer = {
        let answer = layer.layer(inner).oneshot(call.clone());
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                request = handle.next_request() => {
                    let (attempt, respond) = request.unwrap();
                    assert_eq!((attempt.id, &attempt.tool), (call.id, &call.tool));
                    attempts += 1;
                    respond.send_error(error.clone());
                }
            }
        }
    };
    assert_eq!(totals.read().retried, attempts as u64 - 1);
    (attempts, answer.unwrap_err())
}

fn idempotent() -> ToolCall {
    ToolCall::new("t").idempotent()
}

#[tokio::test(start_paused = true)]
async fn calls_that_did_not_begin_are_retried_up_to_a_bound() {
    for limit in [1, 3] {
        let (attempt_count, error) = attempts(limit, ToolCall::new("t"), worker_lost(false)).await;
        assert_eq!(attempt_count, 1 + MAX_SAFE_RETRIES);
        assert!(matches!(error, ToolError::WorkerLost { .. }), "the caller gets the last error: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_loses_workers_without_other_calls_gets_five_attempts() {
    for limit in [1, 3] {
        let (attempt_count, error) =
            attempts_on_workers(limit, ToolCall::new("t"), worker_lost(false), true).await;
        assert_eq!(attempt_count, 5);
        assert!(matches!(error, ToolError::WorkerLost { .. }), "{error}");
    }
    // For a call that may have begun, `max_attempts` applies.
    assert_eq!(attempts_on_workers(2, idempotent(), worker_lost(true), true).await.0, 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_sent_is_retried_until_its_deadline() {
    let (inner, mut handle) = inner();
    let inner = inner.map_err(|error| AttemptError { error, was_only_call: true });
    let layer = RetryLayer { max_attempts: 1, totals: Arc::default() };
    let deadline = Instant::now() + Duration::from_secs(1);
    let answer = layer.layer(inner).oneshot(ToolCall::new("t").with_deadline(deadline));
    let fail = async {
        for attempt in 1.. {
            let Some((_, respond)) = handle.next_request().await else { return attempt - 1 };
            advance(Duration::from_millis(1)).await;
            respond.send_error(worker_lost(false).unsent());
        }
        unreachable!("the handle is closed")
    };
    let (answer, attempts) = tokio::join!(answer, fail);
    assert_eq!(attempts, 1000);
    assert!(!answer.unwrap_err().may_have_run());
}

#[tokio::test(start_paused = true)]
async fn delivered_calls_are_retried_only_if_idempotent() {
    assert_eq!(attempts(3, ToolCall::new("t"), worker_lost(true)).await.0, 1);
    for limit in 1..=3 {
        assert_eq!(attempts(limit, idempotent(), worker_lost(true)).await.0, limit);
    }
}

#[tokio::test(start_paused = true)]
async fn only_lost_workers_cause_retries() {
    let errors = [
        ToolError::unavailable("the pool is shutting down"),
        ToolError::overloaded(1, 1),
        ToolError::Failed(Box::default()),
        ToolError::cancelled("t"),
        ToolError::internal("x"),
    ];
    for error in errors {
        assert_eq!(attempts(3, idempotent(), error.clone()).await.0, 1, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_are_not_retried_after_their_deadline() {
    let deadline = Instant::now() + Duration::from_secs(1);
    advance(Duration::from_millis(999)).await;
    let call = ToolCall::new("t").with_deadline(deadline);
    assert_eq!(attempts(3, call.clone(), worker_lost(false)).await.0, 1 + MAX_SAFE_RETRIES);
    advance(Duration::from_millis(1)).await;
    assert_eq!(attempts(3, call, worker_lost(false)).await.0, 1);
}

#[tokio::test(start_paused = true)]
async fn the_second_attempt_can_succeed() {
    let (inner, mut handle) = inner();
    let layer = RetryLayer { max_attempts: 2, totals: Arc::default() };
    let call = ToolCall::new("t").try_with_argument("a", &1).unwrap();
    let (answer, ()) =
        tokio::join!(layer.layer(inner.map_err(AttemptError::from)).oneshot(call.clone()), async {
            handle.next_request().await.unwrap().1.send_error(worker_lost(false));
            let (second, respond) = handle.next_request().await.unwrap();
            assert_eq!(second.arguments, call.arguments);
            respond.send_response(value());
        });
    assert!(answer.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_last_error_reports_that_an_earlier_attempt_may_have_run() {
    let overloaded = ToolError::overloaded(1, 1);
    let expired = ToolError::deadline_exceeded("t", CallStage::Queued);
    for last in [overloaded, expired, ToolError::shutting_down(false), worker_lost(false)] {
        for may_have_run in [false, true] {
            let (inner, mut handle) = inner();
            let layer = RetryLayer { max_attempts: 3, totals: Arc::default() };
            let last = last.clone();
            let (answer, ()) = tokio::join!(
                layer.layer(inner.map_err(AttemptError::from)).oneshot(idempotent()),
                async move {
                    handle.next_request().await.unwrap().1.send_error(worker_lost(may_have_run));
                    // Another loss without a run leads to more attempts.
                    while let Some((_, respond)) = handle.next_request().await {
                        respond.send_error(last.clone());
                    }
                }
            );
            assert_eq!(answer.unwrap_err().may_have_run(), may_have_run);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_not_retried_after_its_reply() {
    let (inner, mut handle) = inner();
    let layer = RetryLayer { max_attempts: 3, totals: Arc::default() };
    let call = ToolCall::new("t").streaming().idempotent();
    let (reply, chunk_sender) = stream();
    let (answer, ()) = tokio::join!(layer.layer(inner.map_err(AttemptError::from)).oneshot(call), async {
        handle.next_request().await.unwrap().1.send_response(reply);
    });
    let mut reply = answer.unwrap();
    chunk_sender.send(chunk()).unwrap();
    chunk_sender.send(Err(worker_lost(false))).unwrap();
    assert!(matches!(next(&mut reply).await, Some(Ok(_))));
    assert!(matches!(next(&mut reply).await, Some(Err(ToolError::WorkerLost { .. }))));
    assert!(handle.next_request().await.is_none(), "there is no second attempt");
}
