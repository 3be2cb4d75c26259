//! What a call of a stream comes to, and how its id is hashed.

use std::hash::Hasher;

use tonic::Status;

use crate::pb::{CallChunk, CallOpened, CallReply, CallStart};

/// What happened to a call.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once, and a box would cost each call an allocation"
)]
pub enum CallEvent {
    /// It streams, and has begun.
    Opened(CallOpened),
    /// More chunks. Who has consumed them should [grant](super::Call::grant) their cost anew.
    Chunks(Vec<CallChunk>),
    /// It has ended; no event follows.
    End(CallEnd),
}

/// How a call ended.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once, and a box would cost each call an allocation"
)]
pub enum CallEnd {
    /// The other side answered.
    Reply(CallReply),
    /// The other side gave it back without having begun it.
    Recalled,
    /// The stream broke after the call was handed to it. Whether the call was begun is not known.
    Broken(Status),
    /// The stream broke before the call was handed to it: the other side knows nothing of the call. It comes back, to be
    /// started on another stream.
    Unsent(CallStart, Status),
}

/// Hashes the ids of calls. They are given out here, one after the other, so nobody can choose some that collide.
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
        // Knuth's multiplicative hash: 2^64 by the golden ratio.
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
