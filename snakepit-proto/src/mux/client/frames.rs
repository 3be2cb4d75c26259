//! A stream without a transport, for tests: whoever holds its [`Frames`] carries the messages.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use tonic::Status;

use super::{Multiplexer, Owner, Shared, transport::Outgoing};
use crate::pb::{CallBatch, ReplyBatch};

/// The messages of one stream. Dropping it breaks nothing: calls wait for ever.
#[derive(Debug)]
pub struct Frames {
    shared: Arc<Shared>,
    outgoing: Outgoing,
}

impl Frames {
    /// A stream, and what carries its messages.
    #[must_use]
    pub fn open() -> (Multiplexer, Self) {
        let shared = Arc::new(Shared::new());
        let multiplexer = Multiplexer { owner: Arc::new(Owner(Arc::clone(&shared))) };
        (multiplexer, Self { outgoing: Outgoing(Arc::clone(&shared)), shared })
    }

    /// The next message to the other side. `None` once no more will follow.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<CallBatch>> {
        Pin::new(&mut self.outgoing).poll_next(cx)
    }

    /// A message of the other side arrives. One that makes no sense breaks the stream.
    pub fn deliver(&self, batch: ReplyBatch) {
        self.shared.update(|state, wakers| {
            if let Err(status) = state.deliver(batch, wakers) {
                state.fail(&status, wakers);
            }
        });
    }

    /// The stream breaks.
    pub fn cut(&self, status: &Status) {
        self.shared.update(|state, wakers| state.fail(status, wakers));
    }

    /// The number of calls that have not ended, or whose end was not fetched.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.shared.lock().calls.len()
    }
}
