//! The settings of a pool.

use std::time::Duration;

use crate::{
    PoolError,
    scheduler::MAX_CONCURRENCY,
    settings::{self, Setting},
};

/// The longest name. Worker ids travel in headers and command lines, and appear in each line of a worker's log.
const MAX_NAME_BYTES: usize = 64;

/// The longest grace period, one day.
const MAX_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// The range of the times after which workers are replaced. Shorter ones would keep the pool busy with starts.
const MIN_RECYCLE_TIME: Duration = Duration::from_secs(1);
const MAX_RECYCLE_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The settings of a pool. Start from [`PoolConfig::default`].
///
/// ```
/// use snakepit_pool::PoolConfig;
///
/// let config = PoolConfig::default().workers(8).queue_limit(100);
/// # assert_eq!(config.concurrency, None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// The name of the pool, which is the prefix of its workers' ids: 1 to 64 ASCII letters, digits, `-`, `_` and `.`.
    /// Default `default`.
    pub name: String,
    /// The number of workers, 1 to 1024. Default 4.
    pub workers: usize,
    /// The maximum number of calls that may wait for a worker. The pool rejects further calls. With 0, it rejects every call that
    /// finds no idle worker. Default 1000.
    pub queue_limit: usize,
    /// The maximum total size of the arguments and metadata of all waiting calls, in bytes. The pool rejects further calls,
    /// but one call may always wait, regardless of its size. At least 1. Default 512 MiB.
    pub queue_bytes: usize,
    /// The timeout of calls without a deadline, from submission to the end of the reply. Not zero. `None` disables it.
    /// Default 60 s.
    pub default_timeout: Option<Duration>,
    /// The time that a worker has to stop before the pool kills it, at most a day. Default 5 s, because large libraries
    /// need time to shut down.
    pub stop_grace: Duration,
    /// The time that a cancelled call has to end before the pool kills its worker, at most a day. Default 2 s.
    pub cancel_grace: Duration,
    /// The number of calls that one worker runs concurrently, 1 to 256. With `None`, the default, each worker declares its own
    /// number, and workers that declare none run one call at a time.
    ///
    /// The number that a worker declares takes precedence. Python workers receive this setting when they start, and declare
    /// it, or more if they have more threads.
    pub concurrency: Option<usize>,
    /// The maximum number of times that an idempotent call may begin if its workers are lost, including the first time, 1 to 10.
    /// Default 2.
    ///
    /// Attempts in which the call did not begin do not count. The pool repeats them until the deadline, at most 100 times.
    /// It makes at most 4 such retries on workers that had no other call, because then the call itself probably kills the
    /// worker.
    pub max_attempts: usize,
    /// The number of calls after which a worker is replaced, at least 1. `None`, the default, disables this limit.
    ///
    /// This and the next three are soft limits. A worker that reaches one serves calls until its replacement is up, and then
    /// finishes its calls. At most a quarter of the workers are replaced at the same time. For each worker, this limit and
    /// `max_worker_age` are reduced by a random share of up to a tenth, so that workers that started together are not replaced
    /// together.
    pub max_worker_calls: Option<u64>,
    /// The age at which a worker is replaced, at least one second. `None`, the default, disables this limit.
    pub max_worker_age: Option<Duration>,
    /// The time without calls after which a worker that has run calls is replaced, which frees the memory of these calls. At
    /// least one second. `None`, the default, disables this limit.
    pub max_worker_idle: Option<Duration>,
    /// The private memory, in bytes, above which a worker is replaced, but not earlier than 10 seconds after its start and after
    /// its first call. `None`, the default, disables this limit.
    ///
    /// The pool measures the memory twice per second, as [`Worker::private_memory`](snakepit_worker::Worker::private_memory)
    /// describes.
    pub max_worker_memory: Option<u64>,
    /// The private memory, in bytes, above which a worker is killed. Its calls fail as for a worker that crashed. Not less than
    /// `max_worker_memory`. `None`, the default, disables this limit.
    pub max_worker_memory_hard: Option<u64>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            workers: 4,
            queue_limit: 1000,
            queue_bytes: 512 * 1024 * 1024,
            default_timeout: Some(Duration::from_secs(60)),
            stop_grace: Duration::from_secs(5),
            cancel_grace: Duration::from_secs(2),
            concurrency: None,
            max_attempts: 2,
            max_worker_calls: None,
            max_worker_age: None,
            max_worker_idle: None,
            max_worker_memory: None,
            max_worker_memory_hard: None,
        }
    }
}

