//! The deadline that calls get, and that of streams to their end. That calls end at theirs is tested with the pool.

use tokio::time::advance;
use tower::ServiceExt;

use super::*;
use crate::test_support::{chunk, inner, next, stream, value};

const SECOND: Duration = Duration::from_secs(1);

fn exceeded_while(error: &ToolError) -> Option<CallStage> {
    match error {
        ToolError::DeadlineExceeded { stage, .. } => Some(*stage),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_deadline_gets_one_and_its_own_is_left_alone() {
    let (inner, mut handle) = inner();
    let now = Instant::now();
    let service = DeadlineLayer { default_timeout: Some(SECOND) }.layer(inner);
    for (own, expected) in [(None, now + SECOND), (Some(now + 5 * SECOND), now + 5 * SECOND)] {
        let mut call = ToolCall::new("t");
        call.deadline = own;
        let answer = service.clone().oneshot(call);
        let (answer, ()) = tokio::join!(answer, async {
            let (call, respond) = handle.next_request().await.unwrap();
            assert_eq!(call.deadline, Some(expected));
            respond.send_response(value());
        });
        assert!(answer.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_beyond_the_clock_is_none() {
    let (inner, mut handle) = inner();
    let service = DeadlineLayer { default_timeout: Some(Duration::MAX) }.layer(inner);
    let (answer, ()) = tokio::join!(service.oneshot(ToolCall::new("t")), async {
        let (call, respond) = handle.next_request().await.unwrap();
        assert_eq!(call.deadline, None);
        respond.send_response(value());
    });
    assert!(answer.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_the_deadline_and_lets_go_of_its_source() {
    let (inner, mut handle) = inner();
    let start = Instant::now();
    let call = ToolCall::new("t").streaming().with_deadline(start + SECOND);
    let (reply, feed) = stream();
    let answer = DeadlineLayer { default_timeout: None }.layer(inner).oneshot(call);
    let (answer, ()) = tokio::join!(answer, async {
        handle.next_request().await.unwrap().1.send_response(reply);
    });
    let mut reply = answer.unwrap();
    feed.send(chunk()).unwrap();
    assert!(matches!(next(&mut reply).await, Some(Ok(_))));
    let error = next(&mut reply).await.unwrap().unwrap_err();
    assert_eq!(exceeded_while(&error), Some(CallStage::Running));
    assert_eq!(start.elapsed(), SECOND);
    assert!(feed.is_closed(), "the source is dropped");
    assert!(next(&mut reply).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_pauses_ends_at_the_deadline_too() {
    let (inner, mut handle) = inner();
    let call = ToolCall::new("t").streaming().with_deadline(Instant::now() + SECOND);
    let answer = DeadlineLayer { default_timeout: None }.layer(inner).oneshot(call);
    let (answer, ()) = tokio::join!(answer, async {
        let endless = tokio_stream::iter(std::iter::repeat_with(chunk));
        handle.next_request().await.unwrap().1.send_response(ToolReply::stream(Box::pin(endless)));
    });
    let mut reply = answer.unwrap();
    for _ in 0..3 {
        assert!(matches!(next(&mut reply).await, Some(Ok(_))));
    }
    advance(SECOND).await;
    assert!(matches!(next(&mut reply).await, Some(Err(_))));
}
