//! The gRPC services as routes of the program's own server, which accepts the connections.
//!
//! The host does not see these connections. If the server provides the address of the peer, the host groups the requests by it,
//! so that the limits of a client are the same as on a listener. The host cannot close a connection whose client does not read,
//! so it drops the rest of the response instead.

mod request_body;
mod requests;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{body::Body, service::Routes};
use tower::Service;

pub(super) use self::requests::RequestLimits;
use self::{
    request_body::CutBody,
    requests::{MountedRequest, MountedRequests, MountedResponse},
};
use super::{
    ListenLimits, accept::CLOSE_TIMEOUT, connection::MAX_STREAMS, connections::Connections,
    framing::PolledFrame, request_service::RequestService, services::Services,
};
use crate::status::shutting_down;

/// The maximum numbers of open requests of mounted clients. One client may have as many as a connection to a listener.
const LIMITS: RequestLimits = RequestLimits { total: 16 * 1024, per_client: MAX_STREAMS as usize };

/// The services for the program's own server, with the limits and deadlines of the listeners.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    services: Services,
    requests: Arc<MountedRequests>,
    stop: CancellationToken,
}

impl Mount {
    /// Creates the services, and spawns a task that drops responses that clients do not read, until the stop.
    pub(crate) fn new(
        tasks: &TaskTracker,
        services: Services,
        limits: &ListenLimits,
        stop: CancellationToken,
    ) -> Self {
        let connections = limits.connections(0, &limits.unread_mounted);
        Self::with_limits(tasks, services, connections, LIMITS, stop)
    }

    /// Creates the services with these limits of open requests.
    pub(super) fn with_limits(
        tasks: &TaskTracker,
        services: Services,
        connections: Arc<Connections>,
        limits: RequestLimits,
        stop: CancellationToken,
    ) -> Self {
        let requests = MountedRequests::new(connections, limits);
        tasks.spawn(Arc::clone(&requests).drop_stalled(stop.clone()));
        Self { services, requests, stop }
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
        // A server keeps its open connections after a graceful shutdown has begun, and even after its future is dropped.
        if self.stop.is_cancelled() {
            return Box::pin(std::future::ready(Ok(shutting_down(false).into_http())));
        }
        let (mounted, connection) = match self.requests.begin(request.extensions()) {
            Ok(begun) => begun,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let service = RequestService::new(self.services.clone(), connection);
        let response_ended = CancellationToken::new();
        let response = service.respond(request.map(|body| CutBody::new(body, response_ended.clone())));
        let response_ended = response_ended.drop_guard();
        let stop = self.stop.clone();
        let mut cut: CutFuture = Box::pin(async move {
            stop.cancelled_owned().await;
            // As on a listener, requests in progress at the stop get time to end.
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        });
        Box::pin(async move {
            tokio::select! {
                biased;
                response = response => {
                    let Ok(response) = response;
                    Ok(response.map(|body| {
                        let response = mounted.respond(body);
                        Body::new(MountedBody { response, cut: Some((cut, response_ended)), _request: mounted })
                    }))
                }
                () = &mut cut => Ok(shutting_down(true).into_http()),
            }
        })
    }
}

type CutFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of a response, which ends soon after the stop. On a listener, the host closes the connection instead.
struct MountedBody {
    response: Arc<MountedResponse>,
    /// Ends the response, and its request when dropped. `None` after the cut.
    cut: Option<(CutFuture, DropGuard)>,
    _request: MountedRequest,
}

impl http_body::Body for MountedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        let this = &mut *self;
        let Some((cut, _)) = &mut this.cut else { return Poll::Ready(None) };
        let mut sending = this.response.lock();
        if let Poll::Ready(frame) = Pin::new(&mut sending.body).poll_frame(cx) {
            sending.last_taken = Instant::now();
            return Poll::Ready(frame);
        }
        drop(sending);
        if cut.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.cut = None;
        let mut trailers = HeaderMap::new();
        let result = shutting_down(true).add_header(&mut trailers);
        Poll::Ready(Some(result.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() || self.response.lock().body.is_end_stream()
    }
}
