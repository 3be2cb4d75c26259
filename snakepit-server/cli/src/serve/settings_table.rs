//! Compares the table of settings in docs/settings.md with the code: every field of the configurations, every flag, and
//! the defaults of both.

use std::{path::Path, time::Duration};

use clap::Args as _;
use snakepit_pool::PoolConfig;
use snakepit_server::{Builder, Snakepit};
use snakepit_session::SessionLimits;

use super::Args;

/// One row of the table.
struct Row {
    /// The method or the field in Rust.
    rust: &'static str,
    default: String,
    values: &'static str,
    /// The flag of `snakepit serve`, which is also the key in the configuration file.
    flag: Option<&'static str>,
}

impl Row {
    fn markdown(&self) -> String {
        let Self { rust, default, values, flag } = self;
        let flag = flag.map_or_else(|| "–".to_owned(), |flag| format!("`--{flag}`"));
        format!("| `{rust}` | {default} | {values} | {flag} |")
    }
}

fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        seconds => format!("{seconds} s"),
    }
}

fn size(bytes: usize) -> String {
    const MIB: usize = 1024 * 1024;
    assert_eq!(bytes % MIB, 0, "the table shows whole mebibytes");
    match bytes / MIB {
        mib if mib.is_multiple_of(1024) => format!("{} GiB", mib / 1024),
        mib => format!("{mib} MiB"),
    }
}

/// A limit that is disabled by default.
fn limit<T: std::fmt::Debug>(limit: Option<T>) -> String {
    limit.map_or_else(|| "none".to_owned(), |limit| format!("{limit:?}"))
}

/// The settings of the pool.
fn pool() -> Vec<Row> {
    let PoolConfig {
        name,
        workers,
        queue_limit,
        queue_bytes,
        default_timeout,
        stop_grace,
        cancel_grace,
        concurrency,
        max_attempts,
        max_worker_calls,
        max_worker_age,
        max_worker_idle,
        max_worker_memory,
        max_worker_memory_hard,
        ..
    } = PoolConfig::default();
    let row = |rust, default, values, flag| Row { rust, default, values, flag };
    vec![
        row("Builder::name", format!("`{name}`"), "1 to 64 letters, digits, `-`, `_`, `.`", None),
        row("Builder::workers", workers.to_string(), "1 to 1024", Some("workers")),
        row("Builder::queue_limit", queue_limit.to_string(), "calls", Some("queue-limit")),
        row("Builder::queue_bytes", size(queue_bytes), "size, at least 1 byte", Some("queue-bytes")),
        row(
            "Builder::default_timeout",
            default_timeout.map_or_else(|| "none".to_owned(), duration),
            "duration; in Rust also none",
            Some("default-timeout"),
        ),
        row("Builder::stop_grace", duration(stop_grace), "duration, up to a day", Some("stop-grace")),
        row("Builder::cancel_grace", duration(cancel_grace), "duration, up to a day", None),
        row(
            "Builder::concurrency",
            concurrency.map_or_else(|| "the adapter's, else 1".to_owned(), |calls| calls.to_string()),
            "1 to 256 calls per worker",
            Some("concurrency"),
        ),
        row("Builder::max_attempts", max_attempts.to_string(), "1 to 10", None),
        row(
            "Builder::max_worker_calls",
            limit(max_worker_calls),
            "calls, at least 1",
            Some("max-worker-calls"),
        ),
        row(
            "Builder::max_worker_age",
            limit(max_worker_age),
            "duration, 1 s to a year",
            Some("max-worker-age"),
        ),
        row(
            "Builder::max_worker_idle",
            limit(max_worker_idle),
            "duration, 1 s to a year",
            Some("max-worker-idle"),
        ),
        row(
            "Builder::max_worker_memory",
            limit(max_worker_memory),
            "size, at least 1 byte",
            Some("max-worker-memory"),
        ),
        row(
            "Builder::max_worker_memory_hard",
            limit(max_worker_memory_hard),
            "size, at least `max_worker_memory`",
            Some("max-worker-memory-hard"),
        ),
    ]
}

