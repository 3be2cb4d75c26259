//! Ends open-ended streams at shutdown and at the deadline of their RPC. Both end with an error, because a stream without one
//! would look complete.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use crate::status::{rpc_deadline_exceeded, shutting_down};

pin_project! {
    /// A stream that ends at the stop of the host or at its deadline. It still yields the items that are ready by then.
    pub(super) struct OpenEndedStream<S> {
        #[pin]
        stream: S,
        #[pin]
        stopped: WaitForCancellationFutureOwned,
        deadline: Option<Pin<Box<Sleep>>>,
        has_calls: bool,
        has_ended: bool,
    }
}

impl<S> OpenEndedStream<S> {
    pub(super) fn new(stream: S, stop: CancellationToken) -> Self {
        Self { stream, stopped: stop.cancelled_owned(), deadline: None, has_calls: false, has_ended: false }
    }

    /// Marks a stream whose open calls may have run when the host stops.
    pub(super) const fn with_calls(mut self) -> Self {
        self.has_calls = true;
        self
    }

    /// Also ends the stream at this deadline.
    pub(super) fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline.map(|at| Box::pin(sleep_until(at)));
        self
    }
}

impl<S: Stream<Item = Result<T, Status>>, T> Stream for OpenEndedStream<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        if *this.has_ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(item) = this.stream.poll_next(cx) {
            return Poll::Ready(item);
        }
        let end = if this.stopped.poll(cx).is_ready() {
            shutting_down(*this.has_calls)
        } else if this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            rpc_deadline_exceeded()
        } else {
            return Poll::Pending;
        };
        *this.has_ended = true;
        Poll::Ready(Some(Err(end)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt;
    use snakepit_proto::status::{DELIVERED, details_of};
    use tonic::Code;

    use super::*;

    async fn items_and_codes(
        stream: OpenEndedStream<impl Stream<Item = Result<u8, Status>>>,
    ) -> Vec<Result<u8, Code>> {
        stream.map(|item| item.map_err(|status| status.code())).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn ready_items_precede_the_error_that_ends_the_stream() {
        let stop = CancellationToken::new();
        let endless = || futures_util::stream::iter([Ok(1_u8), Ok(2)]).chain(futures_util::stream::pending());
        let in_time = OpenEndedStream::new(endless(), stop.clone())
            .with_deadline(Some(Instant::now() + Duration::from_secs(1)));
        assert_eq!(items_and_codes(in_time).await, [Ok(1), Ok(2), Err(Code::DeadlineExceeded)]);
        let stopped = OpenEndedStream::new(endless(), stop.clone());
        stop.cancel();
        assert_eq!(items_and_codes(stopped).await, [Ok(1), Ok(2), Err(Code::Unavailable)]);
        for (stream, may_have_run) in [
            (OpenEndedStream::new(endless(), stop.clone()), "false"),
            (OpenEndedStream::new(endless(), stop.clone()).with_calls(), "true"),
        ] {
            let end = stream.collect::<Vec<_>>().await.pop().unwrap().unwrap_err();
            assert_eq!(details_of(&end).metadata[DELIVERED], may_have_run);
        }
    }
}
