//! A stream of messages on its way in. Between two messages it may rest for as long as it likes; a message that has begun
//! is bounded in size, counts for the budgets, and must arrive in time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    connections::Connection,
    frames::{FRAME_BYTES, Messages},
    held::{Held, MessageLimits},
    pace::Pace,
};
use crate::status::request_broke;

pub(super) struct MessageStream<B> {
    body: B,
    messages: Messages,
    pace: Pace,
    limits: MessageLimits,
    held: Held,
}

impl<B> MessageStream<B> {
    pub(super) fn new(body: B, limits: MessageLimits, connection: &Arc<Connection>) -> Self {
        let (messages, held) = (Messages::new(limits), Held::by(connection));
        Self { body, messages, pace: Pace::default(), limits, held }
    }

    /// Counts what arrived.
    fn take_in(&mut self, data: &Bytes) -> Result<(), Status> {
        let before = self.messages.partial();
        self.messages.take_in(data).map_err(|excess| self.limits.refused(excess))?;
        let now = self.messages.partial();
        if now == 0 || now < before + data.len() {
            // The message that had begun is complete, and what is here of it goes on.
            self.held.clear();
            self.pace.finish();
        } else {
            self.pace.progress();
        }
        if now > 0 {
            let cost = data.len().min(now) + FRAME_BYTES;
            self.held.grow(cost)?;
            self.held.grow_arriving(cost)?;
        }
        Ok(())
    }
}

impl<B> Body for MessageStream<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending if this.messages.partial() == 0 => return Poll::Pending,
            Poll::Pending => {
                let too_slow = ready!(this.pace.poll_too_slow(cx, this.messages.partial()));
                return Poll::Ready(Some(Err(too_slow)));
            }
        };
        Poll::Ready(match frame {
            None => None,
            Some(Err(error)) => Some(Err(request_broke(&error))),
            Some(Ok(frame)) => match frame.data_ref().map(|data| this.take_in(data)) {
                Some(Err(refusal)) => Some(Err(refusal)),
                _ => Some(Ok(frame)),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
