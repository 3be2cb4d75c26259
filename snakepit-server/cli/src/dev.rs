//! `snakepit dev`: serves an adapter, and replaces its workers when their code changes.

mod adapter;
mod terminal;
mod watcher;

use std::{path::Path, time::Duration};

use snakepit_pool::{PoolConfig, PoolError};
use snakepit_server::{
    Builder, CallOutcome, CallRecord, Reason, Snakepit, StartError, ToolError, ToolSpec, error_chain,
};
use tokio::time::Instant;

pub(crate) use self::adapter::NamedDirectory;
use self::{terminal::Terminal, watcher::Watcher};
use crate::{
    Failure,
    log::{print_error, print_report},
    serve,
    tool_changes::ToolChanges,
};

/// The text after the options in the help.
pub(crate) const HELP: &str = "\
The adapter is the first of these that exists:
  1. PATH: a file such as app.py, a package, or an adapter such as `module:Class`
  2. the adapter of the settings: --adapter, SNAKEPIT_ADAPTER or snakepit.toml
  3. adapter.py, app.py, tools.py or main.py in the directory
  4. the only Python file in the directory, else its only package
The directory is PATH if that is a directory and no package, else the working directory.

When a Python file in or below the directory changes, new workers replace the old ones, which
finish their calls. Changes of tests have no effect. While the code is broken, the old workers
keep serving.

The other options are those of `snakepit serve`, with the defaults --workers 1 and --drain 1s.
Only --debug reads standard input.";

/// Lets calls of a debugged tool take as long as they need.
const DEBUG_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

// Without a group, because the flattened arguments have a group of the same name.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Run one worker whose standard input and output are those of this command, so that `breakpoint()` works in tools. Calls
    /// have no default timeout.
    #[arg(long, conflicts_with = "stop_with_stdin")]
    debug: bool,

    #[command(flatten)]
    pub(crate) serve: serve::Args,
}

impl Args {
    /// Prepares the command after its settings are complete. `directory` is the directory or package that the user named.
    ///
    /// # Errors
    /// No adapter was found, or the directory cannot be read.
    pub(crate) fn prepare(
        mut self,
        directory: Option<NamedDirectory>,
    ) -> Result<(serve::Args, DevMode), Failure> {
        adapter::choose(&mut self.serve, directory)?;
        let terminal = match self.debug {
            true => Some(Terminal::open().map_err(|error| {
                let problem = format!("cannot connect the worker to this terminal: {error}");
                Failure::new(Reason::CannotStart, problem)
            })?),
            false => None,
        };
        let watcher = Watcher::start(adapter::directories(&self.serve), adapter::file(&self.serve));
        let watcher = watcher
            .map_err(|error| Failure::new(Reason::CannotStart, format!("cannot watch the code: {error}")))?;
        Ok((self.serve, DevMode { terminal, watcher }))
    }
}

/// The parts of `snakepit dev` that `snakepit serve` does not have.
#[derive(Debug)]
pub(crate) struct DevMode {
    terminal: Option<Terminal>,
    watcher: Watcher,
}

impl DevMode {
    /// Whether a debugger may stop calls.
    pub(crate) const fn is_debugging(&self) -> bool {
        self.terminal.is_some()
    }

    pub(crate) fn pool(&self, config: PoolConfig) -> PoolConfig {
        match self.is_debugging() {
            true => config.workers(1).default_timeout(None::<Duration>).cancel_grace(DEBUG_GRACE),
            false => config,
        }
    }

    /// Adds the settings of `snakepit dev` to the settings of the daemon.
    pub(crate) fn configure(&self, builder: Builder) -> Builder {
        // Python compares times of files in seconds, so a cache would hide a second change within one.
        let builder = builder.env("PYTHONDONTWRITEBYTECODE", "1").on_call_end(report_call);
        match &self.terminal {
            Some(terminal) => builder.env(terminal::VARIABLE, terminal.socket()).start_timeout(DEBUG_GRACE),
            None => builder,
        }
    }

