//! Calls as [`tower::Service`]s: the boxed service that layers wrap, and adapters from and to [`ToolHandler`].

mod always_ready;
mod call_limit;
mod layers;
mod progress;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};
use tower::{BoxError, Service};

pub use self::{
    call_limit::{CallLimit, CallLimitLayer},
    layers::{CallLayer, CallLayers},
    progress::CallProgress,
};
use crate::{
    CallFuture, CallStage, ErrorKind, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply,
    guard::{Guarded, catch},
};

/// The time after a deadline in which the handler inside the layers may report the deadline itself.
const GRACE: Duration = Duration::from_millis(200);

/// Any service that runs calls, boxed. A layer of a host or a pool wraps this type.
///
/// # Readiness
/// `poll_ready` waits for the layers inside, such as a concurrency limit. Without layers the service is always ready, because
/// each call waits for its own worker, and a full queue rejects a call with [`ToolError::Overloaded`] instead of blocking the
/// calls behind it.
///
/// # Errors
/// An error of a layer becomes a [`ToolError`], see [`new`](Self::new).
///
/// # Cancel safety
/// Dropping the future of a call, or the stream that it returned, cancels the call.
pub struct CallService(Box<dyn ErasedService>);

/// A service whose future and errors are erased.
trait ErasedService: Send + Sync {
    fn boxed_clone(&self) -> Box<dyn ErasedService>;
    fn poll_ready_erased(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ToolError>>;
    fn call_erased(&mut self, call: ToolCall) -> CallFuture<'static>;
}

impl<S> ErasedService for S
where
    S: Service<ToolCall, Response = ToolReply> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    fn boxed_clone(&self) -> Box<dyn ErasedService> {
        Box::new(self.clone())
    }

    fn poll_ready_erased(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ToolError>> {
        // The call did not reach the service.
        self.poll_ready(cx).map_err(|error| ToolError::from_layer(error.into(), false))
    }

    fn call_erased(&mut self, call: ToolCall) -> CallFuture<'static> {
        let progress = CallProgress::of(&call).cloned();
        let reply = self.call(call);
        Box::pin(async move {
            reply.await.map_err(|error| {
                // Without a record, assume that the tool ran.
                let may_have_run = progress.is_none_or(|progress| progress.has_begun());
                ToolError::from_layer(error.into(), may_have_run)
            })
        })
    }
}

impl CallService {
    /// Boxes a service. Its errors become [`ToolError`]s:
    ///
    /// | error, or one of its sources | result |
    /// | --- | --- |
    /// | [`ToolError`] | that error |
    /// | `tower::timeout::error::Elapsed` | [`ToolError::Layer`] of the kind [`DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) |
    /// | `tower::load_shed::error::Overloaded` | [`ToolError::Layer`] of the kind [`Overloaded`](crate::ErrorKind::Overloaded) |
    /// | any other error | [`ToolError::Layer`] of the kind [`Rejected`](crate::ErrorKind::Rejected) |
    ///
    /// A [`ToolError::Layer`] keeps the error as its source.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<ToolCall, Response = ToolReply> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
    {
        Self(Box::new(service))
    }

