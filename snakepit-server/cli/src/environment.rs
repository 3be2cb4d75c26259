//! Environment variables that set flags. Empty variables count as unset, because container tools pass variables without a value.
//! Errors name the variable instead of its flag, and the daemon warns of unknown variables.

use std::{collections::BTreeSet, ffi::OsString};

use clap::{
    ArgMatches, Command, Error,
    builder::Resettable,
    error::{ContextKind, ErrorKind},
};
use snakepit_proto::launch;

use crate::{failure::problem_of, suggestion::closest};

/// The prefix of this project's variables.
const PREFIX: &str = "SNAKEPIT_";

/// The prefix of variables that the workers and adapters of this project's tests read.
const TEST_PREFIX: &str = "SNAKEPIT_TEST_";

/// The beginnings of variables that Kubernetes sets in each pod for a Service named `snakepit`.
const KUBERNETES_PREFIXES: [&str; 2] = ["SNAKEPIT_SERVICE_", "SNAKEPIT_PORT"];

/// Variables without a flag: `SNAKEPIT_LOG`, the variables that the worker runtime reads, and those that a host sets for its
/// workers. The daemon inherits the latter if a worker tool starts it.
const WITHOUT_FLAG: [&str; 25] = [
    "SNAKEPIT_LOG",
    "SNAKEPIT_DEBUG_TERMINAL",
    "SNAKEPIT_AFTER_CANCEL",
    "SNAKEPIT_ALLOW_PICKLE",
    "SNAKEPIT_LOG_LEVEL",
    "SNAKEPIT_OTEL_ENDPOINT",
    "SNAKEPIT_INSTANCE_ID",
    "SNAKEPIT_UNSERIALIZABLE_DETAIL",
    "SNAKEPIT_UNSERIALIZABLE_REPR_MAXLEN",
    "SNAKEPIT_TOLIST_MAX_ELEMENTS",
    launch::ENV_READY_FILE,
    launch::ENV_RUN_ID,
    launch::ENV_WORKER_ID,
    launch::ENV_POOL,
    launch::ENV_WORKER_INDEX,
    launch::ENV_WORKER_COUNT,
    launch::ENV_GPU,
    launch::ENV_ADAPTER_ARGS,
    launch::ENV_CONCURRENCY,
    launch::ENV_THREADS,
    launch::ENV_SOCKET,
    launch::ENV_PROGRESS,
    launch::ENV_STOP_GRACE,
    launch::ENV_CONTROL,
    launch::ENV_HOST_VERSION,
];

/// Logs a warning for each variable of this process that has the project's prefix but no meaning. This is not an error, because
/// adapters and other programs may have such variables too.
pub(crate) fn warn_of_unknown(command: &Command) {
    let names = std::env::vars_os().filter(|(_, value)| !value.is_empty());
    for (name, suggestion) in unknown(command, names.filter_map(|(name, _)| name.into_string().ok())) {
        let suggestion = suggestion.map_or_else(String::new, |known| format!("; is it {known}?"));
        tracing::warn!("the environment variable {name} is unknown and has no effect{suggestion}");
    }
}

/// The unknown variables among these, each with the most similar known one.
fn unknown(command: &Command, names: impl Iterator<Item = String>) -> Vec<(String, Option<String>)> {
    let args = std::iter::once(command).chain(command.get_subcommands()).flat_map(Command::get_arguments);
    let of_flags = args.filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned));
    let known: BTreeSet<String> = of_flags.chain(WITHOUT_FLAG.map(str::to_owned)).collect();
    let is_foreign = |name: &String| {
        std::iter::once(TEST_PREFIX).chain(KUBERNETES_PREFIXES).any(|prefix| name.starts_with(prefix))
    };
    let unknown = names.filter(|name| !known.contains(name) && !is_foreign(name));
    unknown
        .filter_map(|name| {
            // The names are compared without the prefix, which would make all of them similar.
            let known = known.iter().filter_map(|known| known.strip_prefix(PREFIX));
            let suggestion =
                closest(name.strip_prefix(PREFIX)?, known).map(|known| format!("{PREFIX}{known}"));
            Some((name, suggestion))
        })
        .collect()
}

/// Detaches empty variables from their flags.
pub(crate) fn without_empty(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if is_empty { arg.env(Resettable::Reset) } else { arg }
    });
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_empty))
}

