//! [`ProgressFile`], the state of a worker's calls that the host needs after the worker's death (ADR 15).
//!
//! The worker maps the file into its memory and writes to it:
//!
//! - the id of the last call that began. A worker runs multiplexed calls in order of their ids, so this shows which calls
//!   have begun. Recording it costs one memory store per call.
//! - answers that the worker may not have sent.
//! - the output of the last call that printed. The worker attributes output to calls, so that no caller receives lines of
//!   another call.
//! - Python's stacks, if a fatal signal killed the worker.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use snakepit_proto::{answers, launch::progress as layout, pb::CallReply};

use crate::escaping::escape;

/// The maximum number of bytes to read of the stacks.
const MAX_STACK_BYTES: usize = 16 * 1024;
/// The maximum number of stack lines. The thread that crashed comes first.
const MAX_STACK_LINES: usize = 40;

/// The host's handle to the file. Clones share it. It stays readable after the file is removed.
#[derive(Debug, Clone, Default)]
pub(super) struct ProgressFile(Option<Arc<File>>);

impl ProgressFile {
    /// Creates an empty file and reserves its space on the disk.
    ///
    /// # Errors
    /// If the file cannot be created, or the disk is full.
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // Writes zeros instead of extending the file: the worker maps it, and on a full disk, a write to a page without a block
        // would raise SIGBUS.
        file.write_all_at(&[0; layout::RESERVED_BYTES], 0)?;
        Ok(Self(Some(Arc::new(file))))
    }

    /// Whether a call may have begun. True if there is no file or it cannot be read.
    pub(super) fn has_begun(&self, id: u64) -> bool {
        self.read_u64(layout::BEGUN).is_none_or(|last| id <= last)
    }

    /// The last lines that a call printed, oldest first, at most `limit`. Empty if a later call has printed.
    pub(super) fn output_of(&self, call: u64, limit: usize) -> Vec<String> {
        let read = || {
            let length = self.read_u64(layout::OUTPUT_LENGTH)?;
            (self.read_u64(layout::OUTPUT_CALL)? == call && length > 0).then_some(())?;
            let mut ring = self.read_bytes(layout::OUTPUT, layout::OUTPUT_BYTES)?;
            ring.resize(layout::OUTPUT_BYTES, 0);
            let length = usize::try_from(length).ok()?;
            if length <= layout::OUTPUT_BYTES {
                ring.truncate(length);
            } else {
                ring.rotate_left(length % layout::OUTPUT_BYTES);
            }
            Some((ring, length > layout::OUTPUT_BYTES))
        };
        let Some((text, has_wrapped)) = read() else { return Vec::new() };
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<_> = text.lines().map(|line| escape(line.trim_end()).into_owned()).collect();
        if has_wrapped && lines.len() > 1 {
            // The beginning of the oldest line was overwritten.
            lines.remove(0);
        }
        let surplus = lines.len().saturating_sub(limit);
        lines.split_off(surplus)
    }

    /// The stacks that Python's `faulthandler` wrote. Empty if no fatal signal arrived.
    pub(super) fn stack(&self) -> Vec<String> {
        let Some(text) = self.read_bytes(layout::STACKS, MAX_STACK_BYTES) else { return Vec::new() };
        let text = String::from_utf8_lossy(&text);
        text.lines().take(MAX_STACK_LINES).map(|line| escape(line.trim_end()).into_owned()).collect()
    }

    fn read_u64(&self, offset: usize) -> Option<u64> {
        let mut number = [0; size_of::<u64>()];
        self.0.as_ref()?.read_exact_at(&mut number, offset as u64).ok()?;
        Some(u64::from_ne_bytes(number))
    }

    /// Reads at most `limit` bytes. Fewer only at the end of the file.
    fn read_bytes(&self, offset: usize, limit: usize) -> Option<Vec<u8>> {
        let file = self.0.as_ref()?;
        let mut bytes = vec![0; limit];
        let mut filled = 0;
        while filled < limit {
            match file.read_at(&mut bytes[filled..], (offset + filled) as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        bytes.truncate(filled);
        Some(bytes)
    }

    /// The reply that ended a call, if the worker stored it.
    pub(super) fn stored_reply(&self, id: u64) -> Option<CallReply> {
        answers::find_answer(&self.read_bytes(0, layout::RESERVED_BYTES)?, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, offset: usize, bytes: &[u8]) {
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset as u64).unwrap();
    }

    #[test]
    fn a_removed_file_stays_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let progress = ProgressFile::create(&path).unwrap();
        assert!(!progress.has_begun(1));
        write(&path, layout::BEGUN, &3_u64.to_ne_bytes());
        std::fs::remove_file(&path).unwrap();
        assert!(progress.has_begun(3));
        assert!(!progress.has_begun(4));
        assert!(ProgressFile::default().has_begun(1), "without a file, a call may have begun");
    }

    #[test]
    fn the_file_reserves_its_space() {
        use std::os::unix::fs::MetadataExt as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let progress = ProgressFile::create(&path).unwrap();
        progress.0.as_ref().unwrap().sync_all().unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), layout::RESERVED_BYTES as u64);
        assert!(metadata.blocks() * 512 >= layout::RESERVED_BYTES as u64, "{} blocks", metadata.blocks());
    }

    #[test]
    fn output_is_attributed_to_its_call() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let progress = ProgressFile::create(&path).unwrap();
        assert!(progress.output_of(0, 20).is_empty() && progress.stack().is_empty());
        write(&path, layout::OUTPUT_CALL, &7_u64.to_ne_bytes());
        write(&path, layout::OUTPUT_LENGTH, &8_u64.to_ne_bytes());
        write(&path, layout::OUTPUT, b"one\ntw\x1b\n");
        assert_eq!(progress.output_of(7, 20), ["one", "tw\\u{1b}"]);
        assert_eq!(progress.output_of(7, 1), ["tw\\u{1b}"]);
        assert!(progress.output_of(8, 20).is_empty());
        // The ring has wrapped: its oldest byte is the third one.
        let length = layout::OUTPUT_BYTES as u64 + 2;
        write(&path, layout::OUTPUT_LENGTH, &length.to_ne_bytes());
        write(
            &path,
            layout::OUTPUT,
            &[b"d\nolder\nnew".as_slice(), &vec![b'-'; layout::OUTPUT_BYTES]].concat()
                [..layout::OUTPUT_BYTES],
        );
        let lines = progress.output_of(7, 20);
        assert_eq!(
            (lines.len(), lines[0].starts_with("new---"), lines[0].ends_with("---d")),
            (1, true, true)
        );
        write(&path, layout::STACKS, b"Fatal Python error: Segmentation fault\n\nCurrent thread\n");
        assert_eq!(progress.stack(), ["Fatal Python error: Segmentation fault", "", "Current thread"]);
        assert!(ProgressFile::default().output_of(7, 20).is_empty());
    }
}
