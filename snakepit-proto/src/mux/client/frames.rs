//! A stream without a transport, for tests. The test moves the messages of its [`Frames`].

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use tonic::Status;

use super::{CloseOnDrop, Multiplexer, SharedCalls, transport::Outgoing};
use crate::pb::{CallBatch, ReplyBatch};

/// The messages of one stream. Dropping it does not break the stream, so its calls wait forever.
#[derive(Debug)]
pub struct Frames {
    shared: Arc<SharedCalls>,
    outgoing: Outgoing,
}

impl Frames {
    /// Opens a stream.
    #[must_use]
    pub fn open() -> (Multiplexer, Self) {
        let shared = Arc::new(SharedCalls::new());
        let multiplexer = Multiplexer { owner: Arc::new(CloseOnDrop(Arc::clone(&shared))) };
        (multiplexer, Self { outgoing: Outgoing(Arc::clone(&shared)), shared })
    }

    /// Takes the next message to the callee. `None` after the last one.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<CallBatch>> {
        Pin::new(&mut self.outgoing).poll_next(cx)
    }

    /// Delivers a message of the callee. A violation of the protocol breaks the stream.
    pub fn deliver(&self, batch: ReplyBatch) {
        self.shared.update(|state, wakers| {
            if let Err(status) = state.deliver(batch, wakers) {
                state.fail(&status, wakers);
            }
        });
    }

    /// Breaks the stream.
    pub fn cut(&self, status: &Status) {
        self.shared.update(|state, wakers| state.fail(status, wakers));
    }

    /// The number of calls that have not ended, or whose end was not polled yet.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.shared.lock().calls.len()
    }
}