macro_rules! setters {
    ($($field:ident: $ty:ty;)*) => {
        $(
            #[doc = concat!("Sets the field [`", stringify!($field), "`](Self#structfield.", stringify!($field), ").")]
            #[must_use]
            pub fn $field(mut self, value: $ty) -> Self {
                self.$field = value;
                self
            }
        )*
    };
}

macro_rules! optional_setters {
    ($($field:ident: $ty:ty;)*) => {
        $(
            #[doc = concat!("Sets or removes the limit [`", stringify!($field), "`](Self#structfield.", stringify!($field), ").")]
            #[must_use]
            pub fn $field(mut self, limit: impl Into<Option<$ty>>) -> Self {
                self.$field = limit.into();
                self
            }
        )*
    };
}

/// The setters, one per field.
impl PoolConfig {
    /// Sets the field [`name`](Self#structfield.name).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets or removes the [`default_timeout`](Self#structfield.default_timeout).
    #[must_use]
    pub fn default_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.default_timeout = timeout.into();
        self
    }

    /// Sets the [`concurrency`](Self#structfield.concurrency).
    #[must_use]
    pub const fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = Some(concurrency);
        self
    }

    optional_setters! {
        max_worker_calls: u64;
        max_worker_age: Duration;
        max_worker_idle: Duration;
        max_worker_memory: u64;
        max_worker_memory_hard: u64;
    }

    setters! {
        workers: usize;
        queue_limit: usize;
        queue_bytes: usize;
        stop_grace: Duration;
        cancel_grace: Duration;
        max_attempts: usize;
    }
}

