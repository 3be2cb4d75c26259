//! The clock of one connection. HTTP/2 records the time of each header and each piece of data, so it asks for the time several
//! times per request. This clock is read once per poll of the connection instead, which is when the host reads from the socket.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioTimer;
use pin_project_lite::pin_project;
use tokio::time::Instant;

/// The time of the last poll of a connection, as the timer for its HTTP/2 keepalive. Clones share the time.
#[derive(Debug, Clone)]
pub(super) struct ConnectionClock(Arc<LastPoll>);

#[derive(Debug)]
struct LastPoll {
    start: Instant,
    /// The time of the last poll, in nanoseconds after `start`.
    nanos: AtomicU64,
}

impl ConnectionClock {
    pub(super) fn new() -> Self {
        Self(Arc::new(LastPoll { start: Instant::now(), nanos: AtomicU64::new(0) }))
    }

    /// Wraps the connection whose polls update this clock.
    pub(super) fn follow<C>(self, connection: C) -> TimedConnection<C> {
        TimedConnection { connection, clock: self }
    }

    fn update(&self) {
        let nanos = u64::try_from(self.0.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.nanos.store(nanos, Ordering::Relaxed);
    }
}

impl Timer for ConnectionClock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep(duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep_until(deadline)
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, new_deadline: std::time::Instant) {
        TokioTimer::new().reset(sleep, new_deadline);
    }

    fn now(&self) -> std::time::Instant {
        (self.0.start + Duration::from_nanos(self.0.nanos.load(Ordering::Relaxed))).into_std()
    }
}

pin_project! {
    /// A connection that reads its clock at the start of each poll.
    pub(super) struct TimedConnection<C> {
        #[pin]
        connection: C,
        clock: ConnectionClock,
    }
}

impl<C> TimedConnection<C> {
    pub(super) fn connection(self: Pin<&mut Self>) -> Pin<&mut C> {
        self.project().connection
    }
}

impl<C: Future> Future for TimedConnection<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.clock.update();
        this.connection.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_is_that_of_the_last_poll() {
        let clock = ConnectionClock::new();
        let mut connection = pin!(clock.clone().follow(poll_fn(|_| Poll::<()>::Pending)));
        let start = Instant::now();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(clock.now(), start.into_std(), "the connection was not polled");
        assert!(futures_util::poll!(connection.as_mut()).is_pending());
        assert_eq!(clock.now(), Instant::now().into_std());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clock.now() - start.into_std(), Duration::from_secs(10));
    }
}
