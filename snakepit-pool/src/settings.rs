//! The settings of [`PoolConfig`](crate::PoolConfig) that error messages name. The builder of a host has a method of the same
//! name for each field.

pub use snakepit_worker::settings::Setting;

macro_rules! fields {
    ($($name:ident: $setting:expr;)*) => {
        $(
            /// The field of [`PoolConfig`](crate::PoolConfig) with this name.
            pub const $name: Setting = $setting;
        )*
        /// All settings of [`PoolConfig`](crate::PoolConfig).
        pub const ALL: &[Setting] = &[$($name),*];
    };
}

fields! {
    NAME: Setting::without_flag("name");
    WORKERS: Setting::new("workers", "workers");
    QUEUE_LIMIT: Setting::new("queue_limit", "queue-limit");
    QUEUE_BYTES: Setting::new("queue_bytes", "queue-bytes");
    DEFAULT_TIMEOUT: Setting::new("default_timeout", "default-timeout");
    STOP_GRACE: Setting::new("stop_grace", "stop-grace");
    CANCEL_GRACE: Setting::without_flag("cancel_grace");
    CONCURRENCY: Setting::new("concurrency", "concurrency");
    MAX_ATTEMPTS: Setting::without_flag("max_attempts");
    MAX_WORKER_CALLS: Setting::new("max_worker_calls", "max-worker-calls");
    MAX_WORKER_AGE: Setting::new("max_worker_age", "max-worker-age");
    MAX_WORKER_IDLE: Setting::new("max_worker_idle", "max-worker-idle");
    MAX_WORKER_MEMORY: Setting::new("max_worker_memory", "max-worker-memory");
    MAX_WORKER_MEMORY_HARD: Setting::new("max_worker_memory_hard", "max-worker-memory-hard");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolConfig;

    /// The pattern names every field, so a new one does not compile without a setting.
    #[test]
    fn every_field_has_a_setting() {
        let PoolConfig {
            name: _,
            workers: _,
            queue_limit: _,
            queue_bytes: _,
            default_timeout: _,
            stop_grace: _,
            cancel_grace: _,
            concurrency: _,
            max_attempts: _,
            max_worker_calls: _,
            max_worker_age: _,
            max_worker_idle: _,
            max_worker_memory: _,
            max_worker_memory_hard: _,
        } = PoolConfig::default();
        assert_eq!(ALL.len(), 14);
    }
}
