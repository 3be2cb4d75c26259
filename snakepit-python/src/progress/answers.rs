//! [`Answers`]: the latest answers, kept where the host can read them if a later call takes this process down.
//!
//! Answers of brief calls share messages, so they leave up to some 30 us after their call has ended, while later calls run. A
//! message for each would cost several times what such a call costs. A copy in memory that outlives the process costs a
//! few dozen nanoseconds.

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use prost::Message;
use snakepit_proto::{
    answers::{MAX_KEPT_BYTES, PREFIX_BYTES},
    launch::progress::{ANSWER_ENDS, ANSWERS, HALF_BYTES, STACK},
    pb::CallReply,
};

/// The writing end of the answers in the shared file. See [`snakepit_proto::answers`] for the layout.
#[derive(Debug)]
pub(crate) struct Answers {
    file: NonNull<u8>,
    /// The half that is being filled, and how far.
    half: usize,
    end: usize,
    /// Whether everything that stands in the other half was sent: all that was answered before a moment in which this half
    /// was the current one.
    is_other_sent: bool,
}

// SAFETY: the mapping belongs to the process, and nobody else has a pointer to this part of it.
#[allow(unsafe_code)]
unsafe impl Send for Answers {}

impl Answers {
    /// No answers yet.
    ///
    /// # Safety
    /// `file` points to [`STACK`] bytes that stay mapped for the life of the process, aligned to eight, of which nobody
    /// else in it accesses the answers.
    #[allow(unsafe_code)]
    pub(super) const unsafe fn new(file: NonNull<u8>) -> Self {
        Self { file, half: 0, end: 0, is_other_sent: true }
    }

    /// Keeps an answer. `false` when it is too long, or would take the place of some that may not have been sent: then
    /// everything is to be [sent](Self::sent) before the next call begins.
    pub(crate) fn keep(&mut self, reply: &CallReply) -> bool {
        let length = reply.encoded_len();
        let Some(prefix) = u32::try_from(length).ok().filter(|_| length <= MAX_KEPT_BYTES) else {
            return false;
        };
        if self.end + PREFIX_BYTES + length > HALF_BYTES {
            if !self.is_other_sent {
                return false;
            }
            self.half = 1 - self.half;
            self.end = 0;
            self.is_other_sent = false;
            self.end_of_half().store(0, Ordering::Relaxed);
            // What stood there is not read any more when it is written over.
            fence(Ordering::SeqCst);
        }
        let mut record = self.space(PREFIX_BYTES + length);
        record[..PREFIX_BYTES].copy_from_slice(&prefix.to_ne_bytes());
        record = &mut record[PREFIX_BYTES..];
        reply.encode_raw(&mut record);
        self.end += PREFIX_BYTES + length;
        // The record is whole before it is there.
        self.end_of_half().store(self.end as u64, Ordering::Release);
        true
    }

    /// Everything that was answered has been sent.
    pub(crate) const fn sent(&mut self) {
        self.is_other_sent = true;
    }

    #[allow(unsafe_code)]
    const fn end_of_half(&self) -> &AtomicU64 {
        // SAFETY: inside of the mapping and aligned, and accessed as an atomic only.
        unsafe { AtomicU64::from_ptr(self.file.as_ptr().add(ANSWER_ENDS[self.half]).cast()) }
    }

    /// So many bytes from the end of what is filled.
    #[allow(unsafe_code)]
    fn space(&mut self, length: usize) -> &mut [u8] {
        assert!(self.end + length <= HALF_BYTES, "a record is longer than its half");
        let start = ANSWERS + self.half * HALF_BYTES + self.end;
        debug_assert!(start + length <= STACK);
        // SAFETY: inside of the mapping, as just checked, and borrowed from the only one who has a pointer to it.
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
        let words = STACK.div_ceil(size_of::<u64>());
        let file = NonNull::from(Box::leak(vec![0_u64; words].into_boxed_slice())).cast::<u8>();
        // SAFETY: it is leaked, and read only while the writer rests.
        let content = move || unsafe { std::slice::from_raw_parts(file.as_ptr(), STACK) };
        // SAFETY: as above.
        (unsafe { Answers::new(file) }, move |id| find_answer(content(), id))
    }

    #[test]
    fn the_latest_answers_are_kept() {
        let (mut answers, find) = in_memory();
        for id in 1..=2500 {
            assert!(answers.keep(&reply(id, 40)));
            answers.sent();
            // At least half of the space holds what came last.
            for back in [0, 1, 300] {
                assert_eq!(
                    find(id.saturating_sub(back)).map(|reply| reply.id),
                    id.checked_sub(back).filter(|id| *id > 0)
                );
            }
        }
        assert_eq!(find(1), None);
    }

    #[test]
    fn nothing_unsent_is_written_over() {
        let (mut answers, find) = in_memory();
        let mut last = 0;
        while answers.keep(&reply(last + 1, 1000)) {
            last += 1;
        }
        assert!((55..66).contains(&last), "{last}");
        assert!((1..=last).all(|id| find(id).is_some()));
        assert!(!answers.keep(&reply(last + 1, MAX_KEPT_BYTES)), "it is too long");
        answers.sent();
        assert!(answers.keep(&reply(last + 1, 1000)));
        assert!(find(last + 1).is_some() && find(last).is_some() && find(1).is_none());
    }
}
