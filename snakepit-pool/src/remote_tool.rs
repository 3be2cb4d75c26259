//! The handler that runs calls on a pool's workers.

use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use snakepit_registry::{
    CallId, CallReports, CallTimeline, Principal, ToolCall, ToolError, ToolHandler, ToolReply,
};
use tokio::time::Instant;
use tower::Service;

use crate::{driver::Driver, stack::Stack};

/// Runs calls on the workers of a [`Pool`](crate::Pool). The worker checks the name of the tool.
///
/// A `RemoteTool` does not keep its pool alive. After the last handle of the pool is dropped, calls fail with
/// [`ToolError::ShuttingDown`].
#[derive(Debug)]
pub struct RemoteTool {
    driver: Arc<Driver>,
    stack: Stack,
}

impl RemoteTool {
    /// The call that runs on this worker and the calls that wait for it, outermost first. These are the
    /// [ancestors](ToolCall::ancestors) of a call that the worker makes. `reported` is the id of the running call as the worker
    /// [knows](ToolHandler::find_call) it. Only workers that run several calls need to report it.
    ///
    /// Returns `None` if the worker is idle or unknown, and an empty list if it is unknown which call the worker means.
    #[must_use]
    pub fn ancestors_on(&self, worker: &str, reported: Option<u64>) -> Option<Arc<[CallId]>> {
        self.driver.ancestors_on(worker, reported)
    }

    /// Records whether a running call blocks its worker while it waits for a request to the host. Nested calls of that request then
    /// run on other workers, or are rejected. The record lasts until the next request of the call.
    pub fn set_blocks_worker(&self, worker: &str, reported: u64, blocks_worker: bool) {
        self.driver.set_blocks_worker(worker, reported, blocks_worker);
    }

    /// Returns the principal of the call that runs on this worker. For a nested call, returns the principal of its outermost
    /// ancestor in this pool. `reported` is as in [`ancestors_on`](Self::ancestors_on).
    ///
    /// Returns `None` if the worker is idle or unknown, or if it is unknown which call the worker means.
    #[must_use]
    pub fn acting_principal(&self, worker: &str, reported: Option<u64>) -> Option<Principal> {
        self.driver.acting_principal(worker, reported)
    }

    /// The receivers of output for nested calls of the call on this worker. `reported` is as in
    /// [`ancestors_on`](Self::ancestors_on).
    ///
    /// Returns `None` if the caller does not receive output, or if it is unknown which call the worker means.
    #[must_use]
    pub fn reports_on(&self, worker: &str, reported: Option<u64>) -> Option<CallReports> {
        self.driver.reports_on(worker, reported)
    }

    pub(crate) const fn new(driver: Arc<Driver>, stack: Stack) -> Self {
        Self { driver, stack }
    }

    /// Starts a call.
    #[inline]
    fn start(&self, mut call: ToolCall) -> impl Future<Output = Result<ToolReply, ToolError>> + Send + use<> {
        // Covers queueing, all attempts and the whole stream. A timeout beyond the range of the clock sets no deadline.
        let default_deadline = || Instant::now().checked_add(self.driver.config.default_timeout?);
        call.deadline = call.deadline.or_else(default_deadline);
        if let Some(timeline) = CallTimeline::of(&call) {
            timeline.queued();
        }
        // No `poll_ready`, because every layer is always ready.
        self.stack.clone().call(call)
    }
}

#[async_trait]
impl ToolHandler for RemoteTool {
    // The method is not an `async fn`, whose future would store the call twice.
    fn call<'a, 'f>(
        &'a self,
        call: ToolCall,
    ) -> Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(self.start(call))
    }

    /// The driver has one timer for all calls of the pool and knows whether a call is queued or running.
    fn enforces_deadlines(&self) -> bool {
        true
    }

    /// Removes a call from the queue, or cancels it on its worker. Returns once the worker has confirmed the end of the
    /// call or has exited. The call itself fails with [`ToolError::Cancelled`].
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        self.driver.cancel(call).await;
        Ok(())
    }
}

/// A pool as a [`tower::Service`](https://docs.rs/tower/0.5/tower/trait.Service.html):
/// [`Pool::service`](crate::Pool::service). Cheap to clone.
///
/// # Readiness
/// Always ready. Each call waits in the queue for its own worker, so a call never blocks the calls behind it. If the queue is
/// full, the call fails with [`ToolError::Overloaded`]. Put `tower`'s concurrency limit around the service for backpressure
/// through `poll_ready`.
///
/// # Cancel safety
/// Dropping the future of a call, or the stream that it returned, cancels the call.
#[derive(Debug, Clone)]
pub struct PoolService(Arc<RemoteTool>);

impl PoolService {
    pub(crate) const fn new(tool: Arc<RemoteTool>) -> Self {
        Self(tool)
    }
}

snakepit_registry::always_ready!(PoolService, |service, call| Box::pin(service.0.start(call)));
