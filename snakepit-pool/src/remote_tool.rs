//! The handler that runs calls on a pool's workers.

use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use snakepit_registry::{CallId, ToolCall, ToolError, ToolHandler, ToolReply};
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
    /// [ancestors](ToolCall::ancestors) of a call that the worker makes.
    ///
    /// Returns `None` if the worker is idle or unknown, or if the pool's `concurrency` is not 1.
    #[must_use]
    pub fn ancestors_on(&self, worker: &str) -> Option<Arc<[CallId]>> {
        self.driver.ancestors_on(worker)
    }

    pub(crate) const fn new(driver: Arc<Driver>, stack: Stack) -> Self {
        Self { driver, stack }
    }
}

#[async_trait]
impl ToolHandler for RemoteTool {
    // The method is not an `async fn`, whose future would store the call twice.
    fn call<'a, 'f>(
        &'a self,
        mut call: ToolCall,
    ) -> Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        // Covers queueing, all attempts and the whole stream. A timeout beyond the range of the clock sets no deadline.
        let default_deadline = || Instant::now().checked_add(self.driver.config.default_timeout?);
        call.deadline = call.deadline.or_else(default_deadline);
        // No `poll_ready`, because every layer is always ready.
        Box::pin(self.stack.clone().call(call))
    }

    /// The driver has one timer for all calls of the pool and knows whether a call is queued or running.
    fn keeps_deadlines(&self) -> bool {
        true
    }

    /// Removes a call from the queue, or cancels it on its worker. Returns once the worker has confirmed the end of the
    /// call or has exited. The call itself fails with [`ToolError::Cancelled`].
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        self.driver.cancel(call).await;
        Ok(())
    }
}
