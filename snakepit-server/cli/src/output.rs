//! Writing to stdout, for every command: a reader that hung up ends the program quietly, as with other tools in a pipe.

use std::io::{ErrorKind, Write};

use serde::Serialize;
use serde_json::value::RawValue;
use snakepit_proto::{pb, value};

use crate::{Failure, exit};

/// Prints a line, or several.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Failure::new(exit::REFUSED, format!("cannot write to stdout: {e}"))),
    }
}

/// Prints one line of JSON.
pub(crate) fn print_json(json: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string(json).map_err(|e| Failure::new(exit::REFUSED, e.to_string()))?)
}

/// A value as JSON; a buffer is shown as base64 beside its metadata.
pub(crate) fn readable(value: pb::Any, binary: bytes::Bytes) -> Result<Box<RawValue>, Failure> {
    let broken =
        |problem: String| Failure::new(exit::REFUSED, format!("the value cannot be read: {problem}"));
    let binary = (!binary.is_empty()).then_some(binary);
    let mut typed = value::decode(value, binary).map_err(|e| broken(e.to_string()))?;
    if typed.binary.is_some() {
        // Any name but `bytes` is shown with its buffer inside the JSON.
        typed.type_name = "buffer".into();
        typed = value::decode(value::encode_inline(typed), None).map_err(|e| broken(e.to_string()))?;
    }
    serde_json::from_slice(&typed.json).map_err(|e| broken(e.to_string()))
}
