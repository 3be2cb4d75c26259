//! [`HostHandler`]: a handler of the embedding program, whose panics fail only the call.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use tracing::Instrument;

use crate::{
    CallId, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply,
    fn_tool::panic_failure,
    guard::{Guarded, catch},
    meter::Meter,
};

/// Wraps the handler of a host tool: converts panics of the handler and its streams to tool failures, adds the name of the
/// tool to failures, and counts the calls.
#[derive(Debug)]
pub(crate) struct HostHandler {
    pub(crate) handler: Arc<dyn ToolHandler>,
    pub(crate) meter: Arc<Meter>,
}

#[async_trait]
impl ToolHandler for HostHandler {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let tool = Arc::clone(&call.tool);
        let measured = self.meter.begin(&call);
        // The handler can panic before it returns its future.
        let answer = match measured.span().in_scope(|| catch(|| self.handler.call(call))) {
            Ok(running) => Guarded::new(running).instrument(measured.span().clone()).await,
            Err(message) => Err(message),
        };
        let result = match answer {
            Ok(Ok(mut reply)) => {
                if let ReplyBody::Stream(chunks) = reply.body {
                    let chunks = Guarded::new(chunks).map(move |item| {
                        item.unwrap_or_else(|message| Err(panic_failure(&tool, &message)))
                            .map_err(|error| error.with_tool(&tool))
                    });
                    reply.body = ReplyBody::Stream(Box::pin(chunks));
                }
                Ok(reply)
            }
            Ok(Err(error)) => Err(error.with_tool(&tool)),
            Err(message) => Err(panic_failure(&tool, &message)),
        };
        measured.finish(result)
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let ended = match catch(|| self.handler.cancel(call)) {
            Ok(ending) => Guarded::new(ending).await,
            Err(message) => Err(message),
        };
        ended.unwrap_or_else(|message| {
            Err(ToolError::internal(format!("the handler panicked when it cancelled call {call}: {message}")))
        })
    }

    // Does not forward `enforces_deadlines`, so it is always false. The host therefore applies its default deadline to the call,
    // counts it, and ends it at a shutdown.

    fn recall(&self, call: CallId) {
        // If the handler panics, the call continues as if the pool had not recalled it.
        let _ = catch(|| self.handler.recall(call));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CallMode, HostError, Registry, ToolFailure, ToolSpec};

    #[derive(Debug)]
    struct Panics;

    impl ToolHandler for Panics {
        /// Panics before there is a future, unless the call streams.
        fn call<'a, 'f>(
            &'a self,
            call: ToolCall,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send + 'f>>
        where
            'a: 'f,
            Self: 'f,
        {
            assert_eq!(call.mode, CallMode::Streaming, "no future");
            let chunks = futures_util::stream::poll_fn(|_| panic!("no chunk"));
            Box::pin(async { Ok(ToolReply::stream(Box::pin(chunks))) })
        }
    }

    #[tokio::test]
    async fn a_panic_of_a_handler_or_its_stream_fails_only_the_call() {
        let registry = Registry::new();
        let spec = ToolSpec { supports_streaming: true, ..ToolSpec::new("panics") };
        registry.register_host_handler(spec, Arc::new(Panics)).unwrap();
        let tool = registry.resolve("panics").unwrap();
        let unary = tool.handler.call(ToolCall::new("panics")).await.unwrap_err().to_string();
        assert!(unary.contains("panicked") && unary.contains("no future"), "{unary}");
        let reply = tool.begin(ToolCall::new("panics").streaming()).unwrap().await.unwrap();
        let ReplyBody::Stream(mut chunks) = reply.body else { panic!("a value") };
        let failed = chunks.next().await.unwrap().unwrap_err().to_string();
        assert!(failed.contains("panicked: no chunk"), "{failed}");
        assert!(chunks.next().await.is_none(), "the failure ends the stream");
    }

    #[derive(Debug)]
    struct Fails;

    #[async_trait]
    impl ToolHandler for Fails {
        /// Fails without the name of the tool, before or in the stream.
        async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
            if call.mode == CallMode::Unary {
                Err(HostError::new("no such entry").code("not_found"))?;
            }
            let failure = async { Err(ToolFailure::new("NoEntry", "no such entry").into()) };
            Ok(ToolReply::stream(Box::pin(futures_util::stream::once(failure))))
        }
    }

    #[tokio::test]
    async fn failures_of_a_handler_get_the_name_of_the_tool() {
        let registry = Registry::new();
        registry.register_host_handler(ToolSpec::new("value"), Arc::new(Fails)).unwrap();
        let spec = ToolSpec { supports_streaming: true, ..ToolSpec::new("items") };
        registry.register_host_handler(spec, Arc::new(Fails)).unwrap();

        let unary = registry.call_host_tool(ToolCall::new("value")).await.unwrap_err();
        assert_eq!(unary.to_string(), "tool `value` failed: HostToolError: no such entry");
        assert_eq!(unary.failure().unwrap().code, "not_found");
        let reply = registry.call_host_tool(ToolCall::new("items").streaming()).await.unwrap();
        let ReplyBody::Stream(mut chunks) = reply.body else { panic!("a value") };
        let failed = chunks.next().await.unwrap().unwrap_err();
        assert_eq!(failed.to_string(), "tool `items` failed: NoEntry: no such entry");
    }
}
