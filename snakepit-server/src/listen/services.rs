//! The gRPC services of a listener. Requests of the bridge service skip the router, which costs as much as a small request.

use std::{convert::Infallible, fmt, pin::Pin, sync::Arc};

use http::{Request, Response};
use tonic::{body::Body, server::NamedService, service::Routes};
use tower::Service;

/// The response to a request. Failures are statuses.
pub(crate) type ServiceFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A service that is always ready, and that connections share.
pub(crate) trait SharedService: Send + Sync + 'static {
    fn respond(&self, request: Request<Body>) -> ServiceFuture;
}

/// A service that handles most requests, and the routes of the others. Clones share them.
#[derive(Clone)]
pub(crate) struct Services(Arc<Inner>);

struct Inner {
    /// The start of the paths of the main service.
    prefix: String,
    main: Box<dyn SharedService>,
    others: Routes,
}

impl Services {
    pub(crate) fn new<S: SharedService + NamedService>(main: S, others: Routes) -> Self {
        Self(Arc::new(Inner {
            prefix: format!("/{}/", S::NAME),
            main: Box::new(main),
            others: others.prepare(),
        }))
    }

    /// Calls the service of a request.
    pub(super) async fn respond(&self, request: Request<Body>) -> Response<Body> {
        let Ok(response) = if request.uri().path().starts_with(&self.0.prefix) {
            self.0.main.respond(request).await
        } else {
            self.0.others.clone().call(request).await
        };
        response
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").field("main", &self.0.prefix).finish_non_exhaustive()
    }
}
