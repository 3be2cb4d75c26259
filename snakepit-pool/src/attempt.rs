//! One attempt at a call: its error, and the layers that the program puts around it.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use snakepit_registry::{CallId, CallLayers, CallService, ToolCall, ToolError, ToolReply};
use tokio::sync::Notify;
use tower::Service;

use crate::{dispatch::Dispatch, driver::Driver};

/// The error of a failed attempt. [`Retry`](crate::retry::Retry) decides whether another attempt follows.
#[derive(Debug, Clone)]
pub(crate) struct AttemptError {
    /// The error for the caller, if no attempt follows.
    pub(crate) error: ToolError,
    /// Whether the worker was lost while it had no other call, so this call may have caused the loss.
    pub(crate) was_only_call: bool,
}

impl From<ToolError> for AttemptError {
    fn from(error: ToolError) -> Self {
        Self { error, was_only_call: false }
    }
}

/// Runs attempts through the attempt layers of the program. Always ready, because the future of an attempt waits until its layers
/// are ready.
#[derive(Debug, Clone)]
pub(crate) struct Attempts {
    dispatch: Dispatch,
    layered: Option<Arc<AttemptService>>,
}

/// The layers of the program around [`InnermostDispatch`].
#[derive(Debug)]
struct AttemptService {
    service: CallService,
    driver: Arc<Driver>,
}

impl Attempts {
    pub(crate) fn new(driver: &Arc<Driver>, layers: CallLayers) -> Self {
        let dispatch = Dispatch::new(Arc::clone(driver));
        let layered = layers
            .wrap(InnermostDispatch(dispatch.clone()))
            .map(|service| Arc::new(AttemptService { service, driver: Arc::clone(driver) }));
        Self { dispatch, layered }
    }
}

impl Service<Arc<ToolCall>> for Attempts {
    type Response = ToolReply;
    type Error = AttemptError;
    type Future = <Dispatch as Service<Arc<ToolCall>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        self.dispatch.poll_ready(cx)
    }

    fn call(&mut self, call: Arc<ToolCall>) -> Self::Future {
        match &self.layered {
            // A nested call belongs to an attempt that has passed the layers. With a concurrency limit, it would wait for the
            // permit that its caller holds.
            Some(layered) if call.ancestors.is_none() => layered.run(ToolCall::clone(&call)),
            _ => self.dispatch.call(call),
        }
    }
}

impl AttemptService {
    fn run(&self, mut call: ToolCall) -> <Attempts as Service<Arc<ToolCall>>>::Future {
        let mark = OnlyCallMark::default();
        call.extensions.insert(mark.clone());
        let driver = Arc::clone(&self.driver);
        let (tool, registration) = (Arc::clone(&call.tool), LayeredAttempt::register(&driver, call.id));
        // The driver does not know of calls that wait in a layer, so `run_bounded` ends them.
        let mut running = self.service.run_bounded(call, async move { driver.stopped().await });
        Box::pin(async move {
            let mut cancelled = pin!(registration.cancelled.notified());
            let result = poll_fn(|cx| {
                // Polled first, so that a call does not begin after its cancellation.
                if cancelled.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(ToolError::cancelled(&*tool)));
                }
                running.as_mut().poll(cx)
            });
            let with_mark = |error| AttemptError { error, was_only_call: mark.0.load(Ordering::Relaxed) };
            result.await.map_err(with_mark)
        })
    }
}

/// The attempts that are in the layers of the program or inside them, by their calls. A call that waits in a layer is unknown to
/// the driver, so a cancellation ends its attempt here.
#[derive(Debug, Default)]
pub(crate) struct LayeredAttempts(Mutex<HashMap<CallId, Vec<Arc<Notify>>>>);

impl LayeredAttempts {
    /// Ends the attempts of a call. Dropping an attempt on a worker also cancels it there.
    pub(crate) fn cancel(&self, call: CallId) {
        let attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&call).cloned();
        // Without the lock, because a waker can run code of the program. Stores a permit if the attempt is not polled yet.
        attempts.into_iter().flatten().for_each(|attempt| attempt.notify_one());
    }
}

/// The registration of an attempt, until it is dropped.
struct LayeredAttempt {
    driver: Arc<Driver>,
    call: CallId,
    cancelled: Arc<Notify>,
}

impl LayeredAttempt {
    fn register(driver: &Arc<Driver>, call: CallId) -> Self {
        let (driver, cancelled) = (Arc::clone(driver), Arc::<Notify>::default());
        let mut attempts = driver.layered_attempts.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A layer can run copies of a call, which have the same id.
        attempts.entry(call).or_default().push(Arc::clone(&cancelled));
        drop(attempts);
        Self { driver, call, cancelled }
    }
}

impl Drop for LayeredAttempt {
    fn drop(&mut self) {
        let mut attempts = self.driver.layered_attempts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_call) = attempts.get_mut(&self.call) {
            of_call.retain(|attempt| !Arc::ptr_eq(attempt, &self.cancelled));
            if of_call.is_empty() {
                attempts.remove(&self.call);
            }
        }
    }
}

/// Carries [`AttemptError::was_only_call`] past the layers, whose errors cannot hold it.
#[derive(Debug, Clone, Default)]
struct OnlyCallMark(Arc<AtomicBool>);

/// The innermost service, which the attempt layers wrap.
#[derive(Debug, Clone)]
struct InnermostDispatch(Dispatch);

snakepit_registry::always_ready!(InnermostDispatch, |service, call| {
    let mark = call.extensions.get::<OnlyCallMark>().cloned();
    let attempt = service.0.clone().call(Arc::new(call));
    Box::pin(async move {
        attempt.await.map_err(|AttemptError { error, was_only_call }| {
            if let Some(mark) = mark {
                mark.0.store(was_only_call, Ordering::Relaxed);
            }
            error
        })
    })
});
