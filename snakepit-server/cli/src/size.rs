//! Converts sizes of the command line.

use bytesize::ByteSize;

/// The number of bytes.
pub(crate) fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}
