//! The contract of [`ToolHandler`], as a test suite for implementations.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time::timeout;

use crate::{CallId, CallMode, ReplyBody, ToolCall, ToolError, ToolHandler};

/// The timeout of each step. Generous, because it only detects hangs.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Calls that the handler under test can run.
pub struct ContractCalls {
    /// A unary call that succeeds.
    pub value: Box<dyn Fn() -> ToolCall + Send + Sync>,
    /// A streaming call that returns at least two chunks and ends.
    pub stream: Box<dyn Fn() -> ToolCall + Send + Sync>,
    /// A unary call whose tool fails.
    pub failure: Box<dyn Fn() -> ToolCall + Send + Sync>,
    /// A unary call that runs for at least a minute.
    pub endless: Box<dyn Fn() -> ToolCall + Send + Sync>,
}

impl std::fmt::Debug for ContractCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContractCalls")
    }
}

/// Runs the whole contract against a handler.
///
/// # Panics
/// If the handler violates a rule of the contract.
pub async fn tool_handler_contract(handler: Arc<dyn ToolHandler>, calls: &ContractCalls) {
    a_unary_call_returns_a_value(&*handler, calls).await;
    a_streaming_call_returns_chunks_and_ends(&*handler, calls).await;
    a_tool_failure_is_not_a_handler_error(&*handler, calls).await;
    a_dropped_call_is_cancelled(&*handler, calls).await;
    a_dropped_stream_is_cancelled(&*handler, calls).await;
    ended_and_unknown_calls_can_be_cancelled(&*handler, calls).await;
    calls_may_be_concurrent(&handler, calls).await;
}

async fn a_unary_call_returns_a_value(handler: &dyn ToolHandler, calls: &ContractCalls) {
    let call = (calls.value)();
    assert_eq!(call.mode, CallMode::Unary);
    let reply =
        timeout(STEP_TIMEOUT, handler.call(call)).await.expect("a call ends").expect("the call succeeds");
    assert!(matches!(reply.body, ReplyBody::Value(_)), "a unary call returns a value");
}

async fn a_streaming_call_returns_chunks_and_ends(handler: &dyn ToolHandler, calls: &ContractCalls) {
    let call = (calls.stream)();
    assert_eq!(call.mode, CallMode::Streaming);
    let reply =
        timeout(STEP_TIMEOUT, handler.call(call)).await.expect("a call ends").expect("the call succeeds");
    let ReplyBody::Stream(mut stream) = reply.body else { panic!("a streaming call returns a stream") };
    let mut chunks = 0;
    while let Some(chunk) = timeout(STEP_TIMEOUT, stream.next()).await.expect("a stream ends") {
        chunk.expect("the stream succeeds");
        chunks += 1;
    }
    assert!(chunks >= 2, "the stream returned {chunks} chunks");
}

async fn a_tool_failure_is_not_a_handler_error(handler: &dyn ToolHandler, calls: &ContractCalls) {
    let error = timeout(STEP_TIMEOUT, handler.call((calls.failure)()))
        .await
        .expect("a call ends")
        .expect_err("it fails");
    let ToolError::Failed(failure) = &error else { panic!("a tool failure must be `Failed`, not {error:?}") };
    assert!(
        !failure.message.is_empty() || !failure.error_type.is_empty(),
        "a failure has a message or a type"
    );
    assert!(error.may_have_run(), "a tool that failed has run");
}

async fn a_dropped_call_is_cancelled(handler: &dyn ToolHandler, calls: &ContractCalls) {
    let call = (calls.endless)();
    let id = call.id;
    assert!(timeout(Duration::from_millis(100), handler.call(call)).await.is_err(), "the endless call ended");
    timeout(STEP_TIMEOUT, handler.cancel(id)).await.expect("cancelling ends").expect("the call has ended");
    let reply = timeout(STEP_TIMEOUT, handler.call((calls.value)())).await.expect("the next call ends");
    reply.expect("the next call succeeds");
}

async fn a_dropped_stream_is_cancelled(handler: &dyn ToolHandler, calls: &ContractCalls) {
    let call = (calls.stream)();
    let id = call.id;
    let reply =
        timeout(STEP_TIMEOUT, handler.call(call)).await.expect("a call ends").expect("the call succeeds");
    drop(reply);
    timeout(STEP_TIMEOUT, handler.cancel(id)).await.expect("cancelling ends").expect("the call has ended");
    let reply = timeout(STEP_TIMEOUT, handler.call((calls.value)())).await.expect("the next call ends");
    reply.expect("the next call succeeds");
}

async fn ended_and_unknown_calls_can_be_cancelled(handler: &dyn ToolHandler, calls: &ContractCalls) {
    let call = (calls.value)();
    let ended = call.id;
    timeout(STEP_TIMEOUT, handler.call(call)).await.expect("a call ends").expect("the call succeeds");
    for id in [ended, CallId::next()] {
        timeout(STEP_TIMEOUT, handler.cancel(id)).await.expect("cancelling ends").expect("nothing runs");
    }
}

async fn calls_may_be_concurrent(handler: &Arc<dyn ToolHandler>, calls: &ContractCalls) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (handler, call) = (Arc::clone(handler), (calls.value)());
        tasks.spawn(async move { handler.call(call).await });
    }
    for reply in timeout(STEP_TIMEOUT, tasks.join_all()).await.expect("all calls end") {
        reply.expect("each call succeeds");
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use async_trait::async_trait;

    use super::*;
    use crate::{FnTool, Registry, ToolReply};

    /// A handler that runs calls through a registry.
    #[derive(Debug)]
    struct Host(Registry);

    #[async_trait]
    impl ToolHandler for Host {
        async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
            let tool = self.0.resolve(&call.tool)?;
            tool.begin(call)?.await
        }
    }

    #[tokio::test]
    async fn host_tools_satisfy_the_contract() {
        let registry = Registry::new();
        let tools = [
            FnTool::typed("value", |(): ()| async { Ok::<_, Infallible>(1) }),
            FnTool::new("stream", || futures_util::stream::iter([Ok::<_, Infallible>(1), Ok(2)])),
            FnTool::typed("failure", |(): ()| async { Err::<(), _>("on purpose") }),
            FnTool::typed("endless", |(): ()| std::future::pending::<Result<(), Infallible>>()),
        ];
        for tool in tools {
            registry.register_host_tool(tool).unwrap();
        }
        let calls = ContractCalls {
            value: Box::new(|| ToolCall::new("value")),
            stream: Box::new(|| ToolCall::new("stream").streaming()),
            failure: Box::new(|| ToolCall::new("failure")),
            endless: Box::new(|| ToolCall::new("endless")),
        };
        tool_handler_contract(Arc::new(Host(registry)), &calls).await;
    }
}
