//! Writing to stdout, for every command: a reader that hung up ends the program quietly, as with other tools in a pipe.

use std::io::{ErrorKind, Write};

use serde::Serialize;

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
