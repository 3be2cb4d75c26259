//! Restarts: waits for the rolling replacement of all workers.

use snakepit_worker::WorkerId;
use tokio::time::Instant;

use super::Driver;
use crate::{
    PoolError,
    scheduler::{Event, RestartOutcome},
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

    /// Whether the failed launch of this worker ended the last restart.
    pub(super) fn has_ended_restart(&self, id: &WorkerId) -> bool {
        matches!(&self.restarts.borrow().error, Some(PoolError::Start { worker, .. }) if worker == id)
    }

    /// Reports the end of a restart. `launch_error` is the error of the last failed launch.
    pub(super) fn end_restart(&self, launch_error: Option<PoolError>, number: u64, outcome: RestartOutcome) {
        let error = match outcome {
            RestartOutcome::Replaced => None,
            RestartOutcome::ShutDown => Some(PoolError::ShutDown),
            RestartOutcome::Failed(key) => {
                let is_its = |error: &PoolError| matches!(error, PoolError::Start { worker, .. } if *worker == self.worker_id(key));
                Some(
                    launch_error
                        .filter(is_its)
                        .unwrap_or_else(|| self.unknown_launch_error(self.worker_id(key))),
                )
            }
        };
        self.restarts.send_replace(FinishedRestart { number, error });
    }

    fn unknown_launch_error(&self, worker: WorkerId) -> PoolError {
        PoolError::start(worker, snakepit_worker::WorkerError::start_failed("its launch failed"))
    }
}
