//! The output pipes of the subprocesses that calls start. Each subprocess has separate pipes, because the lines of subprocesses that share a
//! pipe can mix: a subprocess that does not buffer its output writes a line in several parts.
//!
//! One thread per pipe forwards the output in [frames](snakepit_proto::launch::output) of the call. Before the call itself
//! writes, and before it ends, [`forward_for_call`] forwards the output that its subprocesses have written until then, which keeps the order.

use std::{
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};
use snakepit_proto::launch::output::{Frame, FrameKind};

use crate::{
    fork,
    output_frames::{OutputFrames, identity},
};

/// The maximum number of pipes. Further subprocesses write into the pipes of the worker.
const MAX_PIPES: usize = 256;
/// The maximum number of bytes per read. Pipes hold 64 KiB by default.
const MAX_BYTES: usize = 1024 * 1024;
/// The stack size of a thread that forwards output.
const STACK_BYTES: usize = 128 * 1024;

static PIPES: Mutex<Vec<Arc<SubprocessPipe>>> = Mutex::new(Vec::new());
/// The length of [`PIPES`], so that calls without subprocesses do not take a lock. 0 in a new fork.
static OPEN: AtomicUsize = AtomicUsize::new(0);
/// The number of the next writer of this process.
static NEXT_WRITER: AtomicU64 = AtomicU64::new(1);

/// The read end of a subprocess's pipe.
#[derive(Debug)]
struct SubprocessPipe {
    process: u32,
    /// 0 for standard output, 1 for standard error.
    stream: usize,
    writer: u64,
    request_id: u64,
    session: String,
    tool: String,
    state: Mutex<PipeState>,
}

#[derive(Debug)]
struct PipeState {
    /// `None` after the end. Only the thread of the pipe removes it, because it polls the descriptor without the lock.
    descriptor: Option<std::fs::File>,
    identity: Option<(u64, u64)>,
    has_ended: bool,
    /// Whether the last byte was not the end of a line.
    is_in_line: bool,
}

/// Opens a pipe for a subprocess of the call that `frame` describes, and returns the end for the subprocess. Returns `None` if the host
/// does not attribute output to calls, or if too many pipes are open. The subprocess then inherits the stream of the worker.
pub(crate) fn open(stream: usize, frame: &Frame<'_>) -> Option<OwnedFd> {
    // If a tool has redirected the stream of the worker, the subprocess inherits that stream.
    let frames = OutputFrames::get().filter(|frames| frames.is_connected(stream))?;
    let mut pipes = lock_pipes()?;
    let process = std::process::id();
    // Removes the pipes that a fork has inherited from its parent.
    pipes.retain(|pipe| pipe.process == process);
    if pipes.len() >= MAX_PIPES {
        return None;
    }
    let (reader, writer) = open_pipe().ok()?;
    let descriptor = reader.as_raw_fd();
    let state = PipeState {
        identity: identity(reader.as_fd()),
        descriptor: Some(reader.into()),
        has_ended: false,
        is_in_line: false,
    };
    let pipe = Arc::new(SubprocessPipe {
        process,
        stream,
        // Forks of a call have the same request id, so the process id distinguishes their writers.
        writer: (u64::from(process) << 32) | NEXT_WRITER.fetch_add(1, Relaxed),
        request_id: frame.request_id,
        session: frame.session.to_owned(),
        tool: frame.tool.to_owned(),
        state: Mutex::new(state),
    });
    let forwarded = Arc::clone(&pipe);
    let thread = thread::Builder::new().name("snakepit-output".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || forwarded.run(descriptor, frames)).ok()?;
    pipes.push(pipe);
    OPEN.store(pipes.len(), SeqCst);
    Some(writer)
}

/// Forwards the output that the subprocesses of a call have written until now.
pub(crate) fn forward_for_call(request_id: u64) {
    forward(|pipe| pipe.request_id == request_id);
}

