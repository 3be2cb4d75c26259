//! Runs a program to its end, to examine the environment of workers.
#![allow(clippy::disallowed_methods, reason = "the program is not a worker, and ends within a bounded time")]

use std::{
    ffi::OsStr,
    io::{Error, ErrorKind},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

/// Runs a program without input, such as a Python interpreter, and returns its output. `environment` has variables in addition to
/// those of this process. Kills the program after `limit`.
///
/// # Errors
/// The program cannot be executed, or does not end in time ([`ErrorKind::TimedOut`]).
pub async fn probe(
    program: &OsStr,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    environment: &[(&str, String)],
    limit: Duration,
) -> Result<Output, Error> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    timeout(limit, command.output())
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::TimedOut, format!("it did not end within {limit:?}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_returns_its_output_or_is_killed() {
        let limit = Duration::from_secs(30);
        let output =
            probe(OsStr::new("/bin/sh"), ["-c", "echo $OUT; exit 3"], &[("OUT", "out".to_owned())], limit)
                .await
                .unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(3), &b"out\n"[..]));
        let missing = probe(OsStr::new("/nowhere/python"), ["-V"], &[], limit).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let late =
            probe(OsStr::new("/bin/sleep"), ["600"], &[], Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
    }
}
