//! Compares the events of a watch with the model.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use futures_core::Stream;
use snakepit_session::{SessionError, SessionLimits, VariableWatch, WatchEvent};
use tokio::time::Instant;

use super::{operation::UpdateView, state};

/// A watch and its progress in the expected updates.
#[derive(Debug)]
pub(super) struct WatchProgress {
    /// The index of the watch in the model.
    pub(super) number: usize,
    watch: VariableWatch,
    /// The number of updates that the watch has delivered or reported as lost.
    position: usize,
}

impl WatchProgress {
    pub(super) const fn new(number: usize, watch: VariableWatch) -> Self {
        Self { number, watch, position: 0 }
    }

    /// Reads up to `max_events` events, as far as they are available.
    pub(super) async fn read(
        &mut self,
        max_events: usize,
        limits: &SessionLimits,
        watch: &state::Watch,
    ) -> Result<(), String> {
        for _ in 0..max_events {
            let ready = poll_fn(|cx| match Pin::new(&mut self.watch).poll_next(cx) {
                Poll::Ready(event) => Poll::Ready(Some(event)),
                Poll::Pending => Poll::Ready(None),
            });
            let Some(event) = ready.await else { break };
            if self.is_end(event, limits, watch)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads all events of a watch whose session has ended.
    pub(super) async fn finish(mut self, limits: &SessionLimits, watch: &state::Watch) -> Result<(), String> {
        loop {
            let event = next(&mut self.watch).await?;
            if self.is_end(event, limits, watch)? {
                break;
            }
        }
        match watch.expected_updates.len() - self.position {
            0 => Ok(()),
            missing => Err(format!("watch {} ended without its last {missing} updates", self.number)),
        }
    }

    fn is_end(
        &mut self,
        event: Option<Result<WatchEvent, SessionError>>,
        limits: &SessionLimits,
        watch: &state::Watch,
    ) -> Result<bool, String> {
        let (number, remaining) = (self.number, &watch.expected_updates[self.position..]);
        match event {
            Some(Ok(WatchEvent::Update(update))) => {
                let update = UpdateView::from(update);
                if remaining.first() != Some(&update) {
                    return Err(format!("watch {number} returned {update:?}, not {:?}", remaining.first()));
                }
                self.position += 1;
                Ok(false)
            }
            Some(Ok(WatchEvent::Lost(lost))) => {
                let bytes: usize = remaining.iter().map(|update| update.variable.value.bytes()).sum();
                if remaining.len() <= limits.max_watch_backlog.max(1)
                    && bytes <= limits.max_watch_backlog_bytes
                {
                    return Err(format!(
                        "watch {number} lost {lost} updates, although its queue had space for all"
                    ));
                }
                self.position += usize::try_from(lost).unwrap_or(usize::MAX);
                if self.position >= watch.expected_updates.len() {
                    return Err(format!("watch {number} lost {lost} updates, including the latest"));
                }
                Ok(false)
            }
            Some(Err(SessionError::NotFound { .. })) | None if watch.has_ended => Ok(true),
            other => Err(format!("watch {number} ended before its session: {other:?}")),
        }
    }
}

/// Waits for the next event of a watch, with a timeout.
pub(super) async fn next(
    watch: &mut VariableWatch,
) -> Result<Option<Result<WatchEvent, SessionError>>, String> {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let began = Instant::now();
    let event = tokio::time::timeout(TIMEOUT, watch.next()).await;
    // If the watch has an event after the timeout, it failed to wake its task.
    event.ok().filter(|_| began.elapsed() < TIMEOUT).ok_or_else(|| "a watch timed out".to_owned())
}
