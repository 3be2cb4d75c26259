//! How much sessions may hold: the limits of the library, as flags.

use std::time::Duration;

use bytesize::ByteSize;
use snakepit_session::SessionLimits;

use crate::duration;

/// Sizes are 4096, 64KiB, 10MiB, 4GiB.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "SessionLimitArgs of sessions")]
pub(crate) struct SessionLimitArgs {
    /// How long a session lives without use, if its creator does not say.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    session_ttl: Duration,

    /// How many sessions there may be; more are refused.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    max_sessions: usize,

    /// What one session may hold.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", hide_short_help = true)]
    max_session_bytes: ByteSize,

    /// What all sessions and global programs may hold together.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", hide_short_help = true)]
    max_total_bytes: ByteSize,

    /// How many entries the metadata of a session, program or write may have.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    max_metadata_entries: usize,

    /// The size of such metadata.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", hide_short_help = true)]
    max_metadata_bytes: ByteSize,

    /// The size of a program.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", hide_short_help = true)]
    max_program_bytes: ByteSize,

    /// How many programs a session may have, and how many there may be outside of sessions.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    max_programs: usize,

    /// How many variables a session may have.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    max_variables: usize,

    /// The size of a variable's value.
    #[arg(long, value_name = "SIZE", default_value = "10MiB", hide_short_help = true)]
    max_value_bytes: ByteSize,

    /// How many versions of a variable are kept before the current one.
    #[arg(long, value_name = "N", default_value_t = 20, hide_short_help = true)]
    max_history: usize,

    /// The size of those versions together.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", hide_short_help = true)]
    max_history_bytes: ByteSize,

    /// How many watches of its variables a session may have.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    max_watches: usize,

    /// How many updates wait for a watcher that is slow; of more, the oldest are lost.
    #[arg(long, value_name = "N", default_value_t = 1024, hide_short_help = true)]
    max_watch_backlog: usize,

    /// The size of those updates together.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", hide_short_help = true)]
    max_watch_backlog_bytes: ByteSize,
}

impl From<SessionLimitArgs> for SessionLimits {
    fn from(limits: SessionLimitArgs) -> Self {
        let size = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        Self {
            default_ttl: limits.session_ttl,
            max_sessions: limits.max_sessions,
            max_session_bytes: size(limits.max_session_bytes),
            max_total_bytes: size(limits.max_total_bytes),
            max_metadata_entries: limits.max_metadata_entries,
            max_metadata_bytes: size(limits.max_metadata_bytes),
            max_program_bytes: size(limits.max_program_bytes),
            max_programs: limits.max_programs,
            max_variables: limits.max_variables,
            max_value_bytes: size(limits.max_value_bytes),
            max_history: limits.max_history,
            max_history_bytes: size(limits.max_history_bytes),
            max_watches: limits.max_watches,
            max_watch_backlog: limits.max_watch_backlog,
            max_watch_backlog_bytes: size(limits.max_watch_backlog_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn limits(flags: &[&str]) -> SessionLimits {
        let command = SessionLimitArgs::augment_args(clap::Command::new("serve"));
        let matches = command.try_get_matches_from([&["serve"], flags].concat()).unwrap();
        SessionLimitArgs::from_arg_matches(&matches).unwrap().into()
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        assert_eq!(limits(&[]), SessionLimits::default());
    }

    #[test]
    fn sizes_have_units() {
        let limits = limits(&["--max-value-bytes", "64KiB", "--max-session-bytes", "4096"]);
        assert_eq!((limits.max_value_bytes, limits.max_session_bytes), (64 * 1024, 4096));
    }
}
