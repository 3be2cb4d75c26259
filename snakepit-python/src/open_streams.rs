//! [`OpenStreams`]: the open `Multiplex` streams of a worker. The worker ends them after its last call, because the gRPC server
//! waits for open responses, and the host may keep its half of a stream open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snakepit_wire::mux::Replies;

/// The open streams. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenStreams(Arc<Mutex<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    open: Vec<Replies>,
    /// Whether [`end`](OpenStreams::end) was called. New streams then end immediately.
    has_ended: bool,
}

impl OpenStreams {
    /// Adds a stream.
    pub(crate) fn add(&self, replies: &Replies) {
        let mut streams = self.lock();
        streams.open.retain(|open| !open.is_closed());
        streams.open.push(replies.clone());
        if streams.has_ended {
            drop(streams);
            replies.end();
        }
    }

    /// Ends all streams, and those that are added later, after their queued replies.
    pub(crate) fn end(&self) {
        let open = {
            let mut streams = self.lock();
            streams.has_ended = true;
            std::mem::take(&mut streams.open)
        };
        open.iter().for_each(Replies::end);
    }

    /// Code under this lock does not panic.
    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use futures_core::Stream;
    use snakepit_proto::pb::CallReply;
    use snakepit_wire::mux::ReplyBatches;

    use super::*;

    /// Returns the number of replies in the next message of the stream, or `None` at its end.
    fn next(body: &mut ReplyBatches) -> Poll<Option<usize>> {
        let next = Pin::new(body).poll_next(&mut Context::from_waker(Waker::noop()));
        next.map(|next| next.map(|batch| batch.unwrap().replies.len()))
    }

    #[test]
    fn a_stream_ends_with_the_worker_after_its_last_answers() {
        let (streams, replies) = (OpenStreams::default(), Replies::new());
        let mut body = replies.body();
        streams.add(&replies);
        replies.send_reply(CallReply { id: 1, ..CallReply::default() });
        streams.end();
        assert_eq!([next(&mut body), next(&mut body)], [Poll::Ready(Some(1)), Poll::Ready(None)]);
        let late = Replies::new();
        streams.add(&late);
        assert_eq!(next(&mut late.body()), Poll::Ready(None));
    }
}
