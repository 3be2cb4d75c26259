//! Restarts: waits for the rolling replacement of all workers.

use snakepit_worker::{WorkerError, WorkerId};
use tokio::time::Instant;

use super::Driver;
use crate::{
    PoolError,
    scheduler::{Event, Phase, Replacement, RestartOutcome},
};

/// A restart that has ended.
#[derive(Debug, Clone, Default)]
pub(super) struct FinishedRestart {
    /// The number of the restart, which includes all earlier ones. 0 before the first one.
    number: u64,
    /// The reason why not all workers were replaced.
    error: Option<PoolError>,
}

impl Driver {
    /// Replaces all workers, and waits until the restart has ended. If a later restart supersedes this one, waits for the later one.
    pub(crate) async fn restart(&self) -> Result<(), PoolError> {
        let mut ended = self.restarts.subscribe();
        let number = self.with_state(|state, deferred| {
            state.last_restart += 1;
            let number = state.last_restart;
            self.apply(state, Event::Restart { number }, Instant::now(), deferred);
            number
        });
        self.update_readiness();
        // The channel does not close while `self` holds its sending end.
        match ended.wait_for(|ended| ended.number >= number).await.as_deref() {
            Ok(FinishedRestart { error: None, .. }) => Ok(()),
            Ok(FinishedRestart { error: Some(error), .. }) => Err(error.clone()),
            Err(_) => Err(PoolError::ShutDown),
        }
    }

    /// Replaces one worker, and waits until its replacement is up. If the launch of the replacement fails, the worker remains in
    /// service.
    pub(crate) async fn restart_worker(&self, id: &str) -> Result<(), PoolError> {
        let mut launches = self.launches.subscribe();
        let key = self.with_state(|state, deferred| {
            if state.scheduler.phase() != Phase::Serving {
                return Err(PoolError::ShutDown);
            }
            let key = self.worker_key(id).filter(|key| state.scheduler.is_in_service(*key));
            let key = key.ok_or_else(|| PoolError::NoSuchWorker { id: id.to_owned() })?;
            self.apply(state, Event::Recycle(key), Instant::now(), deferred);
            Ok(key)
        })?;
        loop {
            {
                let state = self.lock();
                if state.runtime_has_ended || state.scheduler.phase() != Phase::Serving {
                    return Err(PoolError::ShutDown);
                }
                match state.scheduler.replacement_of(key) {
                    Replacement::Up => return Ok(()),
                    Replacement::Pending => {}
                    Replacement::Failed => {
                        let no_cause = || {
                            PoolError::start(
                                self.worker_id(key),
                                WorkerError::start_failed("its launch failed"),
                            )
                        };
                        return Err(state.last_launch_error.clone().unwrap_or_else(no_cause));
                    }
                }
            }
            // The channel does not close while `self` holds its sending end.
            if launches.changed().await.is_err() {
                return Err(PoolError::ShutDown);
            }
        }
    }

    /// Whether the failed launch of this worker ended the last restart.
    pub(super) fn has_ended_restart(&self, id: &WorkerId) -> bool {
        matches!(&self.restarts.borrow().error, Some(PoolError::Start { worker, .. }) if worker == id)
    }

    /// The result of a restart. `launch_error` is the error of the last failed launch.
    pub(super) fn ended_restart(
        &self,
        launch_error: Option<PoolError>,
        number: u64,
        outcome: RestartOutcome,
    ) -> FinishedRestart {
        let error = match outcome {
            RestartOutcome::Replaced => None,
            RestartOutcome::ShutDown => Some(PoolError::ShutDown),
            RestartOutcome::Failed { worker, replaced } => {
                let worker = self.worker_id(worker);
                let error = match launch_error {
                    Some(PoolError::Start { worker: launched, error, .. }) if launched == worker => error,
                    _ => WorkerError::start_failed("its launch failed"),
                };
                Some(PoolError::Start { worker, replaced, error })
            }
        };
        FinishedRestart { number, error }
    }

    /// Reports the end of a restart to the tasks that wait for it. Wakes them, so call it without the lock. Another thread may have
    /// reported a later restart in the meantime.
    pub(super) fn report_restart(&self, ended: FinishedRestart) {
        self.restarts.send_if_modified(|last| {
            let is_later = ended.number > last.number;
            if is_later {
                *last = ended;
            }
            is_later
        });
    }
}
