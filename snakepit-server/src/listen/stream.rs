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
    budget::Share,
    connections::Connection,
    frames::{FRAME_BYTES, Messages},
    pace::Pace,
};
use crate::status::{
    from_tool_error, message_refused, request_broke, too_much_arriving, too_much_of_a_connection,
};

pub(super) struct MessageStream<B> {
    body: B,
    messages: Messages,
    pace: Pace,
    limit: usize,
    share: Share,
    arriving: Share,
}

impl<B> MessageStream<B> {
    /// See [`Messages`] for `nested`.
    pub(super) fn new(body: B, limit: usize, nested: &'static [u32], connection: &Arc<Connection>) -> Self {
        let (share, arriving) = (connection.share(), connection.arriving_share());
        Self { body, messages: Messages::new(limit, nested), pace: Pace::default(), limit, share, arriving }
    }

    /// Counts what arrived.
    fn take_in(&mut self, data: &Bytes) -> Result<(), Status> {
        let before = self.messages.partial();
        self.messages.take_in(data).map_err(|excess| message_refused(excess, self.limit))?;
        let now = self.messages.partial();
        if now == 0 || now < before + data.len() {
            // The message that had begun is complete, and what is here of it goes on.
            self.share.clear();
            self.arriving.clear();
            self.pace.finish();
        } else {
            self.pace.progress();
        }
        if now > 0 {
            let cost = data.len().min(now) + FRAME_BYTES;
            self.share.grow(cost).map_err(|full| from_tool_error(too_much_of_a_connection(full)))?;
            self.arriving.grow(cost).map_err(|full| from_tool_error(too_much_arriving(full)))?;
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