impl PoolConfig {
    pub(crate) fn validate(&self) -> Result<(), PoolError> {
        let check_range = |setting: Setting, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            let problem = format!("is {value}; set it to a value from {min} to {max}");
            Err(PoolError::InvalidConfig { setting, problem })
        };
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !(1..=MAX_NAME_BYTES).contains(&self.name.len()) || !self.name.chars().all(is_allowed) {
            let shown: String = self.name.chars().take(MAX_NAME_BYTES).collect();
            let cut = if shown.len() < self.name.len() { "..." } else { "" };
            let problem = format!(
                "is {shown:?}{cut}; give it 1 to {MAX_NAME_BYTES} ASCII letters, digits, `-`, `_` and `.`"
            );
            return Err(PoolError::InvalidConfig { setting: settings::NAME, problem });
        }
        if self.queue_bytes == 0 {
            let problem = "is 0, so that no call could wait; set it to at least 1".to_owned();
            return Err(PoolError::InvalidConfig { setting: settings::QUEUE_BYTES, problem });
        }
        if self.default_timeout.is_some_and(|timeout| timeout.is_zero()) {
            let problem = "is zero, so that no call could end in time; raise it or leave it out".to_owned();
            return Err(PoolError::InvalidConfig { setting: settings::DEFAULT_TIMEOUT, problem });
        }
        let graces = [(settings::STOP_GRACE, self.stop_grace), (settings::CANCEL_GRACE, self.cancel_grace)];
        for (setting, grace) in graces {
            if grace > MAX_GRACE {
                let problem = format!("is {grace:?}; set it to at most one day");
                return Err(PoolError::InvalidConfig { setting, problem });
            }
        }
        check_range(settings::WORKERS, self.workers, 1, 1024)?;
        check_range(settings::CONCURRENCY, self.concurrency.unwrap_or(1), 1, MAX_CONCURRENCY)?;
        check_range(settings::MAX_ATTEMPTS, self.max_attempts, 1, 10)?;
        self.validate_recycling()
    }

    /// Whether a limit applies to the memory of workers.
    pub(crate) const fn limits_memory(&self) -> bool {
        self.max_worker_memory.is_some() || self.max_worker_memory_hard.is_some()
    }

    fn validate_recycling(&self) -> Result<(), PoolError> {
        let invalid = |setting: Setting, problem: String| Err(PoolError::InvalidConfig { setting, problem });
        let counts = [
            (settings::MAX_WORKER_CALLS, self.max_worker_calls),
            (settings::MAX_WORKER_MEMORY, self.max_worker_memory),
            (settings::MAX_WORKER_MEMORY_HARD, self.max_worker_memory_hard),
        ];
        if let Some((setting, _)) = counts.into_iter().find(|(_, limit)| *limit == Some(0)) {
            return invalid(setting, "is 0; raise it, or leave it out for no limit".to_owned());
        }
        let times = [
            (settings::MAX_WORKER_AGE, self.max_worker_age),
            (settings::MAX_WORKER_IDLE, self.max_worker_idle),
        ];
        for (setting, time) in times {
            if let Some(time) = time.filter(|time| !(MIN_RECYCLE_TIME..=MAX_RECYCLE_TIME).contains(time)) {
                return invalid(
                    setting,
                    format!("is {time:?}; set it to a value from one second to one year"),
                );
            }
        }
        match (self.max_worker_memory, self.max_worker_memory_hard) {
            (Some(soft), Some(hard)) if hard < soft => invalid(
                settings::MAX_WORKER_MEMORY_HARD,
                format!("is {hard} bytes, below `max_worker_memory` with {soft} bytes; raise it"),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_settings_are_rejected_by_name() {
        let error_of = |change: fn(&mut PoolConfig)| {
            let mut config = PoolConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(
            error_of(|c| c.workers = 0),
            "pool setting `workers` is 0; set it to a value from 1 to 1024"
        );
        assert_eq!(
            error_of(|c| c.workers = 1025),
            "pool setting `workers` is 1025; set it to a value from 1 to 1024"
        );
        assert!(error_of(|c| c.name = "a b".to_owned()).contains("`name` is \"a b\""));
        for bad in ["", "a/b", "ä", "a\n", "a:b", "$(x)"] {
            let config = PoolConfig { name: bad.to_owned(), ..PoolConfig::default() };
            let problem = config.validate().unwrap_err().to_string();
            assert!(problem.contains("1 to 64 ASCII letters, digits, `-`, `_` and `.`"), "{problem}");
        }
        let long = error_of(|c| c.name = "n".repeat(1000));
        assert!(long.contains("n\"...; give it") && long.len() < 200, "{long}");
        let longest = PoolConfig { name: "n".repeat(64), ..PoolConfig::default() };
        assert!(longest.validate().is_ok());
        assert!(PoolConfig { name: "gpu-A_1.b".to_owned(), ..PoolConfig::default() }.validate().is_ok());
        assert!(error_of(|c| c.queue_bytes = 0).contains("`queue_bytes` is 0"));
        assert!(error_of(|c| c.default_timeout = Some(Duration::ZERO)).contains("`default_timeout`"));
        assert!(error_of(|c| c.cancel_grace = Duration::MAX).contains("`cancel_grace`"));
        assert!(error_of(|c| c.concurrency = Some(0)).contains("`concurrency`"));
        assert!(error_of(|c| c.max_attempts = 0).contains("`max_attempts`"));
        assert!(error_of(|c| c.max_worker_calls = Some(0)).contains("`max_worker_calls` is 0"));
        assert!(
            error_of(|c| c.max_worker_age = Some(Duration::from_millis(999))).contains("`max_worker_age`")
        );
        assert!(error_of(|c| c.max_worker_idle = Some(Duration::MAX)).contains("`max_worker_idle`"));
        let swapped = error_of(|c| *c = c.clone().max_worker_memory(2).max_worker_memory_hard(1));
        assert!(swapped.contains("below `max_worker_memory`"), "{swapped}");
        assert!(PoolConfig::default().validate().is_ok());
    }
}
