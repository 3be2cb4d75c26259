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
        check_range(settings::MAX_ATTEMPTS, self.max_attempts, 1, 10)
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
        assert!(PoolConfig::default().validate().is_ok());
    }
}
