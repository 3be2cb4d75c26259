//! What a fork of the worker must not do: hold its sockets, or run its calls.
//!
//! The handler is the system's own (`pthread_atfork`), so that forks made by C code are covered too. Programs that are started
//! from here get no descriptor of the runtime, because each is closed on `exec`.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicI32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use nix::{
    errno::Errno,
    libc,
    sys::stat::{SFlag, fstat},
};

use crate::serve::exit_now;

/// How many sockets are remembered: far more than a worker has.
const SOCKETS: usize = 64;

static IS_FORK: AtomicBool = AtomicBool::new(false);
static OWN: [Socket; SOCKETS] =
    [const { Socket { fd: AtomicI32::new(-1), inode: AtomicU64::new(0) } }; SOCKETS];

/// A socket of the runtime. Its number may have been closed and used again, which the inode tells.
struct Socket {
    fd: AtomicI32,
    inode: AtomicU64,
}

impl Socket {
    fn is_open(&self) -> bool {
        let fd = self.fd.load(Acquire);
        fd >= 0 && inode(fd) == Some(self.inode.load(Relaxed))
    }
}

/// Whether this process is a fork of the worker.
pub(crate) fn is_fork() -> bool {
    IS_FORK.load(Relaxed)
}

/// Ends this process if it is a fork of the worker: its tool has come back to the runtime instead of ending it.
pub(crate) fn end_fork() {
    if is_fork() {
        exit_now(0);
    }
}

/// Watches the forks of this process from now on.
///
/// # Errors
/// When there is no memory for it.
#[allow(unsafe_code)]
pub(crate) fn watch() -> io::Result<()> {
    // SAFETY: the handler only makes system calls and accesses atomics, as it must between a fork and whatever the child
    // does. This library is never unloaded.
    let error = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    if error == 0 { Ok(()) } else { Err(Errno::from_raw(error).into()) }
}

/// Has a socket closed in each fork of this process.
pub(crate) fn close_in_child(socket: &impl AsFd) {
    static TURN: Mutex<()> = Mutex::new(());
    let fd = socket.as_fd().as_raw_fd();
    let Some(inode) = inode(fd) else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(free) = OWN.iter().find(|socket| !socket.is_open()) {
        free.fd.store(-1, Release);
        free.inode.store(inode, Relaxed);
        free.fd.store(fd, Release);
    }
}

#[allow(unsafe_code)]
extern "C" fn in_child() {
    IS_FORK.store(true, Relaxed);
    // The numbers stay taken, because objects of the runtime that know them may still be dropped here.
    // SAFETY: the path ends with a zero byte.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    for socket in OWN.iter().filter(|socket| socket.is_open()) {
        let fd = socket.fd.load(Acquire);
        // SAFETY: the runtime, whose descriptor it is, does not run in a fork.
        unsafe {
            if null < 0 || libc::dup2(null, fd) < 0 {
                libc::close(fd);
            }
        }
    }
    if null >= 0 {
        // SAFETY: it was opened above, and nobody else knows it.
        unsafe { libc::close(null) };
    }
}

/// The inode of a socket; `None` for anything else.
#[allow(unsafe_code)]
fn inode(fd: RawFd) -> Option<u64> {
    // SAFETY: nobody has to own it: a number that is no descriptor is refused by the system.
    let stat = fstat(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }).ok()?;
    SFlag::from_bits_truncate(stat.st_mode).contains(SFlag::S_IFSOCK).then_some(stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn a_fork_holds_none_of_these_sockets() {
        watch().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let (kept, mut others) = UnixStream::pair().unwrap();
        close_in_child(&near);
        // Its number is used again, by a socket that is none of the runtime's.
        let (closed, _) = UnixStream::pair().unwrap();
        close_in_child(&closed);
        let number = closed.as_raw_fd();
        drop(closed);
        let reused = kept.try_clone().unwrap();
        assert_eq!(reused.as_raw_fd(), number);
        // SAFETY: the child makes nothing but system calls.
        let child = match unsafe { nix::unistd::fork().unwrap() } {
            nix::unistd::ForkResult::Child => {
                // SAFETY: as above.
                unsafe {
                    libc::pause();
                    libc::_exit(0);
                }
            }
            nix::unistd::ForkResult::Parent { child } => child,
        };
        assert!(!is_fork());
        drop((near, kept, reused));
        // The end is read although the child lives.
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
        others.set_nonblocking(true).unwrap();
        assert_eq!(others.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
    }
}