/// Parses a command line, which begins with the name of the program.
///
/// # Errors
/// The errors of the parser. If the command line is valid without the environment, the error names the variable.
pub(crate) fn matches(command: &Command, argv: &[OsString]) -> Result<ArgMatches, Error> {
    let error = match command.clone().try_get_matches_from(argv) {
        Ok(matches) => return Ok(matches),
        Err(error) => error,
    };
    if without_environment(command.clone()).try_get_matches_from(argv).is_err() {
        return Err(error);
    }
    Err(error_of_variable(command, argv).unwrap_or(error))
}

fn without_environment(command: Command) -> Command {
    let command = command.mut_args(|arg| arg.env(Resettable::Reset));
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_environment))
}

/// Finds the invalid variable, and returns an error that names it.
fn error_of_variable(command: &Command, argv: &[OsString]) -> Option<Error> {
    // The command line is valid, so one of its words is the subcommand.
    let sub = argv.iter().skip(1).find_map(|word| command.find_subcommand(word))?;
    for arg in sub.get_arguments() {
        let Some(variable) = arg.get_env().map(ToOwned::to_owned) else { continue };
        let with_one_variable = without_environment(command.clone())
            .mut_subcommand(sub.get_name(), |sub| sub.mut_arg(arg.get_id(), |arg| arg.env(variable.clone())));
        let Err(error) = with_one_variable.try_get_matches_from(argv) else { continue };
        let problem = problem_of(&error);
        let flag =
            error.get(ContextKind::InvalidArg).map(|flag| format!(" for '{flag}'")).unwrap_or_default();
        let problem = problem.replace(&flag, "");
        let text = format!("the environment variable {} cannot be used: {problem}", variable.display());
        // Building the command adds its path to the usage of its subcommands.
        let mut command = command.clone();
        command.build();
        let sub = command.find_subcommand_mut(sub.get_name())?;
        return Some(sub.error(ErrorKind::InvalidValue, text));
    }
    None
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        // Uses variables that cargo sets for every test.
        let number = Arg::new("number").long("number").value_name("N").value_parser(["few", "3"]);
        let empty = Arg::new("empty").long("empty").value_parser(clap::value_parser!(u16));
        Command::new("snakepit").subcommand(
            Command::new("serve").arg(number.env("CARGO_PKG_NAME")).arg(empty.env("CARGO_PKG_VERSION_PRE")),
        )
    }

    fn parse(words: &[&str]) -> Result<ArgMatches, String> {
        let argv: Vec<OsString> = ["snakepit", "serve"].iter().chain(words).map(Into::into).collect();
        matches(&without_empty(command()), &argv).map_err(|error| error.to_string())
    }

    #[test]
    fn errors_name_the_variable_and_empty_variables_count_as_unset() {
        assert_eq!(
            std::env::var("CARGO_PKG_VERSION_PRE").as_deref(),
            Ok(""),
            "the test needs an empty variable"
        );
        let problem = parse(&[]).unwrap_err();
        let expected =
            "error: the environment variable CARGO_PKG_NAME cannot be used: invalid value 'snakepit-cli'";
        assert!(problem.starts_with(expected), "{problem}");
        assert!(problem.contains("[possible values: few, 3]"), "{problem}");
        assert!(problem.contains("Usage: snakepit serve [OPTIONS]"), "{problem}");
        let matches = parse(&["--number", "3"]).unwrap();
        let serve = matches.subcommand_matches("serve").unwrap();
        assert_eq!(serve.get_one::<String>("number").map(String::as_str), Some("3"));
        assert_eq!(serve.get_one::<u16>("empty"), None);
        let problem = parse(&["--number", "x"]).unwrap_err();
        assert!(problem.contains("invalid value 'x' for '--number <N>'"), "{problem}");
    }

    #[test]
    fn unknown_variables_are_reported_with_a_suggestion() {
        let names = [
            "SNAKEPIT_WOKERS",
            "SNAKEPIT_WORKERS",
            "SNAKEPIT_SOCKET",
            "SNAKEPIT_XYZ",
            "SNAKEPIT_TEST_STUBS",
            "SNAKEPIT_SERVICE_HOST",
            "SNAKEPIT_PORT_50051_TCP_ADDR",
            "PATH",
        ];
        let serve = Command::new("serve").arg(Arg::new("workers").long("workers").env("SNAKEPIT_WORKERS"));
        let command = Command::new("snakepit").subcommand(serve);
        let unknown = unknown(&command, names.into_iter().map(str::to_owned));
        let expected = [
            ("SNAKEPIT_WOKERS".to_owned(), Some("SNAKEPIT_WORKERS".to_owned())),
            ("SNAKEPIT_XYZ".to_owned(), None),
        ];
        assert_eq!(unknown, expected);
    }
}
