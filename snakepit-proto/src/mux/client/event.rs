//! Events and ends of calls, and the hasher of their ids.

use std::hash::Hasher;

use tonic::Status;

use crate::pb::{CallChunk, CallOpened, CallReply, CallReport, CallStart};

/// An event of a call.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once, and a box would cost each call an allocation"
)]
pub enum CallEvent {
    /// A streaming call has begun.
    Opened(CallOpened),
    /// More chunks. After consuming them, the caller should [grant](super::Call::grant) their cost again.
    Chunks(Vec<CallChunk>),
    /// Reports, if the call asked for them in [`CallStart::reports`].
    Reports(Vec<CallReport>),
    /// The call has ended. No event follows.
    End(CallEnd),
}

/// The end of a call.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once, and a box would cost each call an allocation"
)]
pub enum CallEnd {
    /// The callee replied.
    Reply(CallReply),
    /// The callee returned the call without having begun it.
    Recalled,
    /// The stream broke after the call was passed to the transport. It is unknown whether the call has begun.
    Broken(Status),
    /// The stream broke before the call was passed to the transport, so the callee has not received it. The call is
    /// returned, and can be started on another stream.
    Unsent(CallStart, Status),
}

/// Hashes the ids of calls. The multiplexer assigns them in sequence, so a peer cannot choose colliding ones.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // Knuth's multiplicative hash. The factor is 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
