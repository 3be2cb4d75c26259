//! Finds the Python interpreter for workers, and explains a missing package.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use snakepit_pool::PoolError;
use snakepit_worker::WorkerError;

use crate::{StartError, settings};

const PYTHON_VARIABLE: &str = "SNAKEPIT_PYTHON";

/// Returns the interpreter for workers and its origin: the given interpreter, or the result of [`find_python`].
#[must_use]
pub fn choose_python(named: Option<PathBuf>) -> (PathBuf, InterpreterOrigin) {
    let Interpreter { path, origin } = named.map_or_else(Interpreter::find, Interpreter::named);
    (path, origin)
}

/// The origin of the Python interpreter of the workers. `Display` prints a phrase that can follow "chosen".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InterpreterOrigin {
    /// [`Builder::python`](crate::Builder::python), or the daemon's flag `--python`.
    Setting,
    /// The environment variable `SNAKEPIT_PYTHON`.
    Variable,
    /// The virtual environment in the environment variable `VIRTUAL_ENV`.
    ActiveEnvironment,
    /// The nearest `.venv` of the working directory and its ancestors.
    NearestEnvironment,
    /// `python3` in the directory of the program, such as that of the environment in which pip installed the daemon.
    ProgramDirectory,
    /// `python3` from `PATH`, because the other places have no interpreter.
    Path,
}

impl fmt::Display for InterpreterOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setting => return write!(f, "by {}", settings::PYTHON),
            Self::Variable => "by $SNAKEPIT_PYTHON",
            Self::ActiveEnvironment => "by $VIRTUAL_ENV",
            Self::NearestEnvironment => "as the nearest .venv",
            Self::ProgramDirectory => "next to this program, because there is no .venv",
            Self::Path => "from $PATH, because there is no .venv",
        })
    }
}

/// A Python interpreter and its origin.
#[derive(Debug)]
pub(crate) struct Interpreter {
    pub(crate) path: PathBuf,
    origin: InterpreterOrigin,
}

/// Returns the interpreter for workers: the first of these that is set or exists.
///
/// 1. `$SNAKEPIT_PYTHON`,
/// 2. the interpreter in `$VIRTUAL_ENV`,
/// 3. the interpreter in `.venv` of the current directory or of the nearest ancestor that has one,
/// 4. `python3` in the directory of the program, with symbolic links resolved,
/// 5. `python3` from `PATH`.
#[must_use]
pub fn find_python() -> PathBuf {
    Interpreter::find().path
}

impl Interpreter {
    /// The interpreter that the user named.
    pub(crate) fn named(path: PathBuf) -> Self {
        // The command line also reads `--python` from this variable.
        let by_variable = std::env::var_os(PYTHON_VARIABLE).is_some_and(|value| value == path);
        let origin = if by_variable { InterpreterOrigin::Variable } else { InterpreterOrigin::Setting };
        Self { path, origin }
    }

    /// Finds the interpreter from the environment and the current directory.
    pub(crate) fn find() -> Self {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = variable(PYTHON_VARIABLE) {
            return Self { path, origin: InterpreterOrigin::Variable };
        }
        let start_dir = std::env::current_dir().unwrap_or_default();
        let program = std::env::current_exe().and_then(std::fs::canonicalize).ok();
        find_in(variable("VIRTUAL_ENV").as_deref(), &start_dir, program.as_deref())
            .unwrap_or_else(|| Self { path: "python3".into(), origin: InterpreterOrigin::Path })
    }

    /// Converts the error of a worker that ended because its interpreter lacks `snakepit_bridge`.
    pub(crate) fn explain(&self, error: PoolError) -> StartError {
        match &error {
            PoolError::Start { error: WorkerError::EndedEarly { output_lines, .. }, .. }
                if output_lines.iter().any(|line| reports_missing_bridge(line)) =>
            {
                StartError::NoBridge { python: self.path.clone(), origin: self.origin }
            }
            _ => error.into(),
        }
    }
}

/// Returns whether Python reports that the package is missing. An incomplete package causes a different message.
fn reports_missing_bridge(line: &str) -> bool {
    line.contains("No module named 'snakepit_bridge'")
        || line.contains("No module named 'snakepit_bridge.worker'")
}

fn find_in(active: Option<&Path>, start_dir: &Path, program: Option<&Path>) -> Option<Interpreter> {
    let active = active.map(|venv| (venv.join("bin/python"), InterpreterOrigin::ActiveEnvironment));
    let nearby = start_dir
        .ancestors()
        .map(|dir| (dir.join(".venv/bin/python"), InterpreterOrigin::NearestEnvironment));
    let beside =
        program.map(|program| (program.with_file_name("python3"), InterpreterOrigin::ProgramDirectory));
    let interpreters = active.into_iter().chain(nearby).chain(beside);
    interpreters
        .map(|(path, origin)| Interpreter { path, origin })
        .find(|interpreter| interpreter.path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_interpreter_in_the_documented_order() {
        let dir = tempfile::tempdir().unwrap();
        let (active, project) = (dir.path().join("active"), dir.path().join("project"));
        let program = dir.path().join("installed/snakepit");
        for venv in [&active, &project.join(".venv")] {
            std::fs::create_dir_all(venv.join("bin")).unwrap();
            std::fs::write(venv.join("bin/python"), "").unwrap();
        }
        let deep = project.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let found = |active: Option<&Path>, start_dir: &Path| {
            find_in(active, start_dir, Some(&program))
                .map(|interpreter| (interpreter.path, interpreter.origin))
        };
        let nearest = Some((project.join(".venv/bin/python"), InterpreterOrigin::NearestEnvironment));
        assert_eq!(
            found(Some(&active), &deep),
            Some((active.join("bin/python"), InterpreterOrigin::ActiveEnvironment))
        );
        assert_eq!(found(None, &deep), nearest);
        assert_eq!(found(Some(&dir.path().join("missing")), &deep), nearest);
        assert_eq!(found(None, dir.path()), None);
        let beside = program.with_file_name("python3");
        std::fs::create_dir(beside.parent().unwrap()).unwrap();
        std::fs::write(&beside, "").unwrap();
        assert_eq!(found(None, &deep), nearest);
        assert_eq!(found(None, dir.path()), Some((beside, InterpreterOrigin::ProgramDirectory)));
    }

    #[test]
    fn distinguishes_a_missing_package_from_a_broken_one() {
        for line in [
            "ModuleNotFoundError: No module named 'snakepit_bridge'",
            "ModuleNotFoundError: No module named 'snakepit_bridge.worker'",
        ] {
            assert!(reports_missing_bridge(line), "{line}");
        }
        assert!(!reports_missing_bridge("ModuleNotFoundError: No module named 'snakepit_bridge._native'"));
        assert!(!reports_missing_bridge("ModuleNotFoundError: No module named 'shop'"));
    }
}
