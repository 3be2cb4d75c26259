//! gRPC message framing. A prefix of five bytes precedes each message: a compression flag and the length of the message.

use std::{collections::VecDeque, task::Poll};

use bytes::{Buf, Bytes};
use http_body::Frame;
use tonic::Status;

use super::field_count::count_fields;
use crate::{limits::MessageTooLarge, status::message_too_large};

/// The memory that a received segment costs in addition to its bytes, in bytes. Many tiny segments therefore also exhaust the budget.
pub(super) const SEGMENT_OVERHEAD: usize = 128;
/// The length of a message prefix, in bytes.
pub(super) const PREFIX_BYTES: usize = 5;
/// Messages larger than this size, in bytes, are heavy: the host counts their fields first, and then decodes them on a blocking
/// thread.
pub(super) const MAX_LIGHT_BYTES: usize = 256 * 1024;

/// The result of `poll_frame` for the request and response bodies of this module.
pub(super) type PolledFrame = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// The limits of one message.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageLimits {
    pub(super) bytes: usize,
    /// The tags of fields that hold messages with many fields. The fields of those messages count too.
    pub(super) nested: &'static [u32],
}

impl MessageLimits {
    /// Rejects a message that is too large.
    pub(super) const fn check_size(self, size: usize) -> Result<(), MessageTooLarge> {
        if size > self.bytes { Err(MessageTooLarge::Bytes(size)) } else { Ok(()) }
    }

    /// Rejects a heavy message with too many fields.
    pub(super) fn check_fields(self, message: &mut impl Buf) -> Result<(), MessageTooLarge> {
        let size = message.remaining();
        if size > MAX_LIGHT_BYTES && count_fields(message, size, self.nested).is_none() {
            return Err(MessageTooLarge::Fields);
        }
        Ok(())
    }

    /// The status for a message that was rejected.
    pub(super) fn status(self, error: MessageTooLarge) -> Status {
        message_too_large(error, self.bytes)
    }
}

/// The size that the prefix of a message announces. `None` while the prefix is incomplete.
pub(super) fn announced_size(mut bytes: impl Iterator<Item = u8>) -> Option<usize> {
    // The compression flag.
    bytes.next()?;
    let mut size = 0_usize;
    for _ in 1..PREFIX_BYTES {
        size = size << 8 | usize::from(bytes.next()?);
    }
    Some(size)
}

/// Bytes in several segments, as they arrived.
#[derive(Debug, Default)]
pub(super) struct Segments {
    segments: VecDeque<Bytes>,
    remaining: usize,
}

impl Segments {
    pub(super) fn push(&mut self, segment: Bytes) {
        self.remaining += segment.len();
        self.segments.push_back(segment);
    }

    /// Takes the first message, with its prefix. `None` while it is incomplete.
    pub(super) fn take_message(&mut self) -> Option<Self> {
        let size = PREFIX_BYTES + announced_size(self.segments.iter().flatten().copied())?;
        if self.remaining < size {
            return None;
        }
        let mut message = Self::default();
        while message.remaining < size {
            let first = self.segments.front_mut()?;
            let segment = first.split_to(first.len().min(size - message.remaining));
            if first.is_empty() {
                self.segments.pop_front();
            }
            self.remaining -= segment.len();
            message.push(segment);
        }
        Some(message)
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.chunk().first() == Some(&1)
    }

    pub(super) fn into_inner(self) -> VecDeque<Bytes> {
        self.segments
    }
}

impl Buf for Segments {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.segments.iter().find(|segment| !segment.is_empty()).map_or(&[], |segment| segment)
    }

    fn advance(&mut self, mut count: usize) {
        self.remaining -= count;
        while let Some(first) = self.segments.front_mut() {
            if count < first.len() {
                return first.advance(count);
            }
            count -= first.len();
            self.segments.pop_front();
        }
    }
}

/// Tracks the message boundaries in a request's data and checks the limits of each message.
#[derive(Debug)]
pub(super) struct MessageTracker {
    limits: MessageLimits,
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the current prefix that have arrived.
    prefix_len: usize,
    /// Bytes of the current message, after its prefix, that have not arrived.
    missing_bytes: usize,
    /// Bytes of the current message that have arrived, including its prefix.
    partial_bytes: usize,
    complete_messages: usize,
    /// The current message without its prefix, if it is heavy and not compressed.
    heavy: Option<Segments>,
}

impl MessageTracker {
    pub(super) const fn new(limits: MessageLimits) -> Self {
        Self {
            limits,
            prefix: [0; PREFIX_BYTES],
            prefix_len: 0,
            missing_bytes: 0,
            partial_bytes: 0,
            complete_messages: 0,
            heavy: None,
        }
    }

