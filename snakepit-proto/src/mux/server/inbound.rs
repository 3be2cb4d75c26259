//! [`Inbound`]: the messages of the caller.
//!
//! Replies, calls, and the transport after each write also wake the task of a stream. Polling a message stream costs as much as
//! decoding a small message, even if the stream is empty. The call loop therefore polls a message stream only after a wake-up by
//! that stream.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_core::Stream;
use tonic::{Status, Streaming};

use super::Replies;
use crate::pb::CallBatch;

/// The messages of the caller, polled only if one may have arrived.
pub(super) struct Inbound {
    messages: Streaming<CallBatch>,
    signal: Arc<Signal>,
    /// Sets the signal.
    waker: Waker,
}

/// Whether a message may have arrived since the last poll that found none.
struct Signal {
    is_set: AtomicBool,
    replies: Replies,
}

impl Inbound {
    /// Creates the stream, whose wake-ups are passed on to the call loop of this outbox.
    pub(super) fn new(messages: Streaming<CallBatch>, replies: Replies) -> Self {
        let signal = Arc::new(Signal { is_set: AtomicBool::new(true), replies });
        Self { messages, waker: Arc::clone(&signal).into(), signal }
    }

    /// Returns whether a message may have arrived. Register the waker of the call loop in the outbox first, so that no wake-up
    /// is lost: this method sees the wake-ups before it, and the waker receives those after it.
    pub(super) fn is_signalled(&self) -> bool {
        self.signal.is_set.load(SeqCst)
    }

    /// Polls for the next message.
    pub(super) fn poll_next(&mut self) -> Poll<Option<Result<CallBatch, Status>>> {
        self.signal.is_set.store(false, SeqCst);
        let polled = Pin::new(&mut self.messages).poll_next(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            // There may be more.
            self.signal.is_set.store(true, SeqCst);
        }
        polled
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_set.store(true, SeqCst);
        self.replies.wake_call_loop();
    }
}
