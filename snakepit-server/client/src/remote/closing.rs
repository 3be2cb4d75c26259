//! Closing a client: it rejects new calls, waits for calls in flight, and aborts the rest.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use snakepit_registry::ToolError;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

use super::Connection;
use crate::Error;

/// The progress of closing a client.
#[derive(Debug, Default)]
pub(super) struct CloseState {
    /// Cancelled when the client is closed. Ends watches.
    pub(super) closing: CancellationToken,
    /// Cancelled when the time for calls in flight is over.
    pub(super) cut: CancellationToken,
    /// Counts streams with calls in flight, and requests.
    pub(super) in_flight: TaskTracker,
}

impl CloseState {
    /// Waits for calls and requests in flight, and aborts those that have not ended in time. Returns whether all have ended in
    /// time.
    pub(super) async fn drain(&self, limit: Duration) -> bool {
        self.in_flight.close();
        let have_ended = tokio::time::timeout(limit, self.in_flight.wait()).await.is_ok();
        self.cut.cancel();
        have_ended
    }
}

/// The error of a call or request of a closed client.
pub(super) const fn closed(may_have_run: bool) -> ToolError {
    ToolError::client_closed(may_have_run)
}

impl Connection {
    /// Runs a request unless the client is closed. Aborts it if the client is closed while it runs, and the limit then passes.
    pub(super) async fn until_cut<T>(
        &self,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        // Counts before the check, so that a close either waits for this request or rejects it.
        let _in_use = self.close.in_flight.token();
        if self.close.closing.is_cancelled() {
            return Err(closed(false).into());
        }
        self.close.cut.run_until_cancelled(request).await.unwrap_or_else(|| Err(closed(true).into()))
    }
}

/// A stream that ends with an error when a client is closed. It drops its source at the end.
pub(super) struct UntilClosed<S, E> {
    /// `None` after the end.
    source: Option<(S, E)>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S, E> UntilClosed<S, E> {
    /// `error` is the last item if the token is cancelled first.
    pub(super) fn new(source: S, token: &CancellationToken, error: E) -> Self {
        Self { source: Some((source, error)), closed: Box::pin(token.clone().cancelled_owned()) }
    }
}

impl<S, T, E> Stream for UntilClosed<S, E>
where
    S: Stream<Item = Result<T, E>> + Unpin,
    E: Unpin,
{
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some((source, _)) = &mut this.source else { return Poll::Ready(None) };
        // Poll `closed` first, because a source that is always ready must not keep the client open.
        if this.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(this.source.take().map(|(_, error)| Err(error)));
        }
        let polled = Pin::new(source).poll_next(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            this.source = None;
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};

    use super::*;

    #[tokio::test]
    async fn a_closed_stream_yields_the_error_once_and_drops_its_source() {
        let (token, guard) = (CancellationToken::new(), std::sync::Arc::new(()));
        let held = std::sync::Arc::clone(&guard);
        let source = stream::repeat_with(move || {
            let _held = &held;
            Ok(1)
        });
        let mut stream = UntilClosed::new(Box::pin(source), &token, "closed");
        assert_eq!(stream.next().await, Some(Ok(1)));
        token.cancel();
        assert_eq!((stream.next().await, stream.next().await), (Some(Err("closed")), None));
        assert_eq!(std::sync::Arc::strong_count(&guard), 1);
        let mut failing =
            UntilClosed::new(stream::iter([Err::<u8, _>("broken"), Ok(1)]), &CancellationToken::new(), "");
        assert_eq!((failing.next().await, failing.next().await), (Some(Err("broken")), None));
    }
}
