//! Answers every RPC by its `grpc-timeout`. At the full time tonic answers CANCELLED, and many clients give up without
//! waiting for an answer, so this answers DEADLINE_EXCEEDED a little earlier.
//!
//! Handlers of calls get a deadline that lies earlier still ([`CallDeadline`]), because they know how far the call has come.
//! Streams are bounded here up to their head only; what feeds them sees to their end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use snakepit_proto::headers::{GRPC_TIMEOUT, parse_timeout};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::body::Body;

use crate::status::rpc_deadline_exceeded;

/// The deadline that a request asks for, less a margin for the way back; an extension of requests that have one. The time
/// that the message takes to arrive counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallDeadline(pub(super) Instant);

/// Answers a request by its `grpc-timeout`.
pub(crate) fn in_time<B, F>(
    mut request: http::Request<B>,
    answer: impl FnOnce(http::Request<B>) -> F,
) -> ResponseFuture<F> {
    let timeout = request.headers().get(GRPC_TIMEOUT).and_then(|value| parse_timeout(value.to_str().ok()?));
    // A malformed timeout is refused by the handlers that keep one, and ignored by tonic.
    let Some(timeout) = timeout else {
        return ResponseFuture { inner: Some(answer(request)), end: None };
    };
    let margin = (timeout / 20).clamp(Duration::from_millis(1), Duration::from_millis(25));
    let now = Instant::now();
    let Some(left) = timeout.checked_sub(margin).filter(|left| !left.is_zero()) else {
        // The transport's own timer fires before the message of the request could be read.
        return ResponseFuture { inner: None, end: None };
    };
    if let Some(at) = now.checked_add(left) {
        request.extensions_mut().insert(CallDeadline(at));
    }
    let end = now.checked_add(left + margin / 2).map(|at| End { at, timer: None });
    ResponseFuture { inner: Some(answer(request)), end }
}

/// When an RPC must have been answered.
struct End {
    at: Instant,
    /// Set at the first poll that finds no answer.
    timer: Option<Pin<Box<Sleep>>>,
}

impl End {
    /// The clock decides, so that whichever timer wakes the task for this deadline, the answer is the same.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.at)));
        if timer.as_mut().poll(cx).is_ready() || self.at <= Instant::now() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

pin_project! {
    /// Answers one RPC in time.
    pub(crate) struct ResponseFuture<F> {
        // `None` for a request that has no time at all.
        #[pin]
        inner: Option<F>,
        end: Option<End>,
    }
}

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<http::Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(inner) = this.inner.as_pin_mut() {
            if let Poll::Ready(response) = inner.poll(cx) {
                return Poll::Ready(response);
            }
            match this.end.as_mut() {
                Some(end) => ready!(end.poll(cx)),
                None => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(rpc_deadline_exceeded().into_http()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Answers with the code of a request to a handler that takes this long.
    async fn code(timeout: &str, takes: Duration) -> Option<String> {
        let handler = async |_: http::Request<()>| {
            tokio::time::sleep(takes).await;
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        };
        let request = http::Request::builder().header(GRPC_TIMEOUT, timeout).body(()).unwrap();
        let response = in_time(request, handler).await.unwrap();
        response.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn every_rpc_is_answered_just_before_the_transport_gives_up() {
        for (timeout, latest) in
            [("0n", 0), ("1n", 0), ("999u", 0), ("40m", 40), ("1S", 1000), ("1M", 60_000)]
        {
            let start = Instant::now();
            let code = code(timeout, Duration::from_secs(3600)).await;
            assert_eq!(code.as_deref(), Some("4"), "{timeout}");
            let took = start.elapsed();
            assert!(
                took <= Duration::from_millis(latest) && took * 100 >= Duration::from_millis(latest) * 95
            );
        }
        let answered = code("1S", Duration::from_millis(900)).await;
        assert_eq!(answered, None, "an answer in time is left alone");
        assert_eq!(code("soon", Duration::from_secs(9)).await, None, "a malformed timeout is none");
    }
}
