//! [`Answers`]: stores the latest answers where the host can read them if a later call kills this process.
//!
//! Answers of brief calls share messages, so they leave the process up to about 30 us after their call has ended, while
//! later calls run. A message per answer would cost several times as much as such a call. A copy in memory that outlives
//! the process costs a few dozen nanoseconds.

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use prost::Message;
use snakepit_proto::{
    answers::{MAX_STORED_BYTES, PREFIX_BYTES},
    launch::progress::{ANSWER_ENDS, ANSWERS, HALF_BYTES, RESERVED_BYTES},
    mux::reply_size,
    pb::CallReply,
};

/// The length of each record fits its prefix.
const _: () = assert!(MAX_STORED_BYTES <= u32::MAX as usize);

/// The writer of the answers in the shared file. See [`snakepit_proto::answers`] for the layout.
#[derive(Debug)]
pub(crate) struct Answers {
    file: NonNull<u8>,
    /// The current half, and the end of its records.
    half: usize,
    end: usize,
    /// Whether all answers in the other half have been sent.
    is_other_sent: bool,
}

// SAFETY: the mapping belongs to the process, and no other code has a pointer to this part of it.
#[allow(unsafe_code)]
unsafe impl Send for Answers {}

impl Answers {
    /// Creates an empty store.
    ///
    /// # Safety
    /// `file` points to [`RESERVED_BYTES`] bytes that stay mapped until the process ends and are aligned to eight. No other code
    /// in the process accesses the answers.
    #[allow(unsafe_code)]
    pub(super) const unsafe fn new(file: NonNull<u8>) -> Self {
        Self { file, half: 0, end: 0, is_other_sent: true }
    }

    /// Stores an answer. Returns `false` if it is too long, or would replace answers that may not have been sent. Then
    /// all answers must be [sent](Self::mark_sent) before the next call begins.
    pub(crate) fn store(&mut self, reply: &CallReply) -> bool {
        // Cheaper than the exact length, which encoding computes anyway.
        let bound = reply_size(reply);
        if bound > MAX_STORED_BYTES {
            return false;
        }
        if self.end + PREFIX_BYTES + bound > HALF_BYTES {
            if !self.is_other_sent {
                return false;
            }
            self.half = 1 - self.half;
            self.end = 0;
            self.is_other_sent = false;
            self.end_of_half().store(0, Ordering::Relaxed);
            // Readers ignore the half before its content is overwritten.
            fence(Ordering::SeqCst);
        }
        let (prefix, mut record) = self.space(PREFIX_BYTES + bound).split_at_mut(PREFIX_BYTES);
        reply.encode_raw(&mut record);
        let length = bound - record.len();
        prefix.copy_from_slice(&(length as u32).to_ne_bytes());
        self.end += PREFIX_BYTES + length;
        // Publishes the complete record.
        self.end_of_half().store(self.end as u64, Ordering::Release);
        true
    }

    /// Records that all answers have been sent.
    pub(crate) const fn mark_sent(&mut self) {
        self.is_other_sent = true;
    }

    #[allow(unsafe_code)]
    const fn end_of_half(&self) -> &AtomicU64 {
        // SAFETY: inside the mapping and aligned, and only accessed as an atomic.
        unsafe { AtomicU64::from_ptr(self.file.as_ptr().add(ANSWER_ENDS[self.half]).cast()) }
    }

    /// Returns `length` bytes after the last record.
    #[allow(unsafe_code)]
    fn space(&mut self, length: usize) -> &mut [u8] {
        assert!(self.end + length <= HALF_BYTES, "a record is longer than its half");
        let start = ANSWERS + self.half * HALF_BYTES + self.end;
        debug_assert!(start + length <= RESERVED_BYTES);
        // SAFETY: inside the mapping, as checked above, and borrowed from the only owner of a pointer to it.
        unsafe { std::slice::from_raw_parts_mut(self.file.as_ptr().add(start), length) }
    }
}

#[cfg(test)]
mod tests {
    use snakepit_proto::{answers::find_answer, pb::CallValue};

    use super::*;

    fn reply(id: u64, bytes: usize) -> CallReply {
        let value = CallValue { json: vec![b'1'; bytes].into(), ..CallValue::default() };
        CallReply { id, value: Some(value), ..CallReply::default() }
    }

    #[allow(unsafe_code)]
    fn in_memory() -> (Answers, impl Fn(u64) -> Option<CallReply>) {
        let words = RESERVED_BYTES.div_ceil(size_of::<u64>());
        let file = NonNull::from(Box::leak(vec![0_u64; words].into_boxed_slice())).cast::<u8>();
        // SAFETY: the memory is leaked, and read only while the writer is idle.
        let content = move || unsafe { std::slice::from_raw_parts(file.as_ptr(), RESERVED_BYTES) };
        // SAFETY: as above.
        (unsafe { Answers::new(file) }, move |id| find_answer(content(), id))
    }

    #[test]
    fn the_latest_answers_are_kept() {
        let (mut answers, find) = in_memory();
        for id in 1..=2500 {
            assert!(answers.store(&reply(id, 40)));
            answers.mark_sent();
            // At least half of the space holds the latest answers.
            for age in [0, 1, 300] {
                assert_eq!(
                    find(id.saturating_sub(age)).map(|reply| reply.id),
                    id.checked_sub(age).filter(|id| *id > 0)
                );
            }
        }
        assert_eq!(find(1), None);
    }

    #[test]
    fn unsent_answers_are_not_overwritten() {
        let (mut answers, find) = in_memory();
        let mut last = 0;
        while answers.store(&reply(last + 1, 1000)) {
            last += 1;
        }
        assert!((55..66).contains(&last), "{last}");
        assert!((1..=last).all(|id| find(id).is_some()));
        assert!(!answers.store(&reply(last + 1, MAX_STORED_BYTES)), "the answer is too long");
        answers.mark_sent();
        assert!(answers.store(&reply(last + 1, 1000)));
        assert!(find(last + 1).is_some() && find(last).is_some() && find(1).is_none());
    }
}
