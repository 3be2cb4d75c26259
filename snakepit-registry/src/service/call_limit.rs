//! [`CallLimitLayer`]: limits the number of concurrent calls. Unlike tower's concurrency limit, it counts a streaming call until
//! its stream ends.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;
use tower::{BoxError, Layer, Service};

use crate::{CallFuture, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply};

/// A layer that limits the number of concurrent calls, including open streams. All services that the layer creates, and clones of it,
/// share the limit.
///
/// A call beyond the limit waits until another call ends. The deadline of the call includes this wait. With tower's `load_shed`
/// in front, the host rejects the call with the kind [`Overloaded`](crate::ErrorKind::Overloaded) instead.
///
/// tower's `ConcurrencyLimitLayer` counts a streaming call only until its stream begins.
///
/// ```
/// use snakepit_registry::{CallLayers, CallLimitLayer};
/// use tower::ServiceBuilder;
///
/// let mut layers = CallLayers::default();
/// layers.push(ServiceBuilder::new().load_shed().layer(CallLimitLayer::new(100)));
/// ```
#[derive(Debug, Clone)]
pub struct CallLimitLayer(Arc<Semaphore>);

impl CallLimitLayer {
    /// Creates a layer that lets up to `limit` calls run at the same time. A limit of 0 counts as 1.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS))))
    }
}

impl<S> Layer<S> for CallLimitLayer {
    type Service = CallLimit<S>;

    fn layer(&self, inner: S) -> CallLimit<S> {
        CallLimit { inner, semaphore: PollSemaphore::new(Arc::clone(&self.0)), permit: None }
    }
}

/// The service of [`CallLimitLayer`].
///
/// # Readiness
/// `poll_ready` waits for a permit. The service holds it until `call`, or until it is dropped.
#[derive(Debug)]
pub struct CallLimit<S> {
    inner: S,
    semaphore: PollSemaphore,
    permit: Option<OwnedSemaphorePermit>,
}

impl<S: Clone> Clone for CallLimit<S> {
    /// The clone must become ready itself.
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), semaphore: self.semaphore.clone(), permit: None }
    }
}

impl<S> Service<ToolCall> for CallLimit<S>
where
    S: Service<ToolCall, Response = ToolReply>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = ToolReply;
    type Error = ToolError;
    type Future = CallFuture<'static>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ToolError>> {
        if self.permit.is_none() {
            // The semaphore is never closed.
            self.permit = ready!(self.semaphore.poll_acquire(cx));
        }
        self.inner.poll_ready(cx).map_err(|error| ToolError::from_layer(error.into(), false))
    }

    fn call(&mut self, call: ToolCall) -> Self::Future {
        // The permit exists, because callers of a service call `poll_ready` first.
        let permit = self.permit.take();
        let running = self.inner.call(call);
        Box::pin(async move {
            let mut reply = running.await.map_err(|error| ToolError::from_layer(error.into(), true))?;
            if let ReplyBody::Stream(chunks) = reply.body {
                reply.body = ReplyBody::Stream(Box::pin(CountedStream(Some((chunks, permit)))));
            }
            Ok(reply)
        })
    }
}

/// A stream with its permit. `None` after the end.
struct CountedStream(Option<(ChunkStream, Option<OwnedSemaphorePermit>)>);

impl Stream for CountedStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some((chunks, _)) = &mut self.0 else { return Poll::Ready(None) };
        let item = ready!(chunks.as_mut().poll_next(cx));
        if !matches!(item, Some(Ok(_))) {
            // Drops the stream before the permit. An error is the last item of a stream.
            if let Some((chunks, permit)) = self.0.take() {
                drop(chunks);
                drop(permit);
            }
        }
        Poll::Ready(item)
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        if let Some((chunks, permit)) = self.0.take() {
            drop(chunks);
            drop(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, StreamExt, stream};
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::CallService;

    /// A tool that answers a streaming call with an endless stream, and another call with null.
    fn service() -> CallService {
        CallService::new(service_fn(|call: ToolCall| async move {
            let chunks = stream::iter([Ok(Chunk::default())]).chain(stream::pending());
            Ok::<_, ToolError>(match &*call.tool {
                "endless" => ToolReply::stream(Box::pin(chunks)),
                "failing" => {
                    ToolReply::stream(Box::pin(stream::iter([Err(ToolError::cancelled("failing"))])))
                }
                _ => ToolReply::value(snakepit_session::Payload::null()),
            })
        }))
    }

    fn stream_of(reply: ToolReply) -> ChunkStream {
        match reply.body {
            ReplyBody::Stream(chunks) => chunks,
            ReplyBody::Value(_) => panic!("a value"),
        }
    }

    #[tokio::test]
    async fn an_open_stream_counts_until_it_ends_or_is_dropped() {
        let limited = CallLimitLayer::new(1).layer(service());
        let call = |tool: &str| limited.clone().oneshot(ToolCall::new(tool));
        let mut open = stream_of(call("endless").await.unwrap());
        assert!(open.next().await.unwrap().is_ok());
        let mut waiting = Box::pin(call("value"));
        assert!((&mut waiting).now_or_never().is_none(), "the stream occupies the limit");
        drop(open);
        waiting.await.unwrap();

        let mut failing = stream_of(call("failing").await.unwrap());
        let mut waiting = Box::pin(call("value"));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(failing.next().await.unwrap().is_err());
        waiting.await.unwrap();
        assert!(failing.next().await.is_none(), "the error was the last item");
    }

    #[tokio::test(start_paused = true)]
    async fn services_of_one_layer_share_the_limit_and_shed_load_above_it() {
        let layer = CallLimitLayer::new(2);
        let open: Vec<_> = [layer.layer(service()), layer.layer(service())]
            .map(|service| service.oneshot(ToolCall::new("endless")).now_or_never().unwrap().unwrap())
            .into();
        let shedding = ServiceBuilder::new().load_shed().layer(layer.clone()).service(service());
        let shed = CallService::new(shedding);
        let shed = shed.run_bounded(ToolCall::new("value"), std::future::pending()).await.unwrap_err();
        assert!(shed.is_overloaded() && !shed.may_have_run(), "{shed:?}");
        let waiting = layer.layer(service()).oneshot(ToolCall::new("value"));
        assert!(tokio::time::timeout(Duration::from_secs(9), waiting).await.is_err());
        drop(open);
        layer.layer(service()).oneshot(ToolCall::new("value")).await.unwrap();
    }
}
