//! Reads `snakepit.toml`, which sets the flags of `snakepit serve` that neither the command line nor the environment sets.

use std::{
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Command};
use serde_json::Value;
use snakepit_server::Reason;
use toml::de::{DeTable, DeValue};

use crate::{Failure, failure::problem_of, serve::AdapterArg, suggestion::closest};

/// The file that is read if it exists and `--config` names no other.
const DEFAULT_PATH: &str = "snakepit.toml";

/// The largest configuration file, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// A configuration file and its text.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    text: String,
}

impl File {
    /// Reads the named file, or the default file in the working directory if it exists.
    ///
    /// # Errors
    /// The file cannot be read, or the named file does not exist.
    pub(crate) fn find(path: Option<&Path>) -> Result<Option<Self>, Failure> {
        let is_default = path.is_none();
        let path = path.unwrap_or(Path::new(DEFAULT_PATH)).to_owned();
        match read(&path) {
            Ok(text) => Ok(Some(Self { path, text })),
            Err(error) if error.kind() == ErrorKind::NotFound && is_default => Ok(None),
            Err(error) => {
                let problem = format!("cannot read the configuration {}: {error}", path.display());
                Err(Failure::new(Reason::Usage, problem))
            }
        }
    }

    /// Makes the values of the file the defaults of a command's flags.
    ///
    /// # Errors
    /// The file is malformed, has an unknown key, or has a value that the flag rejects. The error names the line.
    pub(crate) fn set_defaults(&self, mut command: Command) -> Result<Command, Failure> {
        let table = DeTable::parse(&self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.problem(at, error.message())
        })?;
        for (key, value) in table.get_ref() {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            if let DeValue::Table(table) = value.get_ref() {
                if name == ADAPTER_ARGS && command.get_arguments().any(|arg| arg.get_long() == Some(name)) {
                    let texts = adapter_args(table).map_err(|(at, problem)| self.problem(at, problem))?;
                    command = command.mut_arg(ADAPTER_ARGS_ID, |arg| arg.default_values(texts));
                    continue;
                }
                let hint = "the keys stand at the top level, without a table";
                return Err(self.problem(at, format!("unknown table `{name}`; {hint}")));
            }
            let is_named = |arg: &&Arg| arg.get_long() == Some(name) && is_key(arg);
            let arg = command.get_arguments().find(is_named).ok_or_else(|| {
                let keys = command.get_arguments().filter(|arg| is_key(arg)).filter_map(Arg::get_long);
                let suggestion =
                    closest(name, keys).map_or_else(String::new, |key| format!("; is it `{key}`?"));
                self.problem(at, format!("unknown key `{name}`{suggestion}"))
            })?;
            let text = text_of(arg, value.get_ref())
                .map_err(|expected| self.problem(at, format!("`{name}` takes {expected}")))?;
            let id = arg.get_id().clone();
            // Each value is checked alone, so that the error names its line and reads like an error of the command line.
            let checked = command.clone().mut_arg(&id, |arg| arg.default_value(text.clone()));
            if let Err(error) = checked.try_get_matches_from(["serve"]) {
                return Err(self.problem(at, problem_of(&error)));
            }
            command = command.mut_arg(&id, |arg| arg.default_value(text));
        }
        Ok(command)
    }

    /// The failure for a problem at this offset in the text, in bytes.
    fn problem(&self, at: usize, problem: impl std::fmt::Display) -> Failure {
        let line = self.text[..at].matches('\n').count() + 1;
        Failure::new(Reason::Usage, format!("{}:{line}: {problem}", self.path.display()))
    }
}

/// The key of the table with the arguments of the adapter, and the id of its flag.
const ADAPTER_ARGS: &str = "adapter-arg";
const ADAPTER_ARGS_ID: &str = "adapter_arg";

/// Converts a table of adapter arguments to the strings that the command line would have.
///
/// # Errors
/// The offset and the problem of a value that has no JSON form.
fn adapter_args(table: &DeTable<'_>) -> Result<Vec<String>, (usize, String)> {
    let texts = table.iter().map(|(key, value)| {
        let name = key.get_ref().to_string();
        match json_of(value.get_ref()) {
            Some(value) => Ok(AdapterArg { name, value }.to_text()),
            None => Err((key.span().start, format!("`{name}` has a value without a JSON form"))),
        }
    });
    texts.collect()
}

