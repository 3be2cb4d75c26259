//! The request body of a streaming RPC. The client may pause between messages for as long as it likes. A message that has begun is
//! bounded in size, counts towards the budgets, and must arrive in time.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, SizeHint};
use tonic::Status;

use super::{
    framing::{MessageLimits, MessageTracker, PolledFrame, SEGMENT_OVERHEAD},
    pace::Pace,
    request_memory::{MESSAGE_HEADROOM, RequestMemory},
};
use crate::status::{request_incomplete, stream_rejected};

/// A body that enforces the limits of each message.
pub(super) struct MessageStream<B> {
    body: B,
    tracker: MessageTracker,
    pace: Pace,
    limits: MessageLimits,
    memory: RequestMemory,
}

impl<B> MessageStream<B> {
    /// Creates the stream. `memory` must be empty.
    pub(super) fn new(body: B, limits: MessageLimits, memory: RequestMemory) -> Self {
        Self { body, tracker: MessageTracker::new(limits), pace: Pace::default(), limits, memory }
    }

    /// Counts data that arrived towards the limits and the budgets of its message.
    fn track(&mut self, data: &Bytes) -> Result<(), Status> {
        let partial_before = self.tracker.partial_bytes();
        self.tracker.track(data).map_err(|error| self.limits.status(error))?;
        let partial = self.tracker.partial_bytes();
        if partial == 0 || partial < partial_before + data.len() {
            // The data completed a message, which the service now owns.
            self.memory.clear();
            self.pace.finish();
        } else {
            self.pace.record_data();
        }
        if partial > 0 {
            let cost = data.len().min(partial) + SEGMENT_OVERHEAD;
            let charged = self.memory.grow(cost).and_then(|()| self.memory.grow_arriving(cost));
            // The first message needs no headroom, because its rejection does not end other calls.
            let has_calls = self.tracker.complete_messages() > 0;
            let may_use_headroom = has_calls && self.tracker.announced_bytes() <= MESSAGE_HEADROOM;
            if let Err(error) = charged
                && !(may_use_headroom && self.memory.take_headroom(cost))
            {
                return Err(stream_rejected(error, has_calls));
            }
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

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending if this.tracker.partial_bytes() == 0 => return Poll::Pending,
            Poll::Pending => {
                let too_slow = ready!(this.pace.poll_too_slow(cx, this.tracker.partial_bytes()));
                return Poll::Ready(Some(Err(too_slow)));
            }
        };
        Poll::Ready(match frame {
            None => None,
            Some(Err(error)) => Some(Err(request_incomplete(&error))),
            Some(Ok(frame)) => match frame.data_ref().map(|data| this.track(data)) {
                Some(Err(status)) => Some(Err(status)),
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
