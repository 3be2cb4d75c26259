//! What gRPC puts around each message: a flag and a length.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::fields;

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
}

impl Pieces {
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
    limit: usize,
    /// The fields of a message that hold messages with fields of their own.
    nested: &'static [u32],
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix is here.
    begun: usize,
    /// How much of the message after it is to come.
    left: usize,
    /// How much of an unfinished message is here, with its prefix.
    partial: usize,
    /// The same of a heavy message, without its prefix.
    heavy: Option<Pieces>,
}

impl Messages {
    pub(super) const fn new(limit: usize, nested: &'static [u32]) -> Self {
        Self { limit, nested, prefix: [0; PREFIX_BYTES], begun: 0, left: 0, partial: 0, heavy: None }
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
                    if self.left > self.limit {
                        return Err(Excess::Bytes(self.left));
                    }
                    self.heavy = (self.left > MAX_LIGHT_BYTES).then(Pieces::default);
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
                if let Some(mut heavy) = self.heavy.take() {
                    let len = heavy.remaining();
                    fields::count(&mut heavy, len, self.nested).ok_or(Excess::Fields)?;
                }
            }
        }
        Ok(())
    }

    /// How much of an unfinished message is here.
    pub(super) const fn partial(&self) -> usize {
        self.partial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let mut messages = Messages::new(1000, &[]);
            for data in stream.chunks(piece) {
                messages.take_in(&Bytes::copy_from_slice(data)).unwrap();
            }
            assert_eq!(messages.partial(), 0, "{piece}");
        }
        let mut messages = Messages::new(1000, &[]);
        messages.take_in(&Bytes::copy_from_slice(&stream[..20])).unwrap();
        assert_eq!(messages.partial(), 20 - 5 - 8);
    }

    #[test]
    fn a_large_message_is_noticed_before_it_arrives() {
        let mut messages = Messages::new(1000, &[]);
        assert_eq!(messages.take_in(&message(1001)[..5].to_vec().into()), Err(Excess::Bytes(1001)));
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
            let mut messages = Messages::new(1 << 20, &[]);
            let mut taken = stream.chunks(piece).map(|data| messages.take_in(&Bytes::copy_from_slice(data)));
            assert_eq!(taken.find_map(Result::err), Some(Excess::Fields), "{piece}");
            assert_eq!(taken.count(), 0);
        }
    }
}
