//! [`CutBody`]: the body of a request, which ends with its response.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The body of a request, which is dropped after the end of the response.
///
/// Some services read the body in a separate task, which outlives the response. The program's own server resets a request only
/// after its body is dropped. Until then, it waits for the client to end the request.
pub(super) struct CutBody {
    /// `None` after the cut.
    body: Option<axum::body::Body>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl CutBody {
    /// Wraps a body that ends when `response_ended` is cancelled.
    pub(super) fn new(body: axum::body::Body, response_ended: CancellationToken) -> Self {
        Self { body: Some(body), cut: Box::pin(response_ended.cancelled_owned()) }
    }
}

impl http_body::Body for CutBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if self.cut.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.body = None;
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}
