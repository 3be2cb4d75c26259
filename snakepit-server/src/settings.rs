//! The settings of a host that error messages name.
//!
//! Each [`Setting`] has the name of a method of [`Builder`](crate::Builder), or of a field of
//! [`SessionLimits`](crate::SessionLimits), and the name of its flag in the daemon, which is also the key in `snakepit.toml`.
//!
//! ```
//! use snakepit_server::settings;
//!
//! assert_eq!(settings::RUN_DIR.method(), "Builder::run_dir");
//! assert_eq!(settings::RUN_DIR.flag(), Some("run-dir"));
//! assert!(settings::all().any(|setting| setting.method() == "SessionLimits::max_sessions"));
//! ```

pub use snakepit_pool::settings::{
    CANCEL_GRACE, CONCURRENCY, DEFAULT_TIMEOUT, MAX_ATTEMPTS, MAX_WORKER_AGE, MAX_WORKER_CALLS,
    MAX_WORKER_IDLE, MAX_WORKER_MEMORY, MAX_WORKER_MEMORY_HARD, NAME, QUEUE_BYTES, QUEUE_LIMIT, STOP_GRACE,
    WORKERS,
};
pub use snakepit_worker::settings::{PYTHON, RUN_DIR, START_TIMEOUT, Setting, WORKER_COMMAND};

/// The adapter that workers serve.
pub const ADAPTER: Setting = Setting::new("Builder::adapter", "adapter");
/// The arguments of the adapter.
pub const ADAPTER_ARG: Setting = Setting::new("Builder::adapter_arg", "adapter-arg");
/// The GPUs of the workers.
pub const GPUS: Setting = Setting::new("Builder::gpus", "gpus");
/// The number of threads that numeric libraries use in each worker.
pub const LIBRARY_THREADS: Setting = Setting::new("Builder::library_threads", "library-threads");
/// The number of threads in which each worker runs tools that are synchronous functions.
pub const THREADS: Setting = Setting::new("Builder::threads", "threads");
/// The events that workers send.
pub const WORKER_TELEMETRY: Setting = Setting::new("Builder::worker_telemetry", "worker-telemetry");
/// The launcher of the workers.
pub const LAUNCHER: Setting = Setting::without_flag("Builder::launcher");
/// The address on which the host serves gRPC over TCP.
pub const LISTEN: Setting = Setting::new("Builder::listen_on", "listen");
/// Whether the host may listen on an address that other machines can reach.
pub const ALLOW_REMOTE: Setting = Setting::new("Builder::allow_remote", "allow-remote");
/// The clients whose errors include tracebacks.
pub const TRACEBACKS: Setting = Setting::new("Builder::tracebacks", "tracebacks");
/// The number of client connections over TCP.
pub const MAX_CONNECTIONS: Setting = Setting::new("Builder::max_connections", "max-connections");
/// The maximum size of all requests on one client connection.
pub const CONNECTION_BYTES: Setting = Setting::new("Builder::connection_bytes", "connection-bytes");
/// The backend that stores sessions.
pub const SESSIONS: Setting = Setting::new("Builder::sessions", "sessions");
/// Whether calls share one stream to each worker.
pub const MULTIPLEX: Setting = Setting::new("Builder::multiplex", "no-multiplex");

/// The settings of the builder that are neither those of the pool nor those of the launcher.
const HOST: [Setting; 14] = [
    ADAPTER,
    ADAPTER_ARG,
    GPUS,
    LIBRARY_THREADS,
    THREADS,
    WORKER_TELEMETRY,
    LAUNCHER,
    LISTEN,
    ALLOW_REMOTE,
    TRACEBACKS,
    MAX_CONNECTIONS,
    CONNECTION_BYTES,
    SESSIONS,
    MULTIPLEX,
];

/// All settings of a host: those of the builder, and the session limits.
pub fn all() -> impl Iterator<Item = Setting> {
    let others =
        [snakepit_worker::settings::ALL, snakepit_pool::settings::ALL, snakepit_session::settings::ALL];
    HOST.into_iter().chain(others.into_iter().flatten().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_distinct_names() {
        let methods: std::collections::HashSet<_> = all().map(Setting::method).collect();
        let flags: std::collections::HashSet<_> = all().filter_map(Setting::flag).collect();
        assert_eq!(methods.len(), all().count());
        assert_eq!(flags.len(), all().filter(|setting| setting.flag().is_some()).count());
        assert!(flags.iter().all(|flag| !flag.starts_with('-')));
    }
}
