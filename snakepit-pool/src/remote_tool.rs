//! A pool as something callable.

use std::{pin::Pin, sync::Arc};

use async_trait::async_trait;
use snakepit_registry::{CallId, ToolCall, ToolError, ToolHandler, ToolReply};
use tokio::time::Instant;
use tower::Service;

use crate::{driver::Shared, stack::Stack};

/// Runs tools on the workers of a [`Pool`](crate::Pool). Which tool a call names is up to the workers.
///
/// It does not keep the pool alive: once the last handle of the pool is dropped, its calls fail with
/// [`ToolError::ShuttingDown`].
#[derive(Debug)]
pub struct RemoteTool {
    shared: Arc<Shared>,
    stack: Stack,
}

impl RemoteTool {
    /// The call that this worker of the pool runs and those that wait for it, outermost first: the
    /// [ancestors](ToolCall::ancestors) of a call that the worker makes. `None` when that is not known.
    #[must_use]
    pub fn ancestors_on(&self, worker: &str) -> Option<Arc<[CallId]>> {
        self.shared.ancestors_on(worker)
    }

    pub(crate) const fn new(shared: Arc<Shared>, stack: Stack) -> Self {
        Self { shared, stack }
    }
}

#[async_trait]
impl ToolHandler for RemoteTool {
    // Spelled out, because an async fn would keep places for the call beside its future.
    fn call<'a, 'f>(
        &'a self,
        mut call: ToolCall,
    ) -> Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        // The budget for queueing, all attempts and the whole of a stream. A timeout too long for the clock is none.
        let by_default = || Instant::now().checked_add(self.shared.config.default_timeout?);
        call.deadline = call.deadline.or_else(by_default);
        // Every layer is always ready, so none need be asked.
        Box::pin(self.stack.clone().call(call))
    }

    /// The driver has one timer for all calls of the pool, and knows whether a call is queued or running.
    fn keeps_deadlines(&self) -> bool {
        true
    }

    /// Frees a queued call's place, or takes the worker away from a running call; returns once the worker has proven
    /// that the call has ended, or is gone. The call itself fails with [`ToolError::Cancelled`].
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        self.shared.cancel(call).await;
        Ok(())
    }
}
