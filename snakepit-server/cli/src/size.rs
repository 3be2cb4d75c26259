//! Parses and converts sizes on the command line.

use bytesize::ByteSize;

/// The number of bytes.
pub(crate) fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// Parses `4096`, `10MB` or `256MiB`.
pub(crate) fn parse(value: &str) -> Result<ByteSize, String> {
    value.trim().parse().map_err(|_| {
        "not a size; expected a number of bytes, or a number and a unit, such as 4096, 10MB or 256MiB"
            .to_owned()
    })
}

/// Parses a size of at least one byte.
pub(crate) fn parse_positive(value: &str) -> Result<ByteSize, String> {
    match parse(value)? {
        ByteSize(0) => Err("it must be at least 1 byte, because no call fits into 0 bytes".to_owned()),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_may_have_a_unit() {
        assert_eq!(parse("4096"), Ok(ByteSize(4096)));
        assert_eq!(parse("10MB"), Ok(ByteSize::mb(10)));
        assert_eq!(parse("0.5 MiB"), Ok(ByteSize::kib(512)));
        assert_eq!((parse("0"), parse_positive("1")), (Ok(ByteSize(0)), Ok(ByteSize(1))));
        for bad in ["", " ", "-1", "lots", "1 parsec", "MiB", "1MiB2"] {
            assert!(parse(bad).unwrap_err().contains("256MiB"), "{bad}");
        }
        assert!(parse_positive("0KiB").unwrap_err().contains("at least 1"));
    }
}
