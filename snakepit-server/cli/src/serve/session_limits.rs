//! The options of `snakepit serve` for the limits of sessions.

use std::time::Duration;

use bytesize::ByteSize;
use snakepit_session::SessionLimits;

use crate::{
    duration,
    size::{self, bytes},
};

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Session limits")]
pub(crate) struct SessionLimitArgs {
    /// Delete sessions after this time without use, unless their creator sets another TTL.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse_positive)]
    session_ttl: Duration,

    /// Keep at most this many sessions, and reject new ones.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    max_sessions: usize,

    /// Let one session hold at most this much data.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size::parse, hide_short_help = true)]
    max_session_bytes: ByteSize,

    /// Let all sessions and global programs together hold at most this much data.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = size::parse, hide_short_help = true)]
    max_total_bytes: ByteSize,

    /// Allow this many metadata entries per session, program or write.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    max_metadata_entries: usize,

    /// Allow this much metadata per session, program or write.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size::parse, hide_short_help = true)]
    max_metadata_bytes: ByteSize,

    /// Allow programs up to this size.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size::parse, hide_short_help = true)]
    max_program_bytes: ByteSize,

    /// Allow this many programs per session, and as many global programs.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    max_programs: usize,

    /// Allow this many variables per session.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    max_variables: usize,

    /// Allow values of variables up to this size.
    #[arg(long, value_name = "SIZE", default_value = "10MiB", value_parser = size::parse, hide_short_help = true)]
    max_value_bytes: ByteSize,

    /// Keep this many earlier versions of each variable.
    #[arg(long, value_name = "N", default_value_t = 20, hide_short_help = true)]
    max_history: usize,

    /// Keep earlier versions of a variable up to this total size.
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size::parse, hide_short_help = true)]
    max_history_bytes: ByteSize,

    /// Allow this many watches per session.
    #[arg(long, value_name = "N", default_value_t = 1000, hide_short_help = true)]
    max_watches: usize,

    /// Queue this many updates for a slow watcher. Beyond that, drop the oldest.
    #[arg(long, value_name = "N", default_value_t = 1024, hide_short_help = true)]
    max_watch_backlog: usize,

    /// Queue updates for a slow watcher up to this total size.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size::parse, hide_short_help = true)]
    max_watch_backlog_bytes: ByteSize,
}

impl From<SessionLimitArgs> for SessionLimits {
    fn from(limits: SessionLimitArgs) -> Self {
        Self::default()
            .default_ttl(limits.session_ttl)
            .max_sessions(limits.max_sessions)
            .max_session_bytes(bytes(limits.max_session_bytes))
            .max_total_bytes(bytes(limits.max_total_bytes))
            .max_metadata_entries(limits.max_metadata_entries)
            .max_metadata_bytes(bytes(limits.max_metadata_bytes))
            .max_program_bytes(bytes(limits.max_program_bytes))
            .max_programs(limits.max_programs)
            .max_variables(limits.max_variables)
            .max_value_bytes(bytes(limits.max_value_bytes))
            .max_history(limits.max_history)
            .max_history_bytes(bytes(limits.max_history_bytes))
            .max_watches(limits.max_watches)
            .max_watch_backlog(limits.max_watch_backlog)
            .max_watch_backlog_bytes(bytes(limits.max_watch_backlog_bytes))
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
