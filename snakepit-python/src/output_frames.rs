//! [`OutputFrames`]: writes output, progress and the boundaries of calls into the pipes of the host. See
//! [`snakepit_proto::launch::output`].

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{FileStat, fstat},
    unistd::write,
};
use snakepit_proto::launch::output::{ENV_OUTPUT_KEY, Frame, Key};

static FRAMES: OnceLock<Option<OutputFrames>> = OnceLock::new();

/// The pipes of the host, and the key of the frames in them.
#[derive(Debug)]
pub(crate) struct OutputFrames {
    key: Key,
    /// Standard output and standard error.
    pipes: [Pipe; 2],
}

/// A pipe of the host.
#[derive(Debug)]
struct Pipe {
    /// A copy of the descriptor, because a tool may replace it.
    copy: OwnedFd,
    /// Device and inode.
    identity: (u64, u64),
}

impl OutputFrames {
    /// Prepares the pipes of this process. Without the key of a host, the process writes plain output.
    pub(crate) fn install() {
        let open = |key: Vec<u8>| {
            let key = key.as_slice().try_into().ok()?;
            let stdout = Pipe::open(io::stdout().as_fd())?;
            let stderr = Pipe::open(io::stderr().as_fd())?;
            Some(Self { key, pipes: [stdout, stderr] })
        };
        FRAMES.get_or_init(|| take_key().and_then(open));
    }

    /// The frames of this process. `None` if the host expects none.
    pub(crate) fn get() -> Option<&'static Self> {
        FRAMES.get()?.as_ref()
    }

    /// Returns whether a standard stream still leads to the host. `index` is 0 for standard output, and 1 for standard error.
    pub(crate) fn is_connected(&self, index: usize) -> bool {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let descriptor = if index == 0 { stdout.as_fd() } else { stderr.as_fd() };
        self.pipes.get(index).is_some_and(|pipe| identity(descriptor) == Some(pipe.identity))
    }

    /// Writes a frame into one of the pipes. Blocks while the pipe is full. Ignores a closed pipe.
    pub(crate) fn write(&self, index: usize, frame: &Frame<'_>) {
        if let Some(pipe) = self.pipes.get(index) {
            let _ = frame.encode(&self.key, |bytes| pipe.write(bytes));
        }
    }

    /// Writes a frame into both pipes.
    pub(crate) fn write_to_both(&self, frame: &Frame<'_>) {
        (0..self.pipes.len()).for_each(|index| self.write(index, frame));
    }
}

impl Pipe {
    fn open(descriptor: BorrowedFd<'_>) -> Option<Self> {
        // Above the descriptors that tools expect to be free.
        const LOWEST: RawFd = 64;
        let identity = identity(descriptor)?;
        let copy = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(LOWEST)).ok()?;
        Some(Self { copy: owned(copy), identity })
    }

    /// Writes bytes that fit into one atomic write.
    fn write(&self, bytes: &[u8]) -> Result<(), Errno> {
        // A tool may have closed all descriptors, and opened a file that got this one.
        if identity(self.copy.as_fd()) != Some(self.identity) {
            return Err(Errno::EBADF);
        }
        loop {
            match write(&self.copy, bytes) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                // A program that shares the pipe made it non-blocking.
                Err(Errno::EAGAIN) => {
                    let mut descriptors = [PollFd::new(self.copy.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut descriptors, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns the key of the host, and overwrites it. Otherwise, each tool, and each program that a tool starts, could read it from
/// `/proc` and forge the output of other calls.
#[allow(unsafe_code)]
fn take_key() -> Option<Vec<u8>> {
    let name = CString::new(ENV_OUTPUT_KEY).ok()?;
    // SAFETY: the name is zero-terminated. The worker has no thread yet that changes the environment, and the value stays valid until
    // then. The bytes of the environment are writable, and their number does not change.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() {
            return None;
        }
        let key = CStr::from_ptr(value).to_bytes().to_vec();
        value.cast::<u8>().write_bytes(b'-', key.len());
        libc::unsetenv(name.as_ptr());
        Some(key)
    }
}

/// Makes C's `stdout` write each line at its end. By default it collects several kilobytes if it is a pipe, which would be lost with
/// the process, or attributed to a later call.
#[allow(unsafe_code)]
pub(crate) fn buffer_native_lines() {
    unsafe extern "C" {
        #[cfg_attr(target_os = "macos", link_name = "__stdoutp")]
        static stdout: *mut libc::FILE;
    }
    // SAFETY: the C library initializes `stdout` before the program starts, and nothing assigns it. A null pointer makes the library
    // allocate the buffer.
    unsafe { libc::setvbuf(stdout, std::ptr::null_mut(), libc::_IOLBF, 0) };
}

#[allow(unsafe_code)]
pub(crate) fn owned(descriptor: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor was just created, and no other code knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// The device and the inode of an open file.
pub(crate) fn identity(descriptor: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let FileStat { st_dev, st_ino, .. } = fstat(descriptor).ok()?;
    Some((st_dev, st_ino))
}
