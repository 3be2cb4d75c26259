//! Moves messages between the table of calls and the transport.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use tonic::{Status, Streaming};

use super::SharedCalls;
use crate::{
    pb::{CallBatch, ReplyBatch},
    proxy,
};

/// The messages of the request. Each takes the content of the outbox when the transport is ready for more.
#[derive(Debug)]
pub(super) struct Outgoing(pub(super) Arc<SharedCalls>);

impl Stream for Outgoing {
    type Item = CallBatch;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<CallBatch>> {
        let mut state = self.0.lock();
        if let Some(batch) = state.take_batch() {
            return Poll::Ready(Some(batch));
        }
        if state.is_done() || state.break_status.is_some() {
            return Poll::Ready(None);
        }
        let stale = state.sender_waker.replace(cx.waker().clone());
        drop(state);
        drop(stale);
        Poll::Pending
    }
}

/// Delivers the replies to their calls. It completes when the stream ends. Dropping it breaks the stream.
#[derive(Debug)]
#[must_use = "calls receive replies only while this is polled"]
pub struct Incoming {
    shared: Arc<SharedCalls>,
    replies: Streaming<ReplyBatch>,
    /// The name of a proxy between the ends, from its `server` header.
    proxy: Option<String>,
}

impl Incoming {
    pub(super) const fn new(
        shared: Arc<SharedCalls>,
        replies: Streaming<ReplyBatch>,
        proxy: Option<String>,
    ) -> Self {
        Self { shared, replies, proxy }
    }
}

impl Future for Incoming {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let status = match Pin::new(&mut this.replies).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(batch))) => {
                    match this.shared.update(|state, wakers| state.deliver(batch, wakers)) {
                        Ok(()) => continue,
                        Err(status) => status,
                    }
                }
                Poll::Ready(Some(Err(status))) => proxy::explain_cut(status, this.proxy.as_deref()),
                Poll::Ready(None) => Status::unavailable("the other side closed the stream"),
            };
            this.shared.update(|state, wakers| state.fail(&status, wakers));
            return Poll::Ready(());
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let status = Status::unavailable("the stream is no longer read");
        self.shared.update(|state, wakers| {
            if state.break_status.is_none() {
                state.fail(&status, wakers);
            }
        });
    }
}
