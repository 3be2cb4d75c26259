//! Helpers for the tests of the layers: an inner service and streams that the test controls.

use std::future::poll_fn;

use bytes::Bytes;
use snakepit_registry::{Chunk, ReplyBody, ToolError, ToolReply};
use snakepit_session::Payload;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Service, ServiceExt};
use tower_test::mock::{self, Handle};

pub(crate) type Item = Result<Chunk, ToolError>;

/// A service whose replies the test sends through the handle.
pub(crate) fn inner<C: Send + 'static>()
-> (impl Service<C, Response = ToolReply, Error = ToolError, Future: Send> + Clone, Handle<C, ToolReply>) {
    let (mock, handle) = mock::pair::<C, ToolReply>();
    let downcast = |error: tower::BoxError| *error.downcast::<ToolError>().expect("tests send tool errors");
    (mock.map_err(downcast), handle)
}

pub(crate) fn value() -> ToolReply {
    ToolReply::value(Payload::null())
}

/// A streamed reply, and the sender of its chunks.
pub(crate) fn stream() -> (ToolReply, mpsc::UnboundedSender<Item>) {
    let (chunk_sender, items) = mpsc::unbounded_channel();
    (ToolReply::stream(Box::pin(UnboundedReceiverStream::new(items))), chunk_sender)
}

pub(crate) fn chunk() -> Item {
    Ok(Chunk { data: Bytes::from_static(b"1"), ..Chunk::default() })
}

/// The next item of a streamed reply.
pub(crate) async fn next(reply: &mut ToolReply) -> Option<Item> {
    let ReplyBody::Stream(stream) = &mut reply.body else { panic!("not a stream: {reply:?}") };
    poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}

pub(crate) fn worker_lost(may_have_run: bool) -> ToolError {
    ToolError::worker_lost("w", "it exited").with_may_have_run(may_have_run)
}
