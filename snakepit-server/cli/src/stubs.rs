//! `snakepit stubs`: runs the generator of typed Python functions, which is a part of the Python package.

use std::{os::unix::process::CommandExt, path::PathBuf, process::Command};

use snakepit_server::{Reason, find_python};

use crate::Failure;

/// Runs the generator. Exits with the code of [`Reason::CannotStart`] if the package is missing or has no generator.
const PROGRAM: &str = "\
import sys
try:
    from snakepit_bridge._stubs import main
except ImportError as error:
    print(f'snakepit: {sys.executable} cannot import snakepit_bridge: {error}', file=sys.stderr)
    sys.exit(5)
sys.exit(main())";

/// The text after the options in the help.
pub(crate) const HELP: &str = "\
The module has two functions for each tool, `price(client, item=\"tea\")` and the coroutine
`price_async(client, item=\"tea\")`, with the types of the tool.

Exit codes:
  0  success
  1  the file differs from the tools of the server (--check)
  2  wrong usage
  3  the server rejected the request, or the file cannot be read
  4  the server cannot be reached, or the connection was lost
  5  Python or its package snakepit_bridge is missing
  6  the module cannot be written";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connect to this server: http://HOST:PORT, HOST:PORT or unix:PATH. [default:
    /// http://127.0.0.1:50051] [env: SNAKEPIT_SERVER]
    #[arg(long, value_name = "URL")]
    server: Option<String>,

    /// Write the module to this file instead of the standard output.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Include only this tool. May be repeated.
    #[arg(long, value_name = "NAME")]
    tool: Vec<String>,

    /// Write nothing, and fail if the file of --output differs from the tools of the server.
    #[arg(long, requires = "output")]
    check: bool,

    /// Wait for this number of seconds until the server is ready.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<f64>,

    /// The Python interpreter that has the package snakepit_bridge. [default: that of $VIRTUAL_ENV or of the
    /// nearest .venv, else python3]
    #[arg(long, value_name = "PATH", env = "SNAKEPIT_PYTHON", hide_env_values = true)]
    python: Option<PathBuf>,
}

/// Replaces this process with the generator. Returns only if that fails.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { server, output, tool, check, wait, python } = args;
    if output.is_none() {
        crate::output::check()?;
    }
    let python = python.unwrap_or_else(find_python);
    #[allow(clippy::disallowed_methods, reason = "not a worker")]
    let mut command = Command::new(&python);
    command.args(["-c", PROGRAM]);
    for (flag, value) in [("--server", server), ("--wait", wait.map(|seconds| seconds.to_string()))] {
        if let Some(value) = value {
            command.arg(format!("{flag}={value}"));
        }
    }
    for name in tool {
        command.arg(format!("--tool={name}"));
    }
    if let Some(output) = output {
        command.arg("--output").arg(output);
    }
    if check {
        command.arg("--check");
    }
    let error = command.exec();
    Err(Failure::new(Reason::CannotStart, format!("cannot run {}: {error}", python.display())))
}
