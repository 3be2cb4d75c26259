//! [`CallLayers`]: collects the layers of a program, and applies them when the service exists.

use std::{
    fmt,
    task::{Context, Poll},
};

use tower::{BoxError, Layer, Service};

use super::{CallProgress, CallService};
use crate::{CallFuture, ToolCall, ToolError, ToolReply};

/// A [`tower::Layer`](https://docs.rs/tower/0.5/tower/trait.Layer.html) that can wrap calls:
/// around those of a host, or around the attempts of a pool.
///
/// Implemented for every layer whose service takes [`ToolCall`]s, returns [`ToolReply`]s and is `Clone`. Calls are concurrent, so
/// each call uses its own clone. Put a service that is not `Clone`, such as tower's rate limit, behind a buffer.
///
/// ```
/// use std::time::Duration;
///
/// use snakepit_registry::CallLayer;
/// use tower::ServiceBuilder;
///
/// fn limits() -> impl CallLayer {
///     ServiceBuilder::new().load_shed().concurrency_limit(100).timeout(Duration::from_secs(5))
/// }
/// # limits();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot wrap calls",
    note = "the service of the layer takes a `ToolCall`, returns a `ToolReply`, and is `Clone + Send + Sync`",
    note = "put a service that is not `Clone` behind a buffer: `ServiceBuilder::new().buffer(16).layer(..)`"
)]
pub trait CallLayer: Send + Sync + 'static {
    /// Wraps the service of calls. [`CallService::new`] lists the conversions of errors.
    fn wrap(&self, inner: CallService) -> CallService;
}

impl<L> CallLayer for L
where
    L: Layer<CallService> + Send + Sync + 'static,
    L::Service: Service<ToolCall, Response = ToolReply> + Clone + Send + Sync + 'static,
    <L::Service as Service<ToolCall>>::Future: Send + 'static,
    <L::Service as Service<ToolCall>>::Error: Into<BoxError>,
{
    fn wrap(&self, inner: CallService) -> CallService {
        CallService::new(self.layer(inner))
    }
}

/// Layers around calls, in the order in which a call goes through them.
///
/// Each layer wraps a [`CallService`] with the layers after it. It sees their errors as [`ToolError`]s.
#[derive(Default)]
pub struct CallLayers(Vec<Box<dyn CallLayer>>);

impl CallLayers {
    /// Adds a layer inside the layers that were added before.
    pub fn push(&mut self, layer: impl CallLayer) {
        self.0.push(Box::new(layer));
    }

    /// Wraps a service. Returns `None` if there are no layers.
    pub fn wrap<S>(self, service: S) -> Option<CallService>
    where
        S: Service<ToolCall, Response = ToolReply, Error = ToolError, Future = CallFuture<'static>>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        if self.0.is_empty() {
            return None;
        }
        let innermost = CallService::new(ProgressRecorder(service));
        Some(self.0.iter().rev().fold(innermost, |inner, layer| layer.wrap(inner)))
    }
}

impl fmt::Debug for CallLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CallLayers").field(&self.0.len()).finish()
    }
}

/// Records that a call has passed all layers, and how each pass ended.
#[derive(Debug, Clone)]
struct ProgressRecorder<S>(S);

impl<S> Service<ToolCall> for ProgressRecorder<S>
where
    S: Service<ToolCall, Response = ToolReply, Error = ToolError, Future = CallFuture<'static>>,
{
    type Response = ToolReply;
    type Error = ToolError;
    type Future = CallFuture<'static>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ToolError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, call: ToolCall) -> Self::Future {
        let inside = CallProgress::of(&call).map(CallProgress::enter);
        let reply = self.0.call(call);
        Box::pin(async move {
            let result = reply.await;
            if let Some(inside) = inside {
                inside.end(&result);
            }
            result
        })
    }
}