/// Forwards the output that all subprocesses have written until now.
pub(crate) fn forward_all() {
    forward(|_| true);
}

/// Forgets the pipes of the parent. Called in a new fork, so it only accesses atomics.
pub(crate) fn begin_fork() {
    OPEN.store(0, SeqCst);
}

fn forward(is_due: impl Fn(&SubprocessPipe) -> bool) {
    if OPEN.load(SeqCst) == 0 {
        return;
    }
    let (Some(frames), Some(pipes)) = (OutputFrames::get(), lock_pipes()) else { return };
    let due: Vec<_> = pipes.iter().filter(|pipe| is_due(pipe)).cloned().collect();
    drop(pipes);
    for pipe in due {
        pipe.forward(frames);
    }
}

/// Locks the pipes. Returns `None` in a fork whose parent had locked them, because no thread of the fork unlocks them.
fn lock_pipes() -> Option<MutexGuard<'static, Vec<Arc<SubprocessPipe>>>> {
    if fork::is_fork() {
        return PIPES.try_lock().ok();
    }
    Some(PIPES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Opens a pipe whose read end does not block.
fn open_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    // Above the descriptors that tools expect to be free.
    const LOWEST: RawFd = 64;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let [reader, writer] = [reader, writer]
        .map(|end| fcntl(&end, FcntlArg::F_DUPFD_CLOEXEC(LOWEST)).map(crate::output_frames::owned));
    let (reader, writer) = (reader?, writer?);
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

impl SubprocessPipe {
    /// Forwards the output until its end.
    fn run(&self, descriptor: RawFd, frames: &OutputFrames) {
        loop {
            // SAFETY: only this thread closes the descriptor. If a tool closed it, the call fails or waits for another file.
            #[allow(unsafe_code)]
            let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
            let mut descriptors = [PollFd::new(borrowed, PollFlags::POLLIN)];
            let _ = poll(&mut descriptors, PollTimeout::NONE);
            if self.forward(frames) {
                break;
            }
        }
        let mut state = self.state();
        if let Some(descriptor) = state.descriptor.take()
            && identity(descriptor.as_fd()) != state.identity
        {
            // A tool has closed the descriptor, which may now refer to another file.
            let _ = descriptor.into_raw_fd();
        }
        drop(state);
        let mut pipes = PIPES.lock().unwrap_or_else(PoisonError::into_inner);
        pipes.retain(|pipe| pipe.writer != self.writer);
        OPEN.store(pipes.len(), SeqCst);
    }

    /// Forwards the output that the pipe holds, and returns whether it has ended.
    fn forward(&self, frames: &OutputFrames) -> bool {
        let mut state = self.state();
        let PipeState { descriptor, identity: expected, has_ended, is_in_line } = &mut *state;
        let Some(reader) = descriptor else { return true };
        if *has_ended {
            return true;
        }
        let mut buffer = [0; 16 * 1024];
        let mut rest = MAX_BYTES;
        while rest > 0 {
            if identity(reader.as_fd()) != *expected {
                *has_ended = true;
                break;
            }
            match reader.read(&mut buffer) {
                Ok(0) => {
                    *has_ended = true;
                    break;
                }
                Ok(length) => {
                    frames.write(self.stream, &self.frame(&buffer[..length]));
                    *is_in_line = buffer[length - 1] != b'\n';
                    rest = rest.saturating_sub(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => *has_ended = true,
            }
            if *has_ended {
                break;
            }
        }
        if *has_ended && std::mem::take(is_in_line) {
            frames.write(self.stream, &self.frame(b"\n"));
        }
        *has_ended
    }

    fn frame<'a>(&'a self, body: &'a [u8]) -> Frame<'a> {
        Frame {
            kind: FrameKind::Text,
            request_id: self.request_id,
            level: 0,
            writer: self.writer,
            session: &self.session,
            tool: &self.tool,
            logger: "",
            body,
        }
    }

    fn state(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
