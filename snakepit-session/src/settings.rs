//! The names of settings in error messages: [`Setting`], and the settings of [`SessionLimits`](crate::SessionLimits).

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether messages name flags instead of methods.
static NAMES_FLAGS: AtomicBool = AtomicBool::new(false);

/// A setting of a host, as error messages name it.
///
/// A setting has two names: a method or field for programs that embed a host, and a flag for users of the daemon. The flag is
/// also the key in its configuration file. Messages contain the method, such as `` `Builder::run_dir` ``. The daemon calls
/// [`name_flags`](Self::name_flags) when it starts, so its messages contain the flag and the key.
///
/// ```
/// use snakepit_session::settings::{MAX_SESSIONS, Setting};
///
/// assert_eq!(MAX_SESSIONS.to_string(), "`SessionLimits::max_sessions`");
/// assert_eq!(MAX_SESSIONS.flag(), Some("max-sessions"));
///
/// const SHELVES: Setting = Setting::new("Shop::shelves", "shelves");
/// assert_eq!(format!("raise {SHELVES}"), "raise `Shop::shelves`");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Setting {
    method: &'static str,
    flag: Option<&'static str>,
}

impl Setting {
    /// Creates a setting from the name of a method or field, such as `Builder::run_dir`, and the name of a flag without its
    /// dashes.
    #[must_use]
    pub const fn new(method: &'static str, flag: &'static str) -> Self {
        Self { method, flag: Some(flag) }
    }

    /// Creates a setting that the daemon does not have.
    #[must_use]
    pub const fn without_flag(method: &'static str) -> Self {
        Self { method, flag: None }
    }

    /// The name of the method or field.
    #[must_use]
    pub const fn method(self) -> &'static str {
        self.method
    }

    /// The name of the flag without its dashes, which is also the key in the daemon's configuration file. `None` if the daemon
    /// does not have this setting.
    #[must_use]
    pub const fn flag(self) -> Option<&'static str> {
        self.flag
    }

    /// Makes all messages of this process name flags instead of methods. Call this before the host starts, in programs whose
    /// users configure the host with these flags.
    pub fn name_flags() {
        NAMES_FLAGS.store(true, Ordering::Relaxed);
    }

    fn write(self, names_flags: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.flag {
            Some(flag) if names_flags => write!(f, "--{flag} (`{flag}` in snakepit.toml)"),
            _ => write!(f, "`{}`", self.method),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(NAMES_FLAGS.load(Ordering::Relaxed), f)
    }
}

macro_rules! limits {
    ($($name:ident: $method:literal, $flag:literal;)*) => {
        $(
            #[doc = concat!("[`", $method, "`](crate::", $method, ").")]
            pub const $name: Setting = Setting::new($method, $flag);
        )*
        /// All settings of [`SessionLimits`](crate::SessionLimits).
        pub const ALL: &[Setting] = &[$($name),*];
    };
}

limits! {
    DEFAULT_TTL: "SessionLimits::default_ttl", "session-ttl";
    MAX_SESSIONS: "SessionLimits::max_sessions", "max-sessions";
    MAX_SESSION_BYTES: "SessionLimits::max_session_bytes", "max-session-bytes";
    MAX_TOTAL_BYTES: "SessionLimits::max_total_bytes", "max-total-bytes";
    MAX_METADATA_ENTRIES: "SessionLimits::max_metadata_entries", "max-metadata-entries";
    MAX_METADATA_BYTES: "SessionLimits::max_metadata_bytes", "max-metadata-bytes";
    MAX_PROGRAM_BYTES: "SessionLimits::max_program_bytes", "max-program-bytes";
    MAX_PROGRAMS: "SessionLimits::max_programs", "max-programs";
    MAX_VARIABLES: "SessionLimits::max_variables", "max-variables";
    MAX_VALUE_BYTES: "SessionLimits::max_value_bytes", "max-value-bytes";
    MAX_HISTORY: "SessionLimits::max_history", "max-history";
    MAX_HISTORY_BYTES: "SessionLimits::max_history_bytes", "max-history-bytes";
    MAX_WATCHES: "SessionLimits::max_watches", "max-watches";
    MAX_WATCH_BACKLOG: "SessionLimits::max_watch_backlog", "max-watch-backlog";
    MAX_WATCH_BACKLOG_BYTES: "SessionLimits::max_watch_backlog_bytes", "max-watch-backlog-bytes";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionLimits;

    /// The pattern names every field, so a new limit does not compile without a setting.
    #[test]
    fn every_limit_has_a_setting() {
        let SessionLimits {
            default_ttl: _,
            max_sessions: _,
            max_session_bytes: _,
            max_total_bytes: _,
            max_metadata_entries: _,
            max_metadata_bytes: _,
            max_program_bytes: _,
            max_programs: _,
            max_variables: _,
            max_value_bytes: _,
            max_history: _,
            max_history_bytes: _,
            max_watches: _,
            max_watch_backlog: _,
            max_watch_backlog_bytes: _,
        } = SessionLimits::default();
        assert_eq!(ALL.len(), 15);
    }

    #[test]
    fn messages_name_methods_or_flags() {
        struct Shown(Setting, bool);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write(self.1, f)
            }
        }
        let name = Setting::without_flag("Builder::name");
        for (setting, names_flags, shown) in [
            (MAX_VALUE_BYTES, false, "`SessionLimits::max_value_bytes`"),
            (MAX_VALUE_BYTES, true, "--max-value-bytes (`max-value-bytes` in snakepit.toml)"),
            (name, false, "`Builder::name`"),
            (name, true, "`Builder::name`"),
        ] {
            assert_eq!(Shown(setting, names_flags).to_string(), shown);
        }
    }
}