    /// Tracks data that arrived.
    ///
    /// # Errors
    /// A message exceeds its limits. Its size is checked as soon as the prefix is complete.
    pub(super) fn track(&mut self, data: &Bytes) -> Result<(), MessageTooLarge> {
        let mut at = 0;
        while at < data.len() {
            let available = data.len() - at;
            let taken_bytes = if self.prefix_len < PREFIX_BYTES {
                let prefix_bytes = available.min(PREFIX_BYTES - self.prefix_len);
                self.prefix[self.prefix_len..self.prefix_len + prefix_bytes]
                    .copy_from_slice(&data[at..at + prefix_bytes]);
                self.prefix_len += prefix_bytes;
                if self.prefix_len == PREFIX_BYTES {
                    self.missing_bytes = announced_size(self.prefix.into_iter()).unwrap_or_default();
                    self.limits.check_size(self.missing_bytes)?;
                    // The fields of a compressed message are counted after decompression.
                    let is_counted = self.missing_bytes > MAX_LIGHT_BYTES && self.prefix[0] == 0;
                    self.heavy = is_counted.then(Segments::default);
                }
                prefix_bytes
            } else {
                let message_bytes = available.min(self.missing_bytes);
                self.missing_bytes -= message_bytes;
                if let Some(heavy) = &mut self.heavy {
                    heavy.push(data.slice(at..at + message_bytes));
                }
                message_bytes
            };
            (at, self.partial_bytes) = (at + taken_bytes, self.partial_bytes + taken_bytes);
            if self.prefix_len == PREFIX_BYTES && self.missing_bytes == 0 {
                (self.prefix_len, self.partial_bytes) = (0, 0);
                self.complete_messages += 1;
                if let Some(mut heavy) = self.heavy.take() {
                    self.limits.check_fields(&mut heavy)?;
                }
            }
        }
        Ok(())
    }

    /// The number of complete messages.
    pub(super) const fn complete_messages(&self) -> usize {
        self.complete_messages
    }

    /// The announced size of the unfinished message, including its prefix, in bytes. While the prefix is incomplete, the number of
    /// bytes received.
    pub(super) const fn announced_bytes(&self) -> usize {
        self.partial_bytes + self.missing_bytes
    }

    /// Bytes of the unfinished message that have arrived, including its prefix.
    pub(super) const fn partial_bytes(&self) -> usize {
        self.partial_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_FIELDS;

    fn tracker(bytes: usize) -> MessageTracker {
        MessageTracker::new(MessageLimits { bytes, nested: &[] })
    }

    fn message(size: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(size).unwrap().to_be_bytes());
        bytes.extend(std::iter::repeat_n(7, size));
        bytes
    }

    #[test]
    fn message_boundaries_do_not_depend_on_segmentation() {
        let stream = [message(0), message(3), message(1000)].concat();
        for piece in [1, 2, 7, 500, stream.len()] {
            let mut tracker = tracker(1000);
            for data in stream.chunks(piece) {
                tracker.track(&Bytes::copy_from_slice(data)).unwrap();
            }
            assert_eq!((tracker.complete_messages(), tracker.partial_bytes()), (3, 0), "{piece}");
        }
        let mut tracker = tracker(1000);
        tracker.track(&Bytes::copy_from_slice(&stream[..20])).unwrap();
        assert_eq!(tracker.partial_bytes(), 20 - 5 - 8);
    }

    #[test]
    fn a_large_message_is_rejected_by_its_prefix() {
        let mut tracker = tracker(1000);
        assert_eq!(tracker.track(&message(1001)[..5].to_vec().into()), Err(MessageTooLarge::Bytes(1001)));
        assert_eq!(announced_size([0, 0, 0, 1].into_iter()), None);
        assert_eq!(announced_size([1, 0, 0, 1, 2].into_iter()), Some(258));
    }

    #[test]
    fn a_message_with_too_many_fields_is_rejected_once_it_is_complete() {
        // Field 1, repeated, with an empty message each.
        let fields = [0x0a, 0].repeat(MAX_FIELDS + 1);
        let mut stream = message(fields.len());
        stream.truncate(5);
        stream.extend(fields);
        for piece in [1000, stream.len()] {
            let mut tracker = tracker(1 << 20);
            let mut results = stream.chunks(piece).map(|data| tracker.track(&Bytes::copy_from_slice(data)));
            assert_eq!(results.find_map(Result::err), Some(MessageTooLarge::Fields), "{piece}");
            assert_eq!(results.count(), 0);
        }
    }

    #[test]
    fn whole_messages_are_taken_for_every_segmentation() {
        let stream = [message(0), message(3), message(1000)].concat();
        for piece in [1, 2, 7, 500, stream.len()] {
            let (mut pieces, mut sizes, mut taken) = (Segments::default(), Vec::new(), Vec::new());
            for data in stream.chunks(piece) {
                pieces.push(Bytes::copy_from_slice(data));
                while let Some(message) = pieces.take_message() {
                    sizes.push(message.remaining());
                    taken.extend(message.into_inner().into_iter().flatten());
                }
            }
            assert_eq!((sizes, taken.len()), (vec![5, 8, 1005], stream.len()), "{piece}");
            assert_eq!(taken, stream);
        }
    }
}
