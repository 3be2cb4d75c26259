//! The bodies of answers on their way out. Large ones are made only while the peer reads, and count until it has read them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::{budget::Exhausted, connections::OpenRequest, outgoing::COUNTED_BYTES};
use crate::status::{answer_dropped, from_tool_error};

/// How much the transport gets of a piece at a time, in bytes.
const SLICE: usize = 1024 * 1024;

/// How large the answers of an RPC can get, and whether they can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerKind {
    /// Small, or bounded elsewhere.
    Small,
    /// Read from the state of the host, which keeps it anyway: it is encoded once there is room.
    Read,
    /// A stream, whose source waits or drops.
    Stream,
    /// The value of a tool, which is here and takes its memory.
    Tool,
}

impl AnswerKind {
    pub(super) fn of(path: &str) -> Self {
        match path.strip_prefix("/snakepit.bridge.BridgeService/") {
            Some("ExecuteTool" | "ExecuteElixirTool") => Self::Tool,
            Some("ExecuteStreamingTool" | "WatchVariables") => Self::Stream,
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
            ) => Self::Read,
            _ => Self::Small,
        }
    }
}

type Wait = Pin<Box<dyn Future<Output = Result<(), Exhausted>> + Send>>;

/// The body of an answer; until it ends, its request counts as open.
pub(super) struct Answer {
    body: Body,
    kind: AnswerKind,
    /// What was made of the body and not yet taken: the rest of a piece, or what ends it.
    rest: Bytes,
    end: Option<Result<HeaderMap, Status>>,
    /// Set while there is no room.
    wait: Option<Wait>,
    has_ended: bool,
    open: OpenRequest,
}

impl Answer {
    /// The value of a tool is encoded now, so that it is held once, and counts. It is refused if too much is held already.
    pub(super) fn of(
        response: Response<Body>,
        kind: AnswerKind,
        open: OpenRequest,
        cx: &mut Context<'_>,
    ) -> Response<Self> {
        let answer =
            |body| Self { body, kind, rest: Bytes::new(), end: None, wait: None, has_ended: false, open };
        let mut response = response.map(answer);
        if kind == AnswerKind::Tool
            && !response.body().body.is_end_stream()
            && let Err(full) = response.body_mut().encode(cx)
        {
            let (mut answer, refusal) =
                (response.into_body(), from_tool_error(answer_dropped(full)).into_http::<Body>());
            answer.has_ended = true;
            return refusal.map(|_| answer);
        }
        response
    }

    fn encode(&mut self, cx: &mut Context<'_>) -> Result<(), Exhausted> {
        match Pin::new(&mut self.body)
            .poll_frame(cx)
            .map(|frame| frame.map(|frame| frame.map(Frame::into_data)))
        {
            Poll::Ready(Some(Ok(Ok(data)))) => {
                if data.len() >= COUNTED_BYTES {
                    self.open.unread().check(data.len())?;
                    self.rest = self.open.unread().hold(data);
                } else {
                    self.rest = data;
                }
            }
            Poll::Ready(Some(Ok(Err(frame)))) => self.end = frame.into_trailers().ok().map(Ok),
            Poll::Ready(Some(Err(status))) => self.end = Some(Err(status)),
            Poll::Ready(None) => self.has_ended = true,
            Poll::Pending => {}
        }
        Ok(())
    }

    /// Waits until there is room for the next piece.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Exhausted>> {
        if !matches!(self.kind, AnswerKind::Read | AnswerKind::Stream) {
            return Poll::Ready(Ok(()));
        }
        if self.wait.is_none() {
            if !self.open.unread().is_short() {
                return Poll::Ready(Ok(()));
            }
            let unread = Arc::clone(self.open.unread());
            self.wait = Some(Box::pin(async move { unread.room().await }));
        }
        let Some(wait) = &mut self.wait else { return Poll::Ready(Ok(())) };
        let room = ready!(wait.as_mut().poll(cx));
        self.wait = None;
        Poll::Ready(room)
    }

    fn take_slice(&mut self) -> Frame<Bytes> {
        let slice = self.rest.split_to(SLICE.min(self.rest.len()));
        if slice.len() >= COUNTED_BYTES {
            self.open.unread().progress(slice.len());
        }
        Frame::data(slice)
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.take_slice())));
        }
        if let Some(end) = this.end.take() {
            this.has_ended = true;
            return Poll::Ready(Some(end.map(Frame::trailers)));
        }
        if this.has_ended {
            return Poll::Ready(None);
        }
        if let Err(full) = ready!(this.poll_room(cx)) {
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
                if this.kind == AnswerKind::Read {
                    // Only the status is left.
                    this.kind = AnswerKind::Small;
                }
                if data.len() < COUNTED_BYTES {
                    Frame::data(data)
                } else {
                    this.rest = this.open.unread().hold(data);
                    this.take_slice()
                }
            }
            Err(frame) => frame,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.end.is_none() && (self.has_ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