fn host() -> Vec<Row> {
    let row = |rust, default: &str, values, flag| Row { rust, default: default.to_owned(), values, flag };
    vec![
        row("Builder::adapter", "none", "[adapter](adapters.md#functions)", Some("adapter")),
        row("Builder::adapter_arg", "none", "name and JSON value; in the file a table", Some("adapter-arg")),
        row("Builder::gpus", "none", "list of GPUs", Some("gpus")),
        row(
            "Builder::library_threads",
            "processors / workers",
            "threads; 0 for no limit",
            Some("library-threads"),
        ),
        row(
            "Builder::threads",
            "the adapter's, else 0",
            "0 to 256 [threads](async.md#threads)",
            Some("threads"),
        ),
        row("Builder::worker_telemetry", "all events", "rules", Some("worker-telemetry")),
        row("Builder::worker_command", "none", "command", Some("worker-command")),
        row("Builder::python", "the nearest `.venv`", "path", Some("python")),
        row(
            "Builder::start_timeout",
            &duration(Builder::DEFAULT_START_TIMEOUT),
            "duration",
            Some("start-timeout"),
        ),
        row("Builder::multiplex", "on", "on or off", Some("no-multiplex")),
        row("Snakepit::shutdown_within", &duration(Snakepit::DEFAULT_DRAIN), "duration", Some("drain")),
        row("Builder::listen", "none; daemon: `127.0.0.1:50051`", "host and port", Some("listen")),
        row("Builder::allow_remote", "off", "on or off", Some("allow-remote")),
        row(
            "Builder::tracebacks",
            "`local`",
            "`local`, `always`, `never`; in Rust also a function",
            Some("tracebacks"),
        ),
        row("Builder::max_connections", "by the limit of open files", "at least 1", Some("max-connections")),
        row(
            "Builder::connection_bytes",
            &size(Builder::DEFAULT_CONNECTION_BYTES),
            "size, at least 1 byte",
            Some("connection-bytes"),
        ),
        row("Builder::sessions", "`memory`", "backend; daemon: location", Some("sessions")),
        row("Builder::run_dir", "the first usable directory", "path", Some("run-dir")),
        row("Builder::reap_orphans", "off; daemon: on as PID 1", "on or off", None),
    ]
}

/// The limits of sessions.
fn sessions() -> Vec<Row> {
    let SessionLimits {
        default_ttl,
        max_sessions,
        max_session_bytes,
        max_total_bytes,
        max_metadata_entries,
        max_metadata_bytes,
        max_program_bytes,
        max_programs,
        max_variables,
        max_value_bytes,
        max_history,
        max_history_bytes,
        max_watches,
        max_watch_backlog,
        max_watch_backlog_bytes,
        ..
    } = SessionLimits::default();
    let row = |rust, default: String, values, flag| Row { rust, default, values, flag: Some(flag) };
    let count = |number: usize| number.to_string();
    vec![
        row("SessionLimits::default_ttl", duration(default_ttl), "duration", "session-ttl"),
        row("SessionLimits::max_sessions", count(max_sessions), "sessions", "max-sessions"),
        row("SessionLimits::max_session_bytes", size(max_session_bytes), "size", "max-session-bytes"),
        row("SessionLimits::max_total_bytes", size(max_total_bytes), "size", "max-total-bytes"),
        row(
            "SessionLimits::max_metadata_entries",
            count(max_metadata_entries),
            "entries",
            "max-metadata-entries",
        ),
        row("SessionLimits::max_metadata_bytes", size(max_metadata_bytes), "size", "max-metadata-bytes"),
        row("SessionLimits::max_program_bytes", size(max_program_bytes), "size", "max-program-bytes"),
        row("SessionLimits::max_programs", count(max_programs), "programs", "max-programs"),
        row("SessionLimits::max_variables", count(max_variables), "variables", "max-variables"),
        row("SessionLimits::max_value_bytes", size(max_value_bytes), "size", "max-value-bytes"),
        row("SessionLimits::max_history", count(max_history), "versions", "max-history"),
        row("SessionLimits::max_history_bytes", size(max_history_bytes), "size", "max-history-bytes"),
        row("SessionLimits::max_watches", count(max_watches), "watches", "max-watches"),
        row("SessionLimits::max_watch_backlog", count(max_watch_backlog), "updates", "max-watch-backlog"),
        row(
            "SessionLimits::max_watch_backlog_bytes",
            size(max_watch_backlog_bytes),
            "size",
            "max-watch-backlog-bytes",
        ),
    ]
}

