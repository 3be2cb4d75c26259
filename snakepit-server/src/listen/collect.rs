//! The message of a request that is not a stream, read whole: within its limit, the budgets and its time.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    budget::Share,
    connections::Connection,
    frames::{Excess, FRAME_BYTES, MAX_LIGHT_BYTES, Messages, PREFIX_BYTES, Pieces},
    pace::Pace,
};
use crate::status::{
    from_tool_error, message_refused, request_broke, too_much_arriving, too_much_of_a_connection,
};

/// A message that is here.
#[derive(Debug, Default)]
pub(super) struct Message {
    first: Option<Bytes>,
    rest: VecDeque<Bytes>,
    bytes: usize,
}

impl Message {
    /// Whether it is heavy to decode.
    pub(super) const fn is_heavy(&self) -> bool {
        self.bytes > MAX_LIGHT_BYTES
    }

    pub(super) fn of(pieces: Pieces) -> Self {
        Self { first: None, bytes: pieces.remaining(), rest: pieces.into_inner() }
    }

    pub(super) fn into_pieces(self) -> Pieces {
        let mut pieces = Pieces::default();
        self.first.into_iter().chain(self.rest).for_each(|piece| pieces.push(piece));
        pieces
    }

    fn push(&mut self, data: Bytes) {
        self.bytes += data.len();
        if self.first.is_none() && self.rest.is_empty() {
            self.first = Some(data);
        } else {
            self.rest.push_back(data);
        }
    }
}

impl Body for Message {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = self.first.take().or_else(|| self.rest.pop_front());
        Poll::Ready(next.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Reads a message of the one request (see [`Messages`] for `nested`), and takes what it occupies from the connection's budget until the share is dropped. While it arrives,
/// it counts for the host's budget too.
///
/// # Errors
/// What is to be answered instead: it is too large or too slow, or exceeds a budget.
///
/// # Cancel safety
/// Dropping the future gives everything back.
pub(super) async fn collect<B>(
    body: B,
    limit: usize,
    nested: &'static [u32],
    connection: &Arc<Connection>,
) -> Result<(Message, Share), Status>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    let (mut message, mut pace) = (Message::default(), Pace::default());
    let mut messages = Messages::new(limit, nested);
    let (mut share, mut arriving) = (connection.share(), connection.arriving_share());
    poll_fn(|cx| {
        loop {
            let frame = match body.as_mut().poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(request_broke(&error))),
                Poll::Pending => return pace.poll_too_slow(cx, message.bytes).map(Err),
            };
            // Trailers say nothing in gRPC.
            let Ok(data) = frame.into_data() else { continue };
            pace.progress();
            let cost = data.len() + FRAME_BYTES;
            share.grow(cost).map_err(|full| from_tool_error(too_much_of_a_connection(full)))?;
            if !body.is_end_stream() {
                arriving.grow(cost).map_err(|full| from_tool_error(too_much_arriving(full)))?;
            }
            messages.take_in(&data).map_err(|excess| message_refused(excess, limit))?;
            message.push(data);
            // There is one message only.
            if message.bytes > limit + PREFIX_BYTES {
                let excess = Excess::Bytes(message.bytes - PREFIX_BYTES);
                return Poll::Ready(Err(message_refused(excess, limit)));
            }
        }
    })
    .await?;
    Ok((message, share))
}

#[cfg(test)]
mod tests;
