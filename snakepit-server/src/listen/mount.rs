//! The gRPC services as part of a server of the program, which accepts the connections.
//!
//! The host does not see these connections, so it treats each request as one: a client that sends many requests at a time is
//! bounded by the budgets that all clients share, and by the limits of the program's server.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::Service;

use super::{
    ListenLimits, accept::CLOSE_TIMEOUT, connections::Connections, framing::PolledFrame,
    request_service::RequestService, response::ResponseBody,
};
use crate::status::shutting_down;

/// The services for a server of the program, with the limits and deadlines of the listeners.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    routes: Routes,
    connections: Arc<Connections>,
    stop: CancellationToken,
}

impl Mount {
    pub(crate) fn new(routes: Routes, limits: &ListenLimits, stop: CancellationToken) -> Self {
        let connections = limits.connections(0, &limits.unread_mounted);
        Self { routes: routes.prepare(), connections, stop }
    }

    /// Returns routes for the services of these names. They have no fallback, because an axum router that merges them would
    /// otherwise answer all unknown paths with a gRPC status.
    pub(crate) fn routes(&self, services: &[&str]) -> Routes {
        let add = |router: axum::Router, name: &&str| {
            router.route_service(&format!("/{name}/{{*rpc}}"), self.clone())
        };
        services.iter().fold(axum::Router::new(), add).into()
    }
}

impl Service<Request<axum::body::Body>> for Mount {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    /// Always ready, like the listeners.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<axum::body::Body>) -> Self::Future {
        // A server keeps its open connections after a graceful shutdown has begun, and even after its future was dropped.
        if self.stop.is_cancelled() {
            return Box::pin(std::future::ready(Ok(shutting_down(false).into_http())));
        }
        let service = RequestService::new(self.routes.clone(), self.connections.foreign_connection());
        let response = service.respond(request);
        let stop = self.stop.clone();
        let mut cut: CutFuture = Box::pin(async move {
            stop.cancelled_owned().await;
            // As on a listener, requests that run at the stop have time to end.
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        });
        Box::pin(async move {
            tokio::select! {
                biased;
                response = response => {
                    let Ok(response) = response;
                    Ok(response.map(|body| Body::new(MountedBody { body, cut: Some(cut) })))
                }
                () = &mut cut => Ok(shutting_down(true).into_http()),
            }
        })
    }
}

type CutFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of a response, which ends soon after the stop. On a listener, the host closes the connection instead.
struct MountedBody {
    body: ResponseBody,
    /// `None` after the cut.
    cut: Option<CutFuture>,
}

impl http_body::Body for MountedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        let this = &mut *self;
        let Some(cut) = &mut this.cut else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if cut.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.cut = None;
        let mut trailers = HeaderMap::new();
        let result = shutting_down(true).add_header(&mut trailers);
        Poll::Ready(Some(result.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() || self.body.is_end_stream()
    }
}
