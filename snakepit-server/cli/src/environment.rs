//! Variables of the environment that stand for flags: empty ones count as unset, because container tools pass those they have no
//! value for, and bad ones are named as variables.

use std::ffi::OsString;

use clap::{
    ArgMatches, Command, Error,
    builder::Resettable,
    error::{ContextKind, ErrorKind},
};

/// Takes variables that are set and empty away from their flags.
pub(crate) fn without_empty(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if is_empty { arg.env(Resettable::Reset) } else { arg }
    });
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_empty))
}

/// Parses the command line of this process.
///
/// # Errors
/// Those of the parser, which blame the variable where the command line alone is sound.
pub(crate) fn matches(command: &Command) -> Result<ArgMatches, Error> {
    matches_of(command, &std::env::args_os().collect::<Vec<_>>())
}

fn matches_of(command: &Command, argv: &[OsString]) -> Result<ArgMatches, Error> {
    let error = match command.clone().try_get_matches_from(argv) {
        Ok(matches) => return Ok(matches),
        Err(error) => error,
    };
    if without_any(command.clone()).try_get_matches_from(argv).is_err() {
        return Err(error);
    }
    Err(blame(command, argv).unwrap_or(error))
}

fn without_any(command: Command) -> Command {
    let command = command.mut_args(|arg| arg.env(Resettable::Reset));
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_any))
}

/// Finds the variable that is wrong.
fn blame(command: &Command, argv: &[OsString]) -> Option<Error> {
    // The command line is sound, so one of its words is the subcommand.
    let sub = argv.iter().skip(1).find_map(|word| command.find_subcommand(word))?;
    for arg in sub.get_arguments() {
        let Some(variable) = arg.get_env().map(ToOwned::to_owned) else { continue };
        let alone = without_any(command.clone())
            .mut_subcommand(sub.get_name(), |sub| sub.mut_arg(arg.get_id(), |arg| arg.env(variable.clone())));
        let Err(error) = alone.try_get_matches_from(argv) else { continue };
        let whole = error.to_string();
        let first = whole.lines().next().unwrap_or_default();
        let problem = first.strip_prefix("error: ").unwrap_or(first);
        let flag =
            error.get(ContextKind::InvalidArg).map(|flag| format!(" for '{flag}'")).unwrap_or_default();
        let problem = problem.replace(&flag, "");
        let text = format!("the environment variable {} cannot be used: {problem}", variable.display());
        return Some(command.clone().error(ErrorKind::InvalidValue, text));
    }
    None
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        // Of the variables that cargo sets for every test.
        let number = Arg::new("number").long("number").value_name("N").value_parser(clap::value_parser!(u16));
        let empty = Arg::new("empty").long("empty").value_parser(clap::value_parser!(u16));
        Command::new("snakepit").subcommand(
            Command::new("serve").arg(number.env("CARGO_PKG_NAME")).arg(empty.env("CARGO_PKG_VERSION_PRE")),
        )
    }

    fn parse(words: &[&str]) -> Result<ArgMatches, String> {
        let argv: Vec<OsString> = ["snakepit", "serve"].iter().chain(words).map(Into::into).collect();
        matches_of(&without_empty(command()), &argv).map_err(|error| error.to_string())
    }

    #[test]
    fn a_bad_variable_is_named_and_an_empty_one_is_none() {
        assert_eq!(std::env::var("CARGO_PKG_VERSION_PRE").as_deref(), Ok(""), "what this test is about");
        let problem = parse(&[]).unwrap_err();
        let told =
            "error: the environment variable CARGO_PKG_NAME cannot be used: invalid value 'snakepit-cli'";
        assert!(problem.starts_with(told), "{problem}");
        let matches = parse(&["--number", "3"]).unwrap();
        let serve = matches.subcommand_matches("serve").unwrap();
        assert_eq!((serve.get_one::<u16>("number"), serve.get_one::<u16>("empty")), (Some(&3), None));
        let problem = parse(&["--number", "x"]).unwrap_err();
        assert!(problem.contains("invalid value 'x' for '--number <N>'"), "{problem}");
    }
}
