//! `snakepit doctor`: examines the environment of the daemon and its workers.

mod python;
mod server;
mod system;

use std::process::ExitCode;

use serde::Serialize;
use snakepit_worker::escaping::escape;

use crate::{Failure, client::ServerArgs, output, serve};

/// The text after the options in the help.
pub(crate) const HELP: &str = "\
The options are those of `snakepit serve`, which also come from its environment variables and
snakepit.toml in this directory.

Exit codes:
  0  no check failed
  1  a check failed
  2  wrong usage
  6  the result cannot be written";

// Without a group, because the flattened arguments have a group of the same name.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    pub(crate) serve: serve::Args,
}

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Failed,
    Skipped,
}

/// One check, with its evidence and the fix for the problem.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    /// The facts that the check found.
    evidence: String,
    /// The solution. Empty without a problem.
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

impl Check {
    fn ok(name: &'static str, evidence: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, evidence: evidence.into(), fix: String::new() }
    }

    fn skipped(name: &'static str, evidence: impl Into<String>) -> Self {
        Self { status: Status::Skipped, ..Self::ok(name, evidence) }
    }

    fn warning(name: &'static str, evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Warning, fix: fix.into(), ..Self::ok(name, evidence) }
    }

    fn failed(name: &'static str, evidence: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Failed, fix: fix.into(), ..Self::ok(name, evidence) }
    }

    /// The check as text for people: a line with the evidence, and a line with the fix.
    fn describe(&self) -> String {
        let mark = match self.status {
            Status::Ok => "ok     ",
            Status::Warning => "warning",
            Status::Failed => "FAILED ",
            Status::Skipped => "skipped",
        };
        // Tracebacks and other long evidence have several lines.
        let mut lines = self.evidence.lines().map(escape);
        let mut text = format!("{mark}  {:<13}  {}", self.name, lines.next().unwrap_or_default());
        lines.for_each(|line| text.push_str(&format!("\n{:26}{line}", "")));
        if !self.fix.is_empty() {
            text.push_str(&format!("\n{:24}-> {}", "", escape(&self.fix)));
        }
        text
    }
}

/// Runs all checks. `settings` are the settings of `snakepit serve`, or the problem of the environment or the file.
pub(crate) async fn run(args: Args, settings: Result<serve::Args, Failure>) -> Result<ExitCode, Failure> {
    let mut checks = vec![system::daemon(), system::clock()];
    match settings {
        Ok(settings) => {
            checks.push(Check::ok("settings", describe_settings(&settings)));
            checks.extend(python::checks(&settings).await);
            checks.push(server::port(settings.listen()).await);
            checks.push(system::run_dir(settings.run_dir()).await);
            checks.push(system::open_files(settings.worker_count()));
            checks.push(system::memory(settings.worker_count()));
        }
        Err(failure) => {
            let fix = "correct the file or the variable; the other checks need the settings";
            checks.push(Check::failed("settings", failure.message, fix));
        }
    }
    checks.push(server::reachable(&args.server).await);
    let failed = checks.iter().filter(|check| check.status == Status::Failed).count();
    if args.serve.json {
        output::print_json(&serde_json::json!({"ok": failed == 0, "checks": checks}))?;
    } else {
        checks.iter().try_for_each(|check| output::print(&check.describe()))?;
        let warnings = checks.iter().filter(|check| check.status == Status::Warning).count();
        output::print(&format!("\n{} checks, {failed} failed, {warnings} with a warning", checks.len()))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe_settings(settings: &serve::Args) -> String {
    let file = settings.config.as_ref().map_or_else(
        || "no snakepit.toml in this directory".to_owned(),
        |file| format!("from {}", file.display()),
    );
    let (workers, listen) = (settings.worker_count(), settings.listen());
    format!("{file}; {workers} workers, listening on {listen}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_show_their_evidence_and_the_fix() {
        let check = Check::failed("adapter", "it failed:\nTraceback", "correct it");
        let expected = "FAILED   adapter        it failed:\n                          Traceback\n                        -> correct it";
        assert_eq!(check.describe(), expected);
        let json = serde_json::to_value(Check::ok("clock", "fine")).unwrap();
        assert_eq!(json, serde_json::json!({"name": "clock", "status": "ok", "evidence": "fine"}));
    }
}
