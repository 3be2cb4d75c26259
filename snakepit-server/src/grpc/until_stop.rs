//! Streams that would go on for as long as their client listens, and must not hold up the end of the host.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pin_project! {
    /// A stream that ends once the host stops. What is ready by then still comes.
    pub(super) struct UntilStop<S> {
        #[pin]
        stream: S,
        #[pin]
        stopped: WaitForCancellationFutureOwned,
    }
}

impl<S> UntilStop<S> {
    pub(super) fn new(stream: S, stop: CancellationToken) -> Self {
        Self { stream, stopped: stop.cancelled_owned() }
    }
}

impl<S: Stream> Stream for UntilStop<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        if let Poll::Ready(item) = this.stream.poll_next(cx) {
            return Poll::Ready(item);
        }
        ready!(this.stopped.poll(cx));
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn what_is_ready_at_the_stop_still_comes() {
        let stop = CancellationToken::new();
        let endless = futures_util::stream::iter([1, 2]).chain(futures_util::stream::pending());
        let stream = UntilStop::new(endless, stop.clone());
        stop.cancel();
        assert_eq!(stream.collect::<Vec<_>>().await, [1, 2]);
    }
}
