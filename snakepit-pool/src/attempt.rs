//! One attempt at a call: its error, and the layers that the program puts around it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use snakepit_registry::{CallLayers, CallService, ToolCall, ToolError, ToolReply};
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
    layered: Option<Arc<LayeredAttempts>>,
}

#[derive(Debug)]
struct LayeredAttempts {
    service: CallService,
    driver: Arc<Driver>,
}

impl Attempts {
    pub(crate) fn new(driver: &Arc<Driver>, layers: CallLayers) -> Self {
        let dispatch = Dispatch::new(Arc::clone(driver));
        let layered = layers
            .wrap(InnermostDispatch(dispatch.clone()))
            .map(|service| Arc::new(LayeredAttempts { service, driver: Arc::clone(driver) }));
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

impl LayeredAttempts {
    fn run(&self, mut call: ToolCall) -> <Attempts as Service<Arc<ToolCall>>>::Future {
        let mark = OnlyCallMark::default();
        call.extensions.insert(mark.clone());
        let driver = Arc::clone(&self.driver);
        // The driver does not know of calls that wait in a layer, so `run_bounded` ends them.
        let running = self.service.run_bounded(call, async move { driver.stopped().await });
        Box::pin(async move {
            let with_mark = |error| AttemptError { error, was_only_call: mark.0.load(Ordering::Relaxed) };
            running.await.map_err(with_mark)
        })
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
