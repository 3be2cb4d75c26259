//! [`CallOutput`]: stores the output of the running call in a file that outlives this process, so that the error of a
//! call that kills its worker contains that call's last output.
//!
//! A call without output costs one store.

use std::{
    fs::OpenOptions,
    io::{self, Seek, SeekFrom},
    num::NonZeroUsize,
    os::fd::{IntoRawFd, RawFd},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use snakepit_proto::launch::progress as layout;
use snakepit_registry::CallId;

/// The call that the executor runs, or ran last.
static CURRENT: AtomicU64 = AtomicU64::new(0);

/// Records the call that begins now.
pub(crate) fn begin(call: CallId) {
    CURRENT.store(call.as_u64(), Ordering::Relaxed);
}

/// The section of the file for output.
#[derive(Debug)]
pub(crate) struct CallOutput {
    path: PathBuf,
    /// The start of the mapping.
    start: *mut u8,
    /// The process that may write. Forks share the mapping.
    pid: u32,
    /// Held while bytes are written.
    writing: Mutex<()>,
}

// SAFETY: the mapping lives as long as the process. Its numbers are accessed as atomics. Only `append` writes its bytes,
// with `writing` locked, and this process never reads them.
#[allow(unsafe_code)]
unsafe impl Send for CallOutput {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for CallOutput {}

impl CallOutput {
    /// Maps the file until the process ends. Returns `None` if the host's file has no section for output.
    ///
    /// # Errors
    /// If the file does not exist.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(layout::RESERVED_BYTES).expect("it is not zero");
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < LENGTH.get() as u64 {
            return Ok(None);
        }
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address chosen by the kernel overlaps nothing, and it is never unmapped.
        let start = unsafe { mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, &file, 0)? };
        let (start, pid) = (start.as_ptr().cast(), std::process::id());
        Ok(Some(Self { path: path.to_owned(), start, pid, writing: Mutex::default() }))
    }

    /// Appends output of the running call.
    pub(crate) fn append(&self, text: &[u8]) {
        self.append_of(CURRENT.load(Ordering::Relaxed), text);
    }

    /// Appends output of a call. The output of another call is replaced.
    #[allow(unsafe_code)]
    pub(crate) fn append_of(&self, call: u64, text: &[u8]) {
        // A fork does not take the lock, which another thread may have held when the process forked.
        if call == 0 || std::process::id() != self.pid {
            return;
        }
        // Without the GIL, several threads may write.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (owner, length) = (self.number(layout::OUTPUT_CALL), self.number(layout::OUTPUT_LENGTH));
        if owner.load(Ordering::Relaxed) != call {
            // In this order, so that a crash in between attributes the output to no call.
            owner.store(0, Ordering::Release);
            length.store(0, Ordering::Release);
            owner.store(call, Ordering::Release);
        }
        let mut total = length.load(Ordering::Relaxed);
        // Only the end of a string that is longer than the ring is stored.
        let tail = &text[text.len().saturating_sub(layout::OUTPUT_BYTES)..];
        total += (text.len() - tail.len()) as u64;
        for part in tail.chunks(layout::OUTPUT_BYTES) {
            let offset = (total % layout::OUTPUT_BYTES as u64) as usize;
            let (first, second) = part.split_at(part.len().min(layout::OUTPUT_BYTES - offset));
            for (part, offset) in [(first, offset), (second, 0)] {
                // SAFETY: the ring lies within the mapping, and `offset + part.len()` is at most its size. No other code
                // writes there, and the host reads it after this process has ended.
                unsafe {
                    let target = self.start.add(layout::OUTPUT + offset);
                    std::ptr::copy_nonoverlapping(part.as_ptr(), target, part.len());
                }
            }
            total += part.len() as u64;
        }
        length.store(total, Ordering::Release);
    }

    /// Opens a descriptor at the section for stacks. The caller owns it.
    ///
    /// # Errors
    /// If the file was removed.
    pub(crate) fn open_stacks(&self) -> io::Result<RawFd> {
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        file.seek(SeekFrom::Start(layout::STACKS as u64))?;
        Ok(file.into_raw_fd())
    }

    #[allow(unsafe_code)]
    fn number(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the offsets of numbers are multiples of eight within the mapping, which is page-aligned and never
        // unmapped.
        unsafe { AtomicU64::from_ptr(self.start.add(at).cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn a_fork_does_not_wait_for_a_thread_of_its_parent() {
        use nix::{
            fcntl::OFlag,
            libc,
            poll::{PollFd, PollFlags, PollTimeout, poll},
            sys::{signal::Signal, wait::WaitStatus},
            unistd::{ForkResult, fork, pipe2},
        };
        use std::os::fd::AsFd;

        let path = std::env::temp_dir().join(format!("snakepit-output-of-fork-{}", std::process::id()));
        std::fs::write(&path, vec![0; layout::RESERVED_BYTES]).unwrap();
        let output = CallOutput::open(&path).unwrap().unwrap();
        let writing = output.writing.lock().unwrap();
        let (ended, child_end) = pipe2(OFlag::O_CLOEXEC).unwrap();
        // SAFETY: the child calls only functions that take no lock of another thread, and exits without destructors.
        let child = match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                output.append_of(7, b"of the fork");
                // SAFETY: ends the child, and runs nothing of this process.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => child,
        };
        drop((child_end, writing));
        let mut descriptors = [PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, PollTimeout::from(10_000_u16)).unwrap() == 0 {
            nix::sys::signal::kill(child, Signal::SIGKILL).unwrap();
        }
        let status = nix::sys::wait::waitpid(child, None).unwrap();
        assert_eq!(status, WaitStatus::Exited(child, 0), "the fork waits");
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0), "only the worker writes");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_output_of_a_call_replaces_that_of_the_previous_call() {
        let path = std::env::temp_dir().join(format!("snakepit-output-{}", std::process::id()));
        std::fs::write(&path, vec![0; layout::RESERVED_BYTES]).unwrap();
        let output = CallOutput::open(&path).unwrap().unwrap();
        let stored_output = || {
            let file = std::fs::read(&path).unwrap();
            let number = |at: usize| u64::from_ne_bytes(file[at..at + 8].try_into().unwrap());
            let ring = &file[layout::OUTPUT..layout::ANSWERS];
            let length = number(layout::OUTPUT_LENGTH);
            let mut ring = ring.to_vec();
            if length < layout::OUTPUT_BYTES as u64 {
                ring.truncate(length as usize);
            } else {
                ring.rotate_left((length % layout::OUTPUT_BYTES as u64) as usize);
            }
            (number(layout::OUTPUT_CALL), String::from_utf8(ring).unwrap())
        };
        output.append(b"at import");
        assert_eq!(stored_output(), (0, String::new()));
        begin(CallId::from_u64(7));
        output.append(b"a secret\n");
        output.append(b"and another\n");
        assert_eq!(stored_output(), (7, "a secret\nand another\n".to_owned()));
        begin(CallId::from_u64(8));
        output.append(b"8\n");
        assert_eq!(stored_output(), (8, "8\n".to_owned()));
        for length in [layout::OUTPUT_BYTES - 5, 9, 3 * layout::OUTPUT_BYTES + 1] {
            output.append(&vec![b'x'; length]);
            output.append(b"end");
            let (_, text) = stored_output();
            assert!(text.ends_with("xend") && text.len() <= layout::OUTPUT_BYTES, "{length}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(output.open_stacks().is_err());
    }
}