    /// Reports that the daemon is ready.
    pub(crate) fn print_ready(&self, snakepit: &Snakepit, adapter: &str) {
        let address = snakepit.address().map_or_else(String::new, |address| format!(" on http://{address}"));
        let tools = specs(snakepit);
        let noun = if tools.len() == 1 { "tool" } else { "tools" };
        print_error(&format!(
            "serving {} {noun} of {adapter}{address}; press Ctrl-C to stop{}",
            tools.len(),
            ToolChanges::diff(&[], &tools)
        ));
    }

    /// Reports a failed start, and waits for a change.
    pub(crate) async fn wait_for_change_after(&mut self, failure: &Failure) {
        print_error(&format!("{failure}\nwaiting for a change of the code"));
        self.changed().await;
    }

    /// Ends the input of the workers, because a call that waits for it would delay the shutdown.
    pub(crate) fn end_input(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            terminal.end_input();
        }
    }

    /// Waits for the last output of the workers, which have exited.
    pub(crate) async fn finish(mut self) {
        if let Some(terminal) = &mut self.terminal {
            terminal.finish().await;
        }
    }

    /// Replaces the workers after each change. Never returns.
    pub(crate) async fn run(&mut self, snakepit: &Snakepit) {
        let mut old_tools = specs(snakepit);
        let mut changed = self.changed().await;
        loop {
            print_error(&format!("{} changed", changed.join(", ")));
            let begin = Instant::now();
            let restarted = tokio::select! {
                restarted = snakepit.restart_workers() => restarted,
                // The next restart supersedes this one.
                again = self.changed() => {
                    changed = again;
                    continue;
                }
            };
            match restarted {
                Ok(()) => {
                    let new_tools = specs(snakepit);
                    let changes = ToolChanges::diff(&old_tools, &new_tools);
                    print_error(&format!("reloaded in {:.1} s{changes}", begin.elapsed().as_secs_f64()));
                    old_tools = new_tools;
                }
                Err(error) => print_error(&describe_failed_restart(&error.into())),
            }
            changed = self.changed().await;
        }
    }

    /// Waits for a change to the code.
    async fn changed(&mut self) -> Vec<String> {
        self.watcher.changed().await.iter().map(|path| shorten(path)).collect()
    }
}

fn describe_failed_restart(error: &StartError) -> String {
    let state = match error {
        StartError::Pool(PoolError::Start { replaced: 1.., .. }) => "the remaining old workers keep serving",
        _ => "the old code keeps serving",
    };
    let mut text = format!("{state}: {}", error_chain(error));
    if let Some(traceback) = error.worker_error().and_then(|cause| cause.traceback()) {
        text.push('\n');
        text.push_str(traceback.trim_end());
    }
    text
}

/// The path relative to the working directory, if it is below.
fn shorten(path: &Path) -> String {
    let dir = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(dir).unwrap_or(path).display().to_string()
}

fn specs(snakepit: &Snakepit) -> Vec<ToolSpec> {
    snakepit.tools().into_iter().map(|(spec, _)| spec).collect()
}

/// Prints one line per call, and the traceback of a failing tool.
fn report_call(record: &CallRecord) {
    let CallRecord { tool, outcome, total, error, .. } = record;
    let outcome = match outcome {
        CallOutcome::Succeeded => "ok",
        other => other.as_str(),
    };
    let millis = total.as_secs_f64() * 1000.0;
    let mut text = format!("call {tool}  {outcome}  {millis:.1} ms");
    match error {
        Some(ToolError::Failed(failure)) if !failure.traceback.is_empty() => {
            text.push('\n');
            text.push_str(failure.traceback.trim_end());
        }
        Some(error) => text.push_str(&format!("\n  {}", error_chain(error))),
        None => {}
    }
    print_report(&text);
}
