//! Response bodies. The host creates large responses only while the client reads, and counts them until the client has read them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::{connections::OpenRequest, framing::PolledFrame, response_budget::MIN_COUNTED_BYTES};
use crate::{
    limits::BudgetExhausted,
    status::{answer_dropped, from_tool_error},
};

/// The largest data frame that the transport receives, in bytes.
const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// The largest data frame that the program's own server receives, in bytes. That server keeps the last frame of a response that
/// its client does not read, and the host cannot drop this frame.
const MAX_MOUNTED_FRAME_BYTES: usize = MIN_COUNTED_BYTES;

/// The size class of an RPC's responses, and whether they can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseKind {
    /// Small, or bounded by other means.
    Small,
    /// Read from the host's state. It is encoded once the budget allows, and does not take memory until then.
    State,
    /// A stream, whose source waits or drops items.
    Stream,
    /// A tool's value, which already occupies memory.
    Value,
}

impl ResponseKind {
    pub(super) fn of(path: &str) -> Self {
        match path.strip_prefix("/snakepit.bridge.BridgeService/") {
            Some("ExecuteTool" | "ExecuteElixirTool") => Self::Value,
            Some("ExecuteStreamingTool" | "ExecuteStreamingElixirTool" | "WatchVariables") => Self::Stream,
            Some(
                "GetProgram"
                | "ListPrograms"
                | "GetVariable"
                | "GetVariables"
                | "ListVariables"
                | "GetVariableHistory"
                | "RollbackVariable"
                | "ListSessions"
                | "ListTools"
                | "GetExposedElixirTools",
            ) => Self::State,
            _ => Self::Small,
        }
    }
}

type CapacityFuture = Pin<Box<dyn Future<Output = Result<(), BudgetExhausted>> + Send>>;

/// The body of a response. Its request counts as open until the body ends.
pub(super) struct ResponseBody {
    body: Body,
    kind: ResponseKind,
    /// Encoded data that the transport has not taken yet.
    encoded: Bytes,
    /// The trailers, or the error that ends the body.
    end: Option<Result<HeaderMap, Status>>,
    /// The wait for capacity while a budget is exhausted.
    capacity: Option<CapacityFuture>,
    has_ended: bool,
    open_request: OpenRequest,
}

impl ResponseBody {
    /// Wraps the response of a service. Encodes a tool's value immediately, so that only its encoded form uses memory, and counts
    /// as unread. The service has checked that the client does not have too much to read.
    pub(super) fn wrap(
        response: Response<Body>,
        kind: ResponseKind,
        open_request: OpenRequest,
        cx: &mut Context<'_>,
    ) -> Response<Self> {
        let wrap = |body| Self {
            body,
            kind,
            encoded: Bytes::new(),
            end: None,
            capacity: None,
            has_ended: false,
            open_request,
        };
        let mut response = response.map(wrap);
        if kind == ResponseKind::Value && !response.body().body.is_end_stream() {
            response.body_mut().encode(cx);
        }
        response
    }

    /// Polls the body for the encoded value or its end. Does not wait for capacity.
    fn encode(&mut self, cx: &mut Context<'_>) {
        match Pin::new(&mut self.body)
            .poll_frame(cx)
            .map(|frame| frame.map(|frame| frame.map(Frame::into_data)))
        {
            Poll::Ready(Some(Ok(Ok(data)))) => {
                self.encoded = if data.len() >= MIN_COUNTED_BYTES {
                    self.open_request.unread().count(data)
                } else {
                    data
                };
            }
            Poll::Ready(Some(Ok(Err(frame)))) => self.end = frame.into_trailers().ok().map(Ok),
            Poll::Ready(Some(Err(status))) => self.end = Some(Err(status)),
            Poll::Ready(None) => self.has_ended = true,
            Poll::Pending => {}
        }
    }

    /// Drops the data that the transport has not taken, and the source of the response. The client receives an error instead.
    /// Does nothing if the transport has taken all data. Drops a stream only if memory is short, because its reader may have
    /// paused it. Returns whether the response was dropped.
    pub(super) fn drop_unread(&mut self) -> bool {
        let unread = self.open_request.unread();
        if self.encoded.is_empty() || (self.kind == ResponseKind::Stream && !unread.is_memory_short()) {
            return false;
        }
        self.end = Some(Err(from_tool_error(answer_dropped(unread.usage()))));
        self.encoded = Bytes::new();
        self.body = Body::empty();
        true
    }

    /// Ready once the budget allows the next piece.
    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BudgetExhausted>> {
        if !matches!(self.kind, ResponseKind::State | ResponseKind::Stream) {
            return Poll::Ready(Ok(()));
        }
        if self.capacity.is_none() {
            if !self.open_request.unread().is_exhausted() {
                return Poll::Ready(Ok(()));
            }
            let unread = Arc::clone(self.open_request.unread());
            self.capacity = Some(Box::pin(async move { unread.capacity().await }));
        }
        let Some(pending) = &mut self.capacity else { return Poll::Ready(Ok(())) };
        let capacity = ready!(pending.as_mut().poll(cx));
        self.capacity = None;
        Poll::Ready(capacity)
    }

    fn take_slice(&mut self) -> Frame<Bytes> {
        let is_mounted = self.open_request.is_mounted();
        let limit = if is_mounted { MAX_MOUNTED_FRAME_BYTES } else { MAX_FRAME_BYTES };
        let mut slice = self.encoded.split_to(limit.min(self.encoded.len()));
        if slice.len() >= MIN_COUNTED_BYTES {
            self.open_request.unread().record_sent(slice.len());
            if is_mounted {
                // A slice keeps the whole response in memory.
                slice = self.open_request.unread().count(Bytes::copy_from_slice(&slice));
            }
        }
        Frame::data(slice)
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        let this = &mut *self;
        if !this.encoded.is_empty() {
            return Poll::Ready(Some(Ok(this.take_slice())));
        }
        if let Some(end) = this.end.take() {
            this.has_ended = true;
            return Poll::Ready(Some(end.map(Frame::trailers)));
        }
        if this.has_ended {
            return Poll::Ready(None);
        }
        if let Err(full) = ready!(this.poll_capacity(cx)) {
            this.has_ended = true;
            this.body = Body::empty();
            let mut trailers = HeaderMap::new();
            let status = from_tool_error(answer_dropped(full));
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) => {
                if this.kind == ResponseKind::State {
                    // Only the trailers follow.
                    this.kind = ResponseKind::Small;
                }
                if data.len() < MIN_COUNTED_BYTES {
                    Frame::data(data)
                } else {
                    this.encoded = this.open_request.unread().count(data);
                    this.take_slice()
                }
            }
            Err(frame) => frame,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.encoded.is_empty() && self.end.is_none() && (self.has_ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
