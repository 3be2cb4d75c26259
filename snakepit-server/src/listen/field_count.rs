//! Counts the fields of an encoded message before it is decoded, because two bytes on the wire can become hundreds in memory.

use bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::limits::MAX_FIELDS;

/// Counts the fields of the next `len` bytes, including those of the messages in the fields `nested`. Returns `None` above
/// [`MAX_FIELDS`]. Malformed data ends the count, and the decoder rejects it later.
pub(super) fn count_fields(buf: &mut impl Buf, len: usize, nested: &[u32]) -> Option<usize> {
    let mut fields = 0;
    // A message ends when this many bytes remain in the buffer.
    let (outer_end, mut nested_end) = (buf.remaining().saturating_sub(len), None);
    while buf.remaining() > outer_end {
        if nested_end.is_some_and(|end| buf.remaining() <= end) {
            nested_end = None;
        }
        fields += 1;
        if fields > MAX_FIELDS {
            return None;
        }
        let Ok((tag, wire_type)) = decode_key(buf) else { break };
        let size = match wire_type {
            WireType::Varint => {
                if decode_varint(buf).is_err() {
                    break;
                }
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => match decode_varint(buf).map(usize::try_from) {
                Ok(Ok(size)) => size,
                _ => break,
            },
            WireType::StartGroup | WireType::EndGroup => break,
        };
        if size > buf.remaining() {
            break;
        }
        if wire_type == WireType::LengthDelimited && nested_end.is_none() && nested.contains(&tag) {
            nested_end = Some(buf.remaining() - size);
        } else {
            buf.advance(size);
        }
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use snakepit_proto::pb;

    use super::*;

    fn field_count(message: &impl Message, nested: &[u32]) -> Option<usize> {
        let encoded = message.encode_to_vec();
        count_fields(&mut encoded.as_slice(), encoded.len(), nested)
    }

    #[test]
    fn fields_are_counted_two_messages_deep() {
        let argument = || pb::CallArgument { name: "x".to_owned(), value: None };
        let call = |id| pb::CallStart { id, arguments: vec![argument(); 3], ..Default::default() };
        let batch =
            pb::CallBatch { calls: vec![call(1), call(2)], cancels: vec![1, 2], ..Default::default() };
        assert_eq!(field_count(&batch, &[1]), Some(2 * (1 + 1 + 3) + 1));
        assert_eq!(field_count(&batch, &[]), Some(3));
    }

    #[test]
    fn a_message_with_too_many_fields_has_no_count() {
        let calls =
            pb::CallBatch { calls: vec![pb::CallStart::default(); MAX_FIELDS + 1], ..Default::default() };
        assert_eq!(field_count(&calls, &[1]), None);
        let arguments = vec![pb::CallArgument::default(); MAX_FIELDS];
        let call = pb::CallStart { arguments, ..Default::default() };
        assert_eq!(field_count(&pb::CallBatch { calls: vec![call], ..Default::default() }, &[1]), None);
        let large = pb::ExecuteToolRequest {
            binary_parameters: [("x".to_owned(), vec![8; 1 << 24].into())].into(),
            ..Default::default()
        };
        assert_eq!(field_count(&large, &[]), Some(1));
    }

    #[test]
    fn malformed_data_ends_the_count() {
        for bytes in [&[0xff; 20][..], &[0x0a, 0xff, 0xff, 0x03], &[0x0b, 1, 2], &[0x09, 1]] {
            assert!(count_fields(&mut &bytes[..], bytes.len(), &[1]).is_some());
        }
    }
}
