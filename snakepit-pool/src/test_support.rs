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

/// A service whose answers the test sends through the handle.
pub(crate) fn inner<C: Send + 'static>()
-> (impl Service<C, Response = ToolReply, Error = ToolError, Future: Send> + Clone, Handle<C, ToolReply>) {
    let (mock, handle) = mock::pair::<C, ToolReply>();
    let typed = |error: tower::BoxError| *error.downcast::<ToolError>().expect("tests send tool errors");
    (mock.map_err(typed), handle)
}

pub(crate) fn value() -> ToolReply {
    ToolReply::value(Payload::null())
}

/// A streamed reply, and the sender of its chunks.
pub(crate) fn stream() -> (ToolReply, mpsc::UnboundedSender<Item>) {
    let (feed, items) = mpsc::unbounded_channel();
    (ToolReply::stream(Box::pin(UnboundedReceiverStream::new(items))), feed)
}

pub(crate) fn chunk() -> Item {
    Ok(Chunk { data: Bytes::from_static(b"1"), metadata: Default::default() })
}

/// The next item of a streamed reply.
pub(crate) async fn next(reply: &mut ToolReply) -> Option<Item> {
    let ReplyBody::Stream(stream) = &mut reply.body else { panic!("not a stream: {reply:?}") };
    poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}

pub(crate) fn lost(delivered: bool) -> ToolError {
    ToolError::WorkerLost {
        worker: "w".to_owned(),
        reason: "it fell".to_owned(),
        delivered,
        output_lines: Vec::new(),
    }
}
