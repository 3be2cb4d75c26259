//! [`Failure`]: the error of a command, as text for people or as JSON for scripts.

use std::{fmt, time::Duration};

use clap::error::{ContextKind, ContextValue};

/// The exit codes.
pub(crate) mod exit {
    pub(crate) const TOOL_FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const REJECTED: u8 = 3;
    pub(crate) const UNREACHABLE: u8 = 4;
    pub(crate) const CANNOT_START: u8 = 5;
}

/// The codes that this program sets itself. All others are reasons of the server's status table. `docs/command-line.md` lists both,
/// except `CANNOT_START`, because `serve` prints no JSON.
pub(crate) mod code {
    pub(crate) const TOOL_FAILED: &str = "TOOL_FAILED";
    pub(crate) const USAGE: &str = "USAGE";
    pub(crate) const REJECTED: &str = "REJECTED";
    pub(crate) const UNREACHABLE: &str = "UNREACHABLE";
    pub(crate) const CANNOT_START: &str = "CANNOT_START";
    pub(crate) const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
    pub(crate) const CONNECTION_LOST: &str = "CONNECTION_LOST";
}

/// A failure as the user sees it: one line of text, the tool's traceback if there is one, and an exit code for scripts.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: u8,
    /// The kind of failure, for scripts: a reason from the server's status table, or one of [`code`].
    pub(crate) code: String,
    pub(crate) message: String,
    /// Empty unless the tool raised an exception.
    traceback: String,
    /// Whether the tool may have run. If not, a retry is safe.
    pub(crate) may_have_run: bool,
    /// The pause after which a retry may succeed, if the server suggests one.
    retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(exit: u8, message: impl Into<String>) -> Self {
        let (code, may_have_run) = match exit {
            exit::TOOL_FAILED => (code::TOOL_FAILED, true),
            exit::USAGE => (code::USAGE, false),
            exit::UNREACHABLE => (code::UNREACHABLE, false),
            exit::CANNOT_START => (code::CANNOT_START, false),
            _ => (code::REJECTED, true),
        };
        let (code, message) = (code.to_owned(), message.into());
        Self { exit, code, message, traceback: String::new(), may_have_run, retry_after: None }
    }

    /// The failure of a malformed command line.
    pub(crate) fn of_usage(error: &clap::Error) -> Self {
        Self::new(exit::USAGE, problem_of(error))
    }

    pub(crate) fn code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    pub(crate) fn traceback(mut self, traceback: impl Into<String>) -> Self {
        self.traceback = traceback.into();
        self
    }

    pub(crate) const fn may_have_run(mut self, may_have_run: bool) -> Self {
        self.may_have_run = may_have_run;
        self
    }

    pub(crate) const fn retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    pub(crate) fn as_json(&self) -> serde_json::Value {
        let Self { code, message, may_have_run, .. } = self;
        let mut object = serde_json::json!({"code": code, "message": message, "may_have_run": may_have_run});
        if let Some(retry_after) = self.retry_after {
            object["retry_after"] = retry_after.as_secs_f64().into();
        }
        if !self.traceback.is_empty() {
            object["traceback"] = self.traceback.as_str().into();
        }
        object
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snakepit: {}", self.message)?;
        match self.traceback.trim_end() {
            "" => Ok(()),
            traceback => write!(f, "\n{traceback}"),
        }
    }
}

/// The problem in an error of the parser, with the valid values and the tips, but without the usage of the command.
pub(crate) fn problem_of(error: &clap::Error) -> String {
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => String::new(),
    };
    let whole = error.to_string();
    let problem = whole.strip_prefix("error: ").unwrap_or(&whole);
    let ends = [usage.as_str(), "\n\nUsage:", "\n\nFor more information"];
    let end = ends.iter().filter(|end| !end.is_empty()).filter_map(|end| problem.find(end)).min();
    problem[..end.unwrap_or(problem.len())].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;

    /// Returns the upper-case code spans of a line of Markdown.
    fn codes(line: &str) -> impl Iterator<Item = String> {
        let quoted = line.split('`').skip(1).step_by(2).map(str::to_owned);
        quoted.filter(|text| text.chars().all(|c| c.is_ascii_uppercase() || c == '_') && text.len() > 2)
    }

    #[test]
    fn the_page_lists_all_codes() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let page = read("docs/command-line.md");
        let rows = page.lines().filter(|line| line.starts_with("| `")).flat_map(|row| {
            let cell = row.trim_start_matches('|').split('|').next().unwrap_or_default();
            codes(cell).collect::<Vec<_>>()
        });
        let listed: BTreeSet<String> = rows.collect();
        let status_table = read("snakepit-server/src/status.rs");
        let rows = status_table.lines().filter(|line| line.starts_with("//! | "));
        let reasons = rows.filter_map(|row| row.rsplit('|').nth(1)).flat_map(|cell| {
            // `TOO_MANY_SESSIONS`, `_VARIABLES`: the latter share the prefix.
            codes(cell)
                .map(|code| if code.starts_with('_') { format!("TOO_MANY{code}") } else { code })
                .collect::<Vec<_>>()
        });
        let own = [
            code::TOOL_FAILED,
            code::USAGE,
            code::REJECTED,
            code::UNREACHABLE,
            code::DEADLINE_EXCEEDED,
            code::CONNECTION_LOST,
            snakepit_proto::status::PROXY,
        ];
        let expected: BTreeSet<String> = reasons.chain(own.map(str::to_owned)).collect();
        assert!(expected.len() > 30, "the status table was found: {expected:?}");
        assert_eq!(listed, expected);
    }

    #[test]
    fn json_has_a_retry_delay_and_a_traceback_only_if_they_exist() {
        let plain = Failure::new(exit::UNREACHABLE, "no").as_json();
        assert_eq!(plain, serde_json::json!({"code": "UNREACHABLE", "message": "no", "may_have_run": false}));
        let full = Failure::new(exit::TOOL_FAILED, "no")
            .traceback("in f")
            .retry_after(Some(Duration::from_millis(100)))
            .as_json();
        assert_eq!(full["retry_after"], 0.1);
        assert_eq!((&full["traceback"], &full["may_have_run"]), (&"in f".into(), &true.into()));
    }
}
