//! What a user says about a pool.

use std::time::Duration;

use crate::PoolError;

/// Nobody waits longer than a day for one worker to end.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// How a pool is made. Start from [`PoolConfig::default`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// The pool's name, with which its workers' ids begin. Default `default`.
    pub name: String,
    /// How many workers it keeps, 1 to 1024. Default 4.
    pub workers: usize,
    /// How many calls may wait for a worker; those beyond are refused. 0 refuses every call that finds no idle
    /// worker. Default 1000.
    pub queue_limit: usize,
    /// What the arguments and metadata of those calls may hold together, in bytes; calls beyond are refused. One alone may
    /// always wait. Default 512 MiB.
    pub queue_bytes: usize,
    /// How long a call without a deadline may take in all; `None` is for ever. Default 60 s.
    pub default_timeout: Option<Duration>,
    /// How long a worker that is asked to stop has before it is killed, at most a day. Default 5 s: large libraries
    /// take a while to be torn down.
    pub stop_grace: Duration,
    /// How long a cancelled call has to end before its worker is killed, at most a day. Default 2 s.
    pub cancel_grace: Duration,
    /// How many calls one worker runs at a time, 1 to 256. Default 1.
    pub concurrency: usize,
    /// How often an idempotent call may begin when its workers are lost, the first time included: 1 to 10, default 2. A call
    /// that never began is tried again until its deadline.
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
            concurrency: 1,
            max_attempts: 2,
        }
    }
}

impl PoolConfig {
    pub(crate) fn validate(&self) -> Result<(), PoolError> {
        let within = |field: &'static str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let problem = format!("is {value}; set it to {least} to {most}");
            Err(PoolError::InvalidConfig { field, problem })
        };
        if self.name.is_empty() || self.name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            let problem = format!("is {:?}; give it a word without spaces", self.name);
            return Err(PoolError::InvalidConfig { field: "name", problem });
        }
        if self.default_timeout.is_some_and(|timeout| timeout.is_zero()) {
            let problem = "is zero, so that no call could end in time; raise it or leave it out".to_owned();
            return Err(PoolError::InvalidConfig { field: "default_timeout", problem });
        }
        for (field, grace) in [("stop_grace", self.stop_grace), ("cancel_grace", self.cancel_grace)] {
            if grace > LONGEST_GRACE {
                let problem = format!("is {grace:?}; set it to {LONGEST_GRACE:?} at most");
                return Err(PoolError::InvalidConfig { field, problem });
            }
        }
        within("workers", self.workers, 1, 1024)?;
        within("concurrency", self.concurrency, 1, 256)?;
        within("max_attempts", self.max_attempts, 1, 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let refused = |change: fn(&mut PoolConfig)| {
            let mut config = PoolConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(refused(|c| c.workers = 0), "pool setting `workers` is 0; set it to 1 to 1024");
        assert_eq!(refused(|c| c.workers = 1025), "pool setting `workers` is 1025; set it to 1 to 1024");
        assert!(refused(|c| c.name = "a b".to_owned()).contains("`name` is \"a b\""));
        assert!(refused(|c| c.default_timeout = Some(Duration::ZERO)).contains("`default_timeout`"));
        assert!(refused(|c| c.cancel_grace = Duration::MAX).contains("`cancel_grace`"));
        assert!(refused(|c| c.concurrency = 0).contains("`concurrency`"));
        assert!(refused(|c| c.max_attempts = 0).contains("`max_attempts`"));
        assert!(PoolConfig::default().validate().is_ok());
    }
}