fn rows() -> Vec<Row> {
    pool().into_iter().chain(host()).chain(sessions()).collect()
}

fn file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The lists of settings are complete, because tests of their crates match all fields of `PoolConfig` and `SessionLimits`.
#[test]
fn every_setting_of_the_pool_and_every_limit_has_a_row() {
    let rows = rows();
    let field = |name: &'static str| name.rsplit("::").next().unwrap();
    let fields = snakepit_server::settings::all().map(|setting| setting.method());
    let fields: Vec<_> = fields.filter(|name| !name.starts_with("Builder::")).map(field).collect();
    assert!(fields.len() > 20, "{fields:?}");
    for name in fields {
        assert!(rows.iter().any(|row| field(row.rust) == name), "no row for `{name}`");
    }
}

#[test]
fn the_page_shows_the_defaults_of_the_code() {
    let expected: Vec<String> = rows().iter().map(Row::markdown).collect();
    let page = file("docs/settings.md");
    let shown: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(shown, expected, "docs/settings.md should have these rows:\n{}", expected.join("\n"));
}

#[test]
fn the_flags_have_the_defaults_of_the_page() {
    let command = Args::augment_args(clap::Command::new("serve"));
    let mut flags = Vec::new();
    for row in rows() {
        let Some(flag) = row.flag else { continue };
        let argument = command.get_arguments().find(|argument| argument.get_long() == Some(flag));
        let argument = argument.unwrap_or_else(|| panic!("the page lists `--{flag}`, which does not exist"));
        flags.push(flag);
        let default = argument.get_default_values().first().map(|value| value.to_str().unwrap());
        let shown = row.default.replace(' ', "");
        match default {
            _ if !argument.get_action().takes_values() => {}
            Some(default) => assert!(
                shown == default || shown.contains(&format!("`{default}`")),
                "`--{flag}` has the default {default}, the page says {}",
                row.default
            ),
            None if shown.ends_with('s') && shown.starts_with(|c: char| c.is_ascii_digit()) => {
                let help = argument.get_help().unwrap().to_string();
                assert!(help.contains(&format!("[default: {shown}]")), "`--{flag}`: {help}");
            }
            None => {}
        }
    }
    let listed = |flag: &str| ["config", "json", "stop-with-stdin"].contains(&flag) || flags.contains(&flag);
    let missing: Vec<_> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .filter(|flag| !listed(flag))
        .collect();
    assert!(missing.is_empty(), "docs/settings.md lacks {missing:?}");
}

#[test]
fn the_methods_of_the_page_exist() {
    let code = ["", "/authorization", "/workers"]
        .map(|name| file(&format!("snakepit-server/src/builder{name}.rs")))
        .concat();
    for row in rows() {
        if let Some(method) = row.rust.strip_prefix("Builder::") {
            let mut lines = code.lines().filter_map(|line| line.trim().strip_prefix("pub "));
            let exists = lines.any(|line| {
                let rest = line.trim_start_matches("const ").strip_prefix("fn ").unwrap_or_default();
                rest.strip_prefix(method).is_some_and(|rest| rest.starts_with(['(', '<']))
            });
            assert!(exists, "`{}` does not exist", row.rust);
        }
    }
}
