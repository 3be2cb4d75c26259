//! A pool as something callable.

use std::{future::poll_fn, sync::Arc};

use async_trait::async_trait;
use snakepit_registry::{CallId, ToolCall, ToolError, ToolHandler, ToolReply};
use tower::Service;

use crate::{driver::Shared, stack::Stack};

/// Runs tools on the workers of a [`Pool`](crate::Pool). Which tool a call names is up to the workers.
///
/// It does not keep the pool alive: once the last handle of the pool is gone, its calls are
/// [unavailable](ToolError::Unavailable).
#[derive(Debug)]
pub struct RemoteTool {
    shared: Arc<Shared>,
    stack: Stack,
}

impl RemoteTool {
    pub(crate) const fn new(shared: Arc<Shared>, stack: Stack) -> Self {
        Self { shared, stack }
    }
}

#[async_trait]
impl ToolHandler for RemoteTool {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        // What `oneshot` does, but without moving the call and its future around.
        let mut stack = self.stack.clone();
        poll_fn(|cx| stack.poll_ready(cx)).await?;
        stack.call(call).await
    }

    /// Frees a queued call's place, or takes the worker away from a running call; returns once the worker has proven
    /// that the call has ended, or is gone. The call itself fails with [`ToolError::Cancelled`].
    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        self.shared.cancel(call).await;
        Ok(())
    }
}
