//! Output on stdout. If the reader has closed the pipe, the program exits silently, like other tools in a pipe.

use std::io::{ErrorKind, Write};

use serde::Serialize;
use serde_json::value::RawValue;
use snakepit_proto::{pb, value};
use snakepit_server::Reason;

use crate::Failure;

/// Prints text and a newline.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Failure::new(Reason::Rejected, format!("cannot write to stdout: {e}"))),
    }
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
