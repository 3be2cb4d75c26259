//! Reads the single message of a unary request, within its size limit, its budgets and its minimum speed.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    framing::{
        MAX_LIGHT_BYTES, MessageLimits, MessageTracker, PREFIX_BYTES, PolledFrame, SEGMENT_OVERHEAD, Segments,
    },
    pace::Pace,
    request_memory::RequestMemory,
};
use crate::status::{from_tool_error, request_incomplete, second_message};

/// A complete message with its prefix, which is the request body for the service.
#[derive(Debug, Default)]
pub(super) struct Message {
    /// The first segment. Most messages have only one, so they need no allocation.
    first: Option<Bytes>,
    rest: VecDeque<Bytes>,
    bytes: usize,
}

impl Message {
    /// Whether decoding takes long enough for a blocking thread.
    pub(super) const fn is_heavy(&self) -> bool {
        self.bytes > MAX_LIGHT_BYTES
    }

    pub(super) fn from_segments(segments: Segments) -> Self {
        Self { first: None, bytes: segments.remaining(), rest: segments.into_inner() }
    }

    pub(super) fn into_segments(self) -> Segments {
        let mut segments = Segments::default();
        self.first.into_iter().chain(self.rest).for_each(|segment| segments.push(segment));
        segments
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

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> PolledFrame {
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

/// Reads a request's message. Its memory counts towards the connection's budget until `memory` is dropped.
/// Until the message is complete, it also counts towards the budget of arriving requests.
///
/// # Errors
/// The status of the response, if the message is too large, too slow or incomplete, or if a budget is exhausted.
///
/// # Cancel safety
/// Dropping the future releases the memory.
pub(super) async fn read_message<B>(
    body: B,
    limits: MessageLimits,
    memory: &mut RequestMemory,
) -> Result<Message, Status>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    let (mut message, mut pace) = (Message::default(), Pace::default());
    let mut tracker = MessageTracker::new(limits);
    poll_fn(|cx| {
        loop {
            let frame = match body.as_mut().poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(request_incomplete(&error))),
                Poll::Pending => return pace.poll_too_slow(cx, message.bytes).map(Err),
            };
            // gRPC requests have no trailers.
            let Ok(data) = frame.into_data() else { continue };
            pace.record_data();
            let cost = data.len() + SEGMENT_OVERHEAD;
            memory.grow(cost).map_err(from_tool_error)?;
            if !body.is_end_stream() {
                memory.grow_arriving(cost).map_err(from_tool_error)?;
            }
            tracker.track(&data).map_err(|error| limits.status(error))?;
            message.push(data);
            let size = message.bytes.saturating_sub(PREFIX_BYTES);
            limits.check_size(size).map_err(|error| limits.status(error))?;
            if tracker.complete_messages() > 1 {
                return Poll::Ready(Err(second_message()));
            }
        }
    })
    .await?;
    memory.release_arriving();
    Ok(message)
}

#[cfg(test)]
mod tests;