/// Converts a value to JSON. Returns `None` for infinity, NaN and integers beyond 64 bits.
fn json_of(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok()?.into(),
        DeValue::Float(number) => serde_json::Number::from_f64(number.as_str().parse().ok()?)?.into(),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| json_of(item.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Table(table) => {
            let entries =
                table.iter().map(|(key, value)| Some((key.get_ref().to_string(), json_of(value.get_ref())?)));
            Value::Object(entries.collect::<Option<_>>()?)
        }
    })
}

/// Reads a regular file. A pipe could block the start, and a device may be endless.
fn read(path: &Path) -> std::io::Result<String> {
    let reject = |problem: String| Err(std::io::Error::new(ErrorKind::InvalidData, problem));
    if !std::fs::metadata(path)?.is_file() {
        return reject("it is not a regular file".to_owned());
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_BYTES {
        true => reject(format!("it is longer than {MAX_BYTES} bytes")),
        false => Ok(text),
    }
}

/// Gives every flag an environment variable, such as `SNAKEPIT_SESSION_TTL` for `--session-ttl`.
pub(crate) fn with_environment(command: Command) -> Command {
    command.mut_args(|arg| match arg.get_long() {
        Some(long) if is_key(&arg) && arg.get_env().is_none() => {
            let name = format!("SNAKEPIT_{}", long.replace('-', "_").to_uppercase());
            arg.env(name).hide_env(true)
        }
        _ => arg,
    })
}

/// Whether a flag is a key of the file. `--help`, `--version` and the flags that configure only the command are not.
fn is_key(arg: &Arg) -> bool {
    !["config", "json", "stop_with_stdin", "debug", "server"].iter().any(|id| arg.get_id() == id)
        && matches!(arg.get_action(), ArgAction::Set | ArgAction::SetTrue)
}

/// Converts a value to the text that the command line would have.
///
/// # Errors
/// The kind of value that the flag takes instead.
fn text_of(arg: &Arg, value: &DeValue<'_>) -> Result<String, &'static str> {
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(set)) => Ok(set.to_string()),
        (ArgAction::SetTrue, _) => Err("true or false"),
        (_, DeValue::String(text)) => Ok(text.to_string()),
        // TOML allows numbers such as `0x2` and `1_000`, which the flags do not accept.
        (_, DeValue::Integer(number)) => {
            let digits = i128::from_str_radix(number.as_str(), number.radix());
            Ok(digits.map_or_else(|_| number.to_string(), |number| number.to_string()))
        }
        _ => Err("a string or an integer"),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    #[derive(Debug, Args)]
    struct Flags {
        #[arg(long)]
        config: Option<PathBuf>,
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
        workers: u16,
        #[arg(long)]
        run_dir: Option<PathBuf>,
        #[arg(long)]
        allow_remote: bool,
        #[arg(long, value_parser = AdapterArg::parse)]
        adapter_arg: Vec<AdapterArg>,
        #[arg(long, default_value = "memory", env = "USER_OF_THE_CONFIG_TEST")]
        sessions: String,
    }

    fn parse(text: &str, flags: &[&str]) -> Result<Flags, String> {
        let file = File { path: DEFAULT_PATH.into(), text: text.to_owned() };
        let command = Flags::augment_args(Command::new("serve"));
        let command = file.set_defaults(command).map_err(|failure| failure.message)?;
        let matches = command.try_get_matches_from([&["serve"], flags].concat()).unwrap();
        Ok(Flags::from_arg_matches(&matches).unwrap())
    }

    #[test]
    fn a_file_sets_flags_that_the_command_line_does_not_set() {
        let text = "workers = 2 # few\nrun-dir = \"/run/a\"\nallow-remote = true\nsessions = 'file:/a b'\n";
        let flags = parse(text, &["--workers", "3"]).unwrap();
        assert_eq!(flags.workers, 3, "the command line takes precedence");
        assert_eq!(flags.run_dir.as_deref(), Some(Path::new("/run/a")));
        assert_eq!((flags.allow_remote, &*flags.sessions, flags.config), (true, "file:/a b", None));
        for sixteen in ["16", "0x10", "0b1_0000", "0o20", "1_6", "+16"] {
            assert_eq!(parse(&format!("workers = {sixteen}"), &[]).unwrap().workers, 16, "{sixteen}");
        }
        let flags = parse("", &[]).unwrap();
        assert_eq!((flags.workers, flags.allow_remote, &*flags.sessions), (4, false, "memory"));
    }

    #[test]
    fn a_table_sets_the_arguments_of_the_adapter() {
        let text = "[adapter-arg]\npath = '/m'\nsize = 0x10\nrate = 1.5\ndeep = {names = ['a', true]}\nday = 2026-01-02\n";
        let as_text = |flags: Flags| flags.adapter_arg.iter().map(AdapterArg::to_text).collect::<Vec<_>>();
        let mut parsed = as_text(parse(text, &[]).unwrap());
        parsed.sort();
        let expected = [
            r#"day:="2026-01-02""#,
            r#"deep:={"names":["a",true]}"#,
            r#"path:="/m""#,
            "rate:=1.5",
            "size:=16",
        ];
        assert_eq!(parsed, expected);
        let parsed = as_text(parse(text, &["--adapter-arg", "path=/n"]).unwrap());
        assert_eq!(parsed, [r#"path:="/n""#], "the command line replaces the table");
        let problem = parse("adapter-arg = {a = 1, b = inf}", &[]).unwrap_err();
        assert!(problem.starts_with("snakepit.toml:1: `b` has a value without a JSON form"), "{problem}");
    }

    #[test]
    fn errors_name_the_line() {
        for (text, expected) in [
            ("workers = 2\nwokers = 3", "snakepit.toml:2: unknown key `wokers`; is it `workers`?"),
            ("run_dir = '/run'", "snakepit.toml:1: unknown key `run_dir`; is it `run-dir`?"),
            ("colour = 1", "snakepit.toml:1: unknown key `colour`"),
            ("config = 'other.toml'", "snakepit.toml:1: unknown key `config`"),
            ("help = true", "snakepit.toml:1: unknown key `help`"),
            (
                "[serve]\nworkers = 2",
                "snakepit.toml:1: unknown table `serve`; the keys stand at the top level, without a table",
            ),
            ("listen.on = 'x'", "snakepit.toml:1: unknown table `listen`; the keys stand at the top level"),
            ("\n[workers]\nnumber = 2", "snakepit.toml:2: unknown table `workers`; the keys stand"),
            (
                "\nworkers = 0",
                "snakepit.toml:2: invalid value '0' for '--workers <WORKERS>': 0 is not in 1..=1024",
            ),
            ("workers = -1", "snakepit.toml:1: invalid value '-1' for '--workers <WORKERS>'"),
            ("workers = 'many'", "snakepit.toml:1: invalid value 'many' for '--workers <WORKERS>'"),
            ("workers = [1]", "snakepit.toml:1: `workers` takes a string or an integer"),
            ("workers = 1.5", "snakepit.toml:1: `workers` takes a string or an integer"),
            ("allow-remote = 'yes'", "snakepit.toml:1: `allow-remote` takes true or false"),
            ("workers = 2\nworkers = 3", "snakepit.toml:2: duplicate key"),
            ("workers 2", "snakepit.toml:1: "),
        ] {
            let problem = parse(text, &[]).unwrap_err();
            assert!(problem.starts_with(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn a_named_file_must_exist() {
        let problem = File::find(Some(Path::new("/nowhere/snakepit.toml"))).unwrap_err().message;
        assert!(problem.contains("/nowhere/snakepit.toml"), "{problem}");
    }

    #[test]
    fn a_file_must_be_regular_and_not_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, huge) = (dir.path().join("pipe"), dir.path().join("huge"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(&huge, "#".repeat(1024 * 1024 + 1)).unwrap();
        for (path, expected) in [
            (&*pipe, "not a regular file"),
            (Path::new("/dev/zero"), "not a regular file"),
            (dir.path(), "not a regular file"),
            (&*huge, "longer than 1048576 bytes"),
        ] {
            let problem = File::find(Some(path)).unwrap_err().message;
            assert!(problem.contains(expected), "{}: {problem}", path.display());
        }
    }
}
