//! Enforces the `grpc-timeout` of every RPC. At the full timeout, tonic responds with CANCELLED, and many clients no
//! longer wait for a response. This module therefore responds with DEADLINE_EXCEEDED slightly earlier.
//!
//! Call handlers receive an even earlier deadline ([`CallDeadline`]), because they can report how far the call got. For a stream,
//! this module bounds only the time until the response headers. After that, the source of the stream enforces the deadline.

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

/// The deadline of a call, which is the deadline of its request less a margin for the response. Requests with a timeout carry it as an
/// extension. The clock starts when the headers arrive, so the deadline includes the time to receive the message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallDeadline(pub(crate) Instant);

/// Calls a handler and enforces the `grpc-timeout` of the request.
pub(super) fn with_deadline<B, F>(
    mut request: http::Request<B>,
    handler: impl FnOnce(http::Request<B>) -> F,
) -> ResponseFuture<F> {
    let timeout = request.headers().get(GRPC_TIMEOUT).and_then(|value| parse_timeout(value.to_str().ok()?));
    // Call handlers reject a malformed timeout, and tonic ignores it.
    let Some(timeout) = timeout else {
        return ResponseFuture { inner: Some(handler(request)), end: None };
    };
    let margin = (timeout / 20).clamp(Duration::from_millis(1), Duration::from_millis(25));
    let now = Instant::now();
    let Some(remaining) = timeout.checked_sub(margin).filter(|remaining| !remaining.is_zero()) else {
        // The transport would time out before the message of the request can be read.
        return ResponseFuture { inner: None, end: None };
    };
    if let Some(at) = now.checked_add(remaining) {
        request.extensions_mut().insert(CallDeadline(at));
    }
    let end = now.checked_add(remaining + margin / 2).map(|at| ResponseDeadline { at, timer: None });
    ResponseFuture { inner: Some(handler(request)), end }
}

/// The time by which an RPC must have a response.
struct ResponseDeadline {
    at: Instant,
    /// Created by the first poll that finds no response.
    timer: Option<Pin<Box<Sleep>>>,
}

impl ResponseDeadline {
    /// Ready at the deadline. Checks the clock as well as the timer, because another timer may wake the task at the same instant, before
    /// this timer is ready.
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
    /// The response to one RPC, or DEADLINE_EXCEEDED.
    pub(super) struct ResponseFuture<F> {
        // `None` if the request has no time remaining.
        #[pin]
        inner: Option<F>,
        end: Option<ResponseDeadline>,
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

    /// Returns the status code of a request whose handler takes this long.
    async fn code(timeout: &str, handler_time: Duration) -> Option<String> {
        let handler = async |_: http::Request<()>| {
            tokio::time::sleep(handler_time).await;
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        };
        let request = http::Request::builder().header(GRPC_TIMEOUT, timeout).body(()).unwrap();
        let response = with_deadline(request, handler).await.unwrap();
        response.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn every_rpc_gets_a_response_shortly_before_the_transport_times_out() {
        for (timeout, latest) in
            [("0n", 0), ("1n", 0), ("999u", 0), ("40m", 40), ("1S", 1000), ("1M", 60_000)]
        {
            let start = Instant::now();
            let code = code(timeout, Duration::from_secs(3600)).await;
            assert_eq!(code.as_deref(), Some("4"), "{timeout}");
            let elapsed = start.elapsed();
            assert!(
                elapsed <= Duration::from_millis(latest)
                    && elapsed * 100 >= Duration::from_millis(latest) * 95
            );
        }
        let in_time = code("1S", Duration::from_millis(900)).await;
        assert_eq!(in_time, None, "a response in time is unchanged");
        assert_eq!(code("soon", Duration::from_secs(9)).await, None, "a malformed timeout has no effect");
    }
}
