//! Protects the worker from its forks: a fork must neither keep the worker's sockets open nor run its calls.
//!
//! The handler is registered with `pthread_atfork`, so it also runs for forks by C code. Programs that a tool starts
//! inherit no descriptor of the runtime, because each has the close-on-exec flag.

use std::{
    io::{self, Write},
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
use pyo3::{exceptions::PySystemExit, prelude::*};
use serde_json::Value;
use snakepit_registry::{ToolError, ToolFailure};

use crate::{exit::exit_now, subprocess_output};

/// The maximum number of registered sockets, far above what a worker opens.
const MAX_SOCKETS: usize = 64;

static IS_FORK: AtomicBool = AtomicBool::new(false);
static SOCKETS: [Socket; MAX_SOCKETS] =
    [const { Socket { fd: AtomicI32::new(-1), inode: AtomicU64::new(0) } }; MAX_SOCKETS];

/// A socket of the runtime. The inode shows whether the descriptor was closed and reused since.
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

/// Returns whether this process is a fork of the worker.
pub(crate) fn is_fork() -> bool {
    IS_FORK.load(Relaxed)
}

/// Exits if this process is a fork of the worker. Called where a fork returns from its tool to the runtime.
pub(crate) fn exit_if_fork() {
    if is_fork() {
        exit_now(0);
    }
}

/// Exits if this process is a fork of the worker whose tool has ended, with the status of a Python program: 0 after a value, the
/// code of `SystemExit`, or 1 after another exception, whose traceback is printed.
pub(crate) fn exit_if_fork_of_tool<T>(outcome: Option<&Result<T, ToolError>>) {
    if !is_fork() {
        return;
    }
    subprocess_output::forward_all();
    exit_now(match outcome {
        Some(Ok(_)) => 0,
        Some(Err(ToolError::Failed(failure))) => exit_status(failure),
        _ => 1,
    })
}

/// Exits if this process is a fork of the worker in which a function has returned, with the same status.
pub(crate) fn exit_if_fork_of_function<T>(py: Python<'_>, result: &PyResult<T>) {
    if !is_fork() {
        return;
    }
    subprocess_output::forward_all();
    exit_now(match result {
        Ok(_) => 0,
        Err(error) if error.is_instance_of::<PySystemExit>(py) => {
            let code = error.value(py).getattr("code").ok().filter(|code| !code.is_none());
            code.map_or(0, |code| code.extract().unwrap_or(1))
        }
        Err(error) => {
            error.print(py);
            1
        }
    })
}

fn exit_status(failure: &ToolFailure) -> i32 {
    let mut stderr = io::stderr();
    // A closed stderr does not change the status.
    if failure.error_type != "SystemExit" {
        let _ = stderr.write_all(failure.traceback.as_bytes());
        return 1;
    }
    match failure.args.first() {
        None | Some(Value::Null) => 0,
        Some(Value::Number(code)) => code.as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(1),
        Some(_) => {
            let _ = writeln!(stderr, "{}", failure.message);
            1
        }
    }
}

/// Registers the fork handler.
///
/// # Errors
/// If memory is exhausted.
#[allow(unsafe_code)]
pub(crate) fn register_handler() -> io::Result<()> {
    // SAFETY: the handler only makes system calls and accesses atomics, which is allowed in a forked child. This
    // library is never unloaded.
    let error = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    if error == 0 { Ok(()) } else { Err(Errno::from_raw(error).into()) }
}

/// Registers a socket that the fork handler closes in each child.
pub(crate) fn close_in_child(socket: &impl AsFd) {
    static REGISTRATION: Mutex<()> = Mutex::new(());
    let fd = socket.as_fd().as_raw_fd();
    let Some(inode) = inode(fd) else { return };
    let _registration = REGISTRATION.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(free) = SOCKETS.iter().find(|socket| !socket.is_open()) {
        free.fd.store(-1, Release);
        free.inode.store(inode, Relaxed);
        free.fd.store(fd, Release);
    }
}

#[allow(unsafe_code)]
extern "C" fn in_child() {
    IS_FORK.store(true, Relaxed);
    subprocess_output::begin_fork();
    // The descriptors are replaced by `/dev/null` and stay in use, because objects of the runtime may still close them
    // when they are dropped.
    // SAFETY: the path is zero-terminated.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    for socket in SOCKETS.iter().filter(|socket| socket.is_open()) {
        let fd = socket.fd.load(Acquire);
        // SAFETY: the descriptor belongs to the runtime, which does not run in a fork.
        unsafe {
            if null < 0 || libc::dup2(null, fd) < 0 {
                libc::close(fd);
            }
        }
    }
    if null >= 0 {
        // SAFETY: it was opened above and is not used elsewhere.
        unsafe { libc::close(null) };
    }
}

/// Returns the inode of a socket, or `None` for other descriptors.
#[allow(unsafe_code)]
fn inode(fd: RawFd) -> Option<u64> {
    // SAFETY: the descriptor is borrowed for `fstat` only, which rejects numbers that are not open.
    let stat = fstat(unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }).ok()?;
    SFlag::from_bits_truncate(stat.st_mode).contains(SFlag::S_IFSOCK).then_some(stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn a_fork_closes_the_registered_sockets() {
        register_handler().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let (unregistered, mut unregistered_peer) = UnixStream::pair().unwrap();
        close_in_child(&near);
        // The next socket reuses this descriptor, and is not registered.
        let (closed, _) = UnixStream::pair().unwrap();
        close_in_child(&closed);
        let descriptor = closed.as_raw_fd();
        drop(closed);
        let reused = unregistered.try_clone().unwrap();
        assert_eq!(reused.as_raw_fd(), descriptor);
        // SAFETY: the child only makes system calls.
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
        drop((near, unregistered, reused));
        // The peer reads the end of the stream while the child is alive.
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
        unregistered_peer.set_nonblocking(true).unwrap();
        assert_eq!(unregistered_peer.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
    }
}
