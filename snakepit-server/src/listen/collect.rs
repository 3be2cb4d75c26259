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
    connections::Connection,
    frames::{FRAME_BYTES, MAX_LIGHT_BYTES, Messages, PREFIX_BYTES, Pieces},
    held::{Held, MessageLimits},
    pace::Pace,
};
use crate::status::{request_broke, second_message};

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

/// Reads the message of a request, and takes what it occupies from the connection's budget until what it holds is dropped. While
/// it arrives, it counts for the budget of all that arrive, too.
///
/// # Errors
/// What is to be answered instead: it is too large or too slow, or exceeds a budget.
///
/// # Cancel safety
/// Dropping the future gives everything back.
pub(super) async fn collect<B>(
    body: B,
    limits: MessageLimits,
    connection: &Arc<Connection>,
) -> Result<(Message, Held), Status>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    let (mut message, mut pace) = (Message::default(), Pace::default());
    let (mut messages, mut held) = (Messages::new(limits), Held::by(connection));
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
            held.grow(cost)?;
            if !body.is_end_stream() {
                held.grow_arriving(cost)?;
            }
            messages.take_in(&data).map_err(|excess| limits.refused(excess))?;
            message.push(data);
            let size = message.bytes.saturating_sub(PREFIX_BYTES);
            limits.check_size(size).map_err(|excess| limits.refused(excess))?;
            if messages.complete() > 1 {
                return Poll::Ready(Err(second_message()));
            }
        }
    })
    .await?;
    held.arrived();
    Ok((message, held))
}

#[cfg(test)]
mod tests;
