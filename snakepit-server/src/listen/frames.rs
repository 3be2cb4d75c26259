//! What gRPC puts around each message: a flag and a length.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::held::MessageLimits;

/// What a piece of data counts beyond its content, in bytes: small ones must not fill the memory either.
pub(super) const FRAME_BYTES: usize = 128;
/// The bytes before each message.
pub(super) const PREFIX_BYTES: usize = 5;

/// The size of the message that begins with these bytes, if they are enough to tell.
pub(super) fn announced(mut bytes: impl Iterator<Item = u8>) -> Option<usize> {
    // The flag says whether it is compressed.
    bytes.next()?;
    let mut size = 0_usize;
    for _ in 1..PREFIX_BYTES {
        size = size << 8 | usize::from(bytes.next()?);
    }
    Some(size)
}

/// Larger messages, in bytes, are heavy: they are kept until their fields are counted, and not decoded on the runtime's thread.
pub(super) const MAX_LIGHT_BYTES: usize = 256 * 1024;

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    Bytes(usize),
    Fields,
}

/// Bytes in pieces.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    remaining: usize,
}

impl Pieces {
    pub(super) fn push(&mut self, piece: Bytes) {
        self.remaining += piece.len();
        self.pieces.push_back(piece);
    }

    /// The message at the front, with its prefix, once all of it is here.
    pub(super) fn take_message(&mut self) -> Option<Self> {
        let size = PREFIX_BYTES + announced(self.pieces.iter().flatten().copied())?;
        if self.remaining < size {
            return None;
        }
        let mut message = Self::default();
        while message.remaining < size {
            let first = self.pieces.front_mut()?;
            let piece = first.split_to(first.len().min(size - message.remaining));
            if first.is_empty() {
                self.pieces.pop_front();
            }
            self.remaining -= piece.len();
            message.push(piece);
        }
        Some(message)
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.chunk().first() == Some(&1)
    }

    pub(super) fn into_inner(self) -> VecDeque<Bytes> {
        self.pieces
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.iter().find(|piece| !piece.is_empty()).map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        self.remaining -= count;
        while let Some(first) = self.pieces.front_mut() {
            if count < first.len() {
                return first.advance(count);
            }
            count -= first.len();
            self.pieces.pop_front();
        }
    }
}

/// Follows a stream of messages.
#[derive(Debug)]
pub(super) struct Messages {
    limits: MessageLimits,
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix is here.
    begun: usize,
    /// How much of the message after it is to come.
    left: usize,
    /// How much of an unfinished message is here, with its prefix.
    partial: usize,
    /// How many are complete.
    complete: usize,
    /// The unfinished message without its prefix, if it is heavy.
    heavy: Option<Pieces>,
}

impl Messages {
    pub(super) const fn new(limits: MessageLimits) -> Self {
        Self { limits, prefix: [0; PREFIX_BYTES], begun: 0, left: 0, partial: 0, complete: 0, heavy: None }
    }

    /// Takes in what arrived.
    pub(super) fn take_in(&mut self, data: &Bytes) -> Result<(), Excess> {
        let mut at = 0;
        while at < data.len() {
            let here = data.len() - at;
            let taken = if self.begun < PREFIX_BYTES {
                let taken = here.min(PREFIX_BYTES - self.begun);
                self.prefix[self.begun..self.begun + taken].copy_from_slice(&data[at..at + taken]);
                self.begun += taken;
                if self.begun == PREFIX_BYTES {
                    self.left = announced(self.prefix.into_iter()).unwrap_or_default();
                    self.limits.check_size(self.left)?;
                    // The fields of one that is compressed are counted when it is opened.
                    let is_counted = self.left > MAX_LIGHT_BYTES && self.prefix[0] == 0;
                    self.heavy = is_counted.then(Pieces::default);
                }
                taken
            } else {
                let taken = here.min(self.left);
                self.left -= taken;
                if let Some(heavy) = &mut self.heavy {
                    heavy.push(data.slice(at..at + taken));
                }
                taken
            };
            (at, self.partial) = (at + taken, self.partial + taken);
            if self.begun == PREFIX_BYTES && self.left == 0 {
                (self.begun, self.partial) = (0, 0);
                self.complete += 1;
                if let Some(mut heavy) = self.heavy.take() {
                    self.limits.check_fields(&mut heavy)?;
                }
            }
        }
        Ok(())
    }

    /// How many messages are complete.
    pub(super) const fn complete(&self) -> usize {
        self.complete
    }

    /// How much of an unfinished message is here.
    pub(super) const fn partial(&self) -> usize {
        self.partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::fields;

    fn messages(bytes: usize) -> Messages {
        Messages::new(MessageLimits { bytes, nested: &[] })
    }

    fn message(size: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(size).unwrap().to_be_bytes());
        bytes.extend(std::iter::repeat_n(7, size));
        bytes
    }

    #[test]
    fn messages_are_followed_however_they_are_cut() {
        let stream = [message(0), message(3), message(1000)].concat();
        for piece in [1, 2, 7, 500, stream.len()] {
            let mut followed = messages(1000);
            for data in stream.chunks(piece) {
                followed.take_in(&Bytes::copy_from_slice(data)).unwrap();
            }
            assert_eq!((followed.complete(), followed.partial()), (3, 0), "{piece}");
        }
        let mut followed = messages(1000);
        followed.take_in(&Bytes::copy_from_slice(&stream[..20])).unwrap();
        assert_eq!(followed.partial(), 20 - 5 - 8);
    }

    #[test]
    fn a_large_message_is_noticed_before_it_arrives() {
        let mut followed = messages(1000);
        assert_eq!(followed.take_in(&message(1001)[..5].to_vec().into()), Err(Excess::Bytes(1001)));
        assert_eq!(announced([0, 0, 0, 1].into_iter()), None);
        assert_eq!(announced([1, 0, 0, 1, 2].into_iter()), Some(258));
    }

    #[test]
    fn a_message_of_too_many_fields_is_noticed_when_it_is_complete() {
        // Empty messages in field 1.
        let fields = [0x0a, 0].repeat(fields::MAX_FIELDS + 1);
        let mut stream = message(fields.len());
        stream.truncate(5);
        stream.extend(fields);
        for piece in [1000, stream.len()] {
            let mut followed = messages(1 << 20);
            let mut taken = stream.chunks(piece).map(|data| followed.take_in(&Bytes::copy_from_slice(data)));
            assert_eq!(taken.find_map(Result::err), Some(Excess::Fields), "{piece}");
            assert_eq!(taken.count(), 0);
        }
    }

    #[test]
    fn whole_messages_are_taken_out_however_they_are_cut() {
        let stream = [message(0), message(3), message(1000)].concat();
        for piece in [1, 2, 7, 500, stream.len()] {
            let (mut pieces, mut sizes, mut taken) = (Pieces::default(), Vec::new(), Vec::new());
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
