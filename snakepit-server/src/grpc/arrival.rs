//! Remembers when a request with a timeout arrived: at its headers. Its message can come later, and the transport's own
//! timer, which must not win over the call's deadline, runs since the headers too.

use std::task::{Context, Poll};

use snakepit_proto::headers::GRPC_TIMEOUT;
use tokio::time::Instant;
use tower::{Layer, Service};

/// When the headers of a request arrived; an extension of requests that have a timeout.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived(pub(super) Instant);

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ArrivalLayer;

#[derive(Debug, Clone)]
pub(crate) struct Arrival<S> {
    inner: S,
}

impl<S> Layer<S> for ArrivalLayer {
    type Service = Arrival<S>;

    fn layer(&self, inner: S) -> Arrival<S> {
        Arrival { inner }
    }
}

impl<S, B> Service<http::Request<B>> for Arrival<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> S::Future {
        if request.headers().contains_key(GRPC_TIMEOUT) {
            request.extensions_mut().insert(Arrived(Instant::now()));
        }
        self.inner.call(request)
    }
}