    /// Waits until the service is ready, and runs a call.
    #[must_use]
    pub fn run(&self, call: ToolCall) -> CallFuture<'static> {
        let mut service = self.clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(call).await
        })
    }

    /// Converts the service, with any layers around it, to a handler. Each call waits until a clone of the service is ready.
    ///
    /// Dropping the future of a call cancels the call. The host enforces the deadline, because a layer can hold a call before
    /// the handler inside receives it.
    ///
    /// ```
    /// use std::{collections::HashMap, sync::Arc};
    ///
    /// use snakepit_registry::{CallService, FnTool, HandlerService, ToolCall};
    /// use tower::ServiceBuilder;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), snakepit_registry::ToolError> {
    /// let double = FnTool::typed("double", |args: HashMap<String, i64>| async move { args["n"] * 2 });
    /// let service = ServiceBuilder::new()
    ///     .map_request(|mut call: ToolCall| {
    ///         call.metadata.insert("tenant".to_owned(), "acme".to_owned());
    ///         call
    ///     })
    ///     .service(HandlerService::new(Arc::new(double)));
    /// let handler = CallService::new(service).into_handler();
    /// # let call = ToolCall::new("double").try_with_argument("n", &21).expect("a number serializes");
    /// handler.call(call).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn into_handler(self) -> Arc<dyn ToolHandler> {
        Arc::new(LayeredHandler(self))
    }

    /// Runs a call within bounds. While the call waits in a layer, this function ends it at its deadline, or when `cut_off`
    /// completes. While the handler inside the layers runs the call, the handler must end it, because only the handler knows how
    /// far the call got. If the handler does not do so within 200 ms after the deadline, this function drops the call.
    ///
    /// A panic in a layer fails only this call. If a layer repeats the call, the error covers all repetitions.
    #[doc(hidden)]
    #[must_use]
    pub fn run_bounded(
        &self,
        mut call: ToolCall,
        cut_off: impl Future<Output = ()> + Send + 'static,
    ) -> CallFuture<'static> {
        let progress = CallProgress::track(&mut call);
        let (tool, deadline) = (Arc::clone(&call.tool), call.deadline);
        // Cloning the layers can panic too.
        let running = catch(|| self.run(call)).map(Guarded::new);
        Box::pin(async move {
            let mut running = running.map_err(|message| layer_panicked(&message, false))?;
            let deadline_exceeded = |is_running| {
                let stage = if is_running { CallStage::Running } else { CallStage::Queued };
                ToolError::deadline_exceeded(&*tool, stage)
            };
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(deadline_exceeded(false));
            }
            if deadline.is_some() && tokio::runtime::Handle::try_current().is_err() {
                return Err(ToolError::NoRuntime { may_have_run: false });
            }
            let mut cut_off = pin!(cut_off);
            let mut timer = deadline.map(|at| Box::pin(sleep_until(at)));
            let (mut is_cut_off, mut is_late) = (false, false);
            poll_fn(|cx| {
                // Polls the call first, so that a reply takes precedence over a deadline at the same time.
                if let Poll::Ready(result) = running.poll_unpin(cx) {
                    let result =
                        result.unwrap_or_else(|message| Err(layer_panicked(&message, progress.has_begun())));
                    return Poll::Ready(match result {
                        Ok(reply) => Ok(catch_panics_of_stream(reply, &tool)),
                        Err(error) => Err(progress.with_earlier_pass(error).with_tool(&tool)),
                    });
                }
                is_cut_off = is_cut_off || cut_off.as_mut().poll(cx).is_ready();
                if is_cut_off && !progress.is_running() {
                    return Poll::Ready(Err(ToolError::shutting_down(progress.has_begun())));
                }
                let Some(timer) = &mut timer else { return Poll::Pending };
                while timer.as_mut().poll(cx).is_ready() {
                    if is_late || !progress.is_running() {
                        return Poll::Ready(Err(deadline_exceeded(progress.has_begun())));
                    }
                    is_late = true;
                    timer.as_mut().reset(Instant::now() + GRACE);
                }
                if is_late && !progress.is_running() {
                    return Poll::Ready(Err(deadline_exceeded(progress.has_begun())));
                }
                Poll::Pending
            })
            .await
        })
    }
}

/// The error of a call whose layer panicked.
fn layer_panicked(message: &str, may_have_run: bool) -> ToolError {
    let problem = format!("it panicked: {message}");
    ToolError::Layer { kind: ErrorKind::Rejected, may_have_run, problem, source: None }
}

/// Ends a streamed reply with an error if a layer that wraps the stream panics. Adds the name of the tool to its failure.
fn catch_panics_of_stream(mut reply: ToolReply, tool: &Arc<str>) -> ToolReply {
    if let ReplyBody::Stream(chunks) = reply.body {
        let tool = Arc::clone(tool);
        let items = Guarded::new(chunks).map(move |item| {
            item.unwrap_or_else(|message| Err(layer_panicked(&message, true)))
                .map_err(|error| error.with_tool(&tool))
        });
        reply.body = ReplyBody::Stream(Box::pin(items));
    }
    reply
}

impl Clone for CallService {
    fn clone(&self) -> Self {
        Self(self.0.boxed_clone())
    }
}

impl fmt::Debug for CallService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallService")
    }
}

impl Service<ToolCall> for CallService {
    type Response = ToolReply;
    type Error = ToolError;
    type Future = CallFuture<'static>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ToolError>> {
        self.0.poll_ready_erased(cx)
    }

    fn call(&mut self, call: ToolCall) -> Self::Future {
        self.0.call_erased(call)
    }
}

/// A [`ToolHandler`] as a [`tower::Service`](https://docs.rs/tower/0.5/tower/trait.Service.html). Always ready.
/// [`CallService::into_handler`] is the other direction.
#[derive(Debug, Clone)]
pub struct HandlerService(Arc<dyn ToolHandler>);

impl HandlerService {
    /// Creates a service that runs its calls with this handler.
    #[must_use]
    pub fn new(handler: Arc<dyn ToolHandler>) -> Self {
        Self(handler)
    }
}

crate::always_ready!(HandlerService, |service, call| {
    let handler = Arc::clone(&service.0);
    Box::pin(async move { handler.call(call).await })
});

/// The handler that [`CallService::into_handler`] returns.
#[derive(Debug)]
struct LayeredHandler(CallService);

#[async_trait]
impl ToolHandler for LayeredHandler {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        self.0.run(call).await
    }
}
