//! The answers that a worker stores in the [progress file](crate::launch::progress) for its host.
//!
//! The file has two halves with records. A record is a length of four bytes, followed by an encoded [`CallReply`]. The worker
//! fills one half, then clears the other half and continues there. Each answer therefore stays until the other half is full.
//! Numbers are in native byte order.

use prost::Message;

use crate::{
    launch::progress::{ANSWER_ENDS, ANSWERS, HALF_BYTES},
    pb::CallReply,
};

/// The size of the length before each record, in bytes.
pub const PREFIX_BYTES: usize = size_of::<u32>();
/// The maximum size of a stored answer, in bytes. A half holds several answers of this size.
pub const MAX_STORED_BYTES: usize = HALF_BYTES / 4;

/// Finds the stored answer of a call. Returns `None` if there is none, or if the content is malformed.
#[must_use]
pub fn find_answer(file: &[u8], call: u64) -> Option<CallReply> {
    let records_of = |half: usize| {
        let end = u64::from_ne_bytes(*file.get(ANSWER_ENDS[half]..)?.first_chunk()?);
        let start = ANSWERS + half * HALF_BYTES;
        let end = usize::try_from(end).ok().filter(|end| *end <= HALF_BYTES)?;
        Some(Records(file.get(start..start + end)?))
    };
    (0..2).filter_map(records_of).flatten().find(|reply| reply.id == call)
}

/// The answers in one half, up to the first malformed record.
struct Records<'a>(&'a [u8]);

impl Iterator for Records<'_> {
    type Item = CallReply;

    fn next(&mut self) -> Option<CallReply> {
        let (prefix, rest) = self.0.split_first_chunk::<PREFIX_BYTES>()?;
        let (record, rest) = rest.split_at_checked(usize::try_from(u32::from_ne_bytes(*prefix)).ok()?)?;
        self.0 = rest;
        CallReply::decode(record).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{launch::progress::RESERVED_BYTES, pb::CallValue};

    fn put(file: &mut [u8], half: usize, replies: &[CallReply]) {
        let mut offset = 0;
        for reply in replies {
            let record = reply.encode_to_vec();
            let start = ANSWERS + half * HALF_BYTES + offset;
            let prefix = u32::try_from(record.len()).unwrap().to_ne_bytes();
            file[start..start + PREFIX_BYTES].copy_from_slice(&prefix);
            file[start + PREFIX_BYTES..][..record.len()].copy_from_slice(&record);
            offset += PREFIX_BYTES + record.len();
        }
        file[ANSWER_ENDS[half]..][..8].copy_from_slice(&(offset as u64).to_ne_bytes());
    }

    fn reply(id: u64) -> CallReply {
        let value = CallValue { json: id.to_string().into_bytes().into(), ..CallValue::default() };
        CallReply { id, value: Some(value), ..CallReply::default() }
    }

    #[test]
    fn answers_are_found_in_both_halves() {
        let mut file = vec![0; RESERVED_BYTES];
        assert_eq!(find_answer(&file, 0), None);
        put(&mut file, 0, &[reply(7), reply(8)]);
        put(&mut file, 1, &[reply(5)]);
        assert_eq!([5, 7, 8].map(|id| find_answer(&file, id)), [5, 7, 8].map(|id| Some(reply(id))));
        assert_eq!(find_answer(&file, 6), None);
        // A cleared half hides its previous records.
        put(&mut file, 0, &[]);
        assert_eq!((find_answer(&file, 7), find_answer(&file, 5)), (None, Some(reply(5))));
        assert_eq!(find_answer(&file[..8], 7), None, "the file of another version");
    }

    proptest! {
        #[test]
        fn any_content_is_read_without_a_wrong_answer(
            ends in any::<[u16; 2]>(),
            start in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut file = vec![0; RESERVED_BYTES];
            for half in 0..2 {
                file[ANSWER_ENDS[half]..][..8].copy_from_slice(&u64::from(ends[half]).to_ne_bytes());
                file[ANSWERS + half * HALF_BYTES..][..start.len()].copy_from_slice(&start);
            }
            let found = find_answer(&file, 3);
            prop_assert!(found.is_none_or(|reply| reply.id == 3));
        }
    }
}
