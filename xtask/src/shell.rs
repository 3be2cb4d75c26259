//! Commands in the checkout, and steps with their durations.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// A command of the cargo that runs xtask, in the checkout.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// A command of another program, in the checkout.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root());
    command
}

/// Runs a command with inherited stdout and stderr.
///
/// # Errors
///
/// If the command cannot start or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = command_line(command);
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

/// Runs a command and returns its stdout.
///
/// # Errors
///
/// If the command cannot start or fails; the error contains its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = try_output(command)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{}` failed ({}):\n{}",
        command_line(command),
        output.status,
        stderr.trim_end()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command and returns its exit status and output.
///
/// # Errors
///
/// If the command cannot start.
pub(crate) fn try_output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot run `{}`", command_line(command)))
}

/// Runs a step and prints its name and duration.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {name}");
    let start = Instant::now();
    let outcome = work()?;
    println!("    done in {:.1?}", start.elapsed());
    Ok(outcome)
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
