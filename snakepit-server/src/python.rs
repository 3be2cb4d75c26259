//! Finding the Python to run workers with, and saying what it lacks.

use std::path::{Path, PathBuf};

use snakepit_pool::PoolError;
use snakepit_worker::WorkerError;

use crate::Error;

const VARIABLE: &str = "SNAKEPIT_PYTHON";
const BY_VARIABLE: &str = "by $SNAKEPIT_PYTHON";

/// An interpreter, and why it is this one.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pub(crate) path: PathBuf,
    chosen: &'static str,
}

/// The interpreter for workers: `$SNAKEPIT_PYTHON`, else that of `$VIRTUAL_ENV`, else that of `.venv` in this directory or
/// the nearest one above it, else plain `python3` from `PATH`.
#[must_use]
pub fn find_python() -> PathBuf {
    Interpreter::find().path
}

impl Interpreter {
    /// The one that somebody named.
    pub(crate) fn named(path: PathBuf) -> Self {
        // The command line takes the variable for its option.
        let by_variable = std::env::var_os(VARIABLE).is_some_and(|value| value == path);
        Self { path, chosen: if by_variable { BY_VARIABLE } else { "by --python or `Builder::python`" } }
    }

    /// The one of this environment and directory.
    pub(crate) fn find() -> Self {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = variable(VARIABLE) {
            return Self { path, chosen: BY_VARIABLE };
        }
        let here = std::env::current_dir().unwrap_or_default();
        find_in(variable("VIRTUAL_ENV").as_deref(), &here)
            .unwrap_or_else(|| Self { path: "python3".into(), chosen: "from $PATH, as there is no .venv" })
    }

    /// Names this interpreter in the error of a worker that ended because it has no `snakepit_bridge`.
    pub(crate) fn explain(&self, error: PoolError) -> Error {
        match &error {
            PoolError::Start { error: WorkerError::EndedEarly { output_lines, .. }, .. }
                if output_lines.iter().any(|line| lacks_the_bridge(line)) =>
            {
                Error::NoBridge { python: self.path.clone(), chosen: self.chosen }
            }
            _ => error.into(),
        }
    }
}

/// What Python says when it has no such package. One that is there and lacks a part of its own is named otherwise.
fn lacks_the_bridge(line: &str) -> bool {
    line.contains("No module named 'snakepit_bridge'")
        || line.contains("No module named 'snakepit_bridge.worker'")
}

fn find_in(active: Option<&Path>, here: &Path) -> Option<Interpreter> {
    let active = active.map(|venv| (venv.to_owned(), "by $VIRTUAL_ENV"));
    let nearby = here.ancestors().map(|dir| (dir.join(".venv"), "as the nearest .venv"));
    let interpreters = active.into_iter().chain(nearby);
    interpreters
        .map(|(venv, chosen)| Interpreter { path: venv.join("bin/python"), chosen })
        .find(|interpreter| interpreter.path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_active_environment_wins_over_the_nearest_one() {
        let dir = tempfile::tempdir().unwrap();
        let (active, project) = (dir.path().join("active"), dir.path().join("project"));
        for venv in [&active, &project.join(".venv")] {
            std::fs::create_dir_all(venv.join("bin")).unwrap();
            std::fs::write(venv.join("bin/python"), "").unwrap();
        }
        let deep = project.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let found = |active: Option<&Path>, here: &Path| {
            find_in(active, here).map(|interpreter| (interpreter.path, interpreter.chosen))
        };
        let nearest = Some((project.join(".venv/bin/python"), "as the nearest .venv"));
        assert_eq!(found(Some(&active), &deep), Some((active.join("bin/python"), "by $VIRTUAL_ENV")));
        assert_eq!(found(None, &deep), nearest);
        assert_eq!(found(Some(&dir.path().join("gone")), &deep), nearest);
        assert_eq!(found(None, dir.path()), None);
    }

    #[test]
    fn a_missing_package_is_told_from_a_broken_one() {
        for line in [
            "ModuleNotFoundError: No module named 'snakepit_bridge'",
            "ModuleNotFoundError: No module named 'snakepit_bridge.worker'",
        ] {
            assert!(lacks_the_bridge(line), "{line}");
        }
        assert!(!lacks_the_bridge("ModuleNotFoundError: No module named 'snakepit_bridge._native'"));
        assert!(!lacks_the_bridge("ModuleNotFoundError: No module named 'shop'"));
    }
}
