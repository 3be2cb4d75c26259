//! Output on stdout. If the reader has closed the pipe, the program exits silently, like other tools in a pipe.

use std::{
    io::{self, ErrorKind, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Serialize;
use serde_json::value::RawValue;
use snakepit_proto::{pb, value};
use snakepit_server::Reason;

use crate::Failure;

/// Whether this program was started with a closed stdout.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// A function that runs before `main`, because the standard library then opens `/dev/null` in place of a closed stdout.
#[used]
#[allow(unsafe_code, reason = "only a constructor runs before the standard library")]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static RECORD_CLOSED: extern "C" fn() = {
    extern "C" fn record() {
        // SAFETY: the call has no effect on memory.
        let is_closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
        IS_CLOSED.store(is_closed, Ordering::Relaxed);
    }
    record
};

/// Checks that stdout is open, before a command does anything.
pub(crate) fn check() -> Result<(), Failure> {
    match IS_CLOSED.load(Ordering::Relaxed) {
        true => Err(not_written("it is closed").may_have_run(false)),
        false => Ok(()),
    }
}

/// Prints text and a newline.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(|stdout| writeln!(stdout, "{text}"))
}

/// Writes to stdout.
pub(crate) fn write(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    check()?;
    let mut stdout = io::stdout().lock();
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            std::process::exit(Reason::OutputFailed.exit_code().into());
        }
        Err(error) => Err(not_written(&error.to_string())),
    }
}

fn not_written(problem: &str) -> Failure {
    Failure::new(Reason::OutputFailed, format!("cannot write to stdout: {problem}"))
}

/// Prints one line of JSON.
pub(crate) fn print_json(json: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string(json).map_err(|e| Failure::new(Reason::Rejected, e.to_string()))?)
}

/// Converts a value to JSON. A buffer becomes base64, next to its metadata.
pub(crate) fn to_readable_json(value: pb::Any, binary: bytes::Bytes) -> Result<Box<RawValue>, Failure> {
    let unreadable =
        |problem: String| Failure::new(Reason::Rejected, format!("the value cannot be read: {problem}"));
    let binary = (!binary.is_empty()).then_some(binary);
    let mut typed = value::decode(value, binary).map_err(|e| unreadable(e.to_string()))?;
    if typed.binary.is_some() {
        // A value of any type other than `bytes` is encoded with its buffer inside the JSON.
        typed.type_name = "buffer".into();
        typed = value::decode(value::encode_inline(typed), None).map_err(|e| unreadable(e.to_string()))?;
    }
    serde_json::from_slice(&typed.json).map_err(|e| unreadable(e.to_string()))
}
