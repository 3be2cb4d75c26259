//! gRPC: the bridge service of the protocol, health and reflection, as one set of routes.
//!
//! `bridge` implements the generated trait and nothing else; each group of RPCs has a file of its own.

mod bridge;
mod calls;
mod deadline;
mod listing;
mod multiplex;
mod opening;
mod programs;
mod registration;
mod request;
mod sessions;
mod telemetry;
mod until_stop;
mod variables;

use std::sync::Arc;

use snakepit_proto::FILE_DESCRIPTOR_SET;
use snakepit_worker::process::Launch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::{ServingStatus, server::HealthReporter};

pub(crate) use bridge::Bridge;
pub(crate) use deadline::{ResponseFuture, in_time};
use opening::BridgeRoutes;
pub(crate) use opening::EncodedAnswer;

use crate::{host::Host, restart::ends_well};

/// The names by which health checks ask: for the server as a whole, and for the bridge service.
const NAMES: [&str; 2] = ["", "snakepit.bridge.BridgeService"];

/// All services, and the handle by which their health is reported. They start as not serving.
pub(crate) async fn routes(host: Arc<Host>) -> (Routes, HealthReporter) {
    let (health, health_service) = tonic_health::server::health_reporter();
    set_serving(&health, false).await;
    let mut routes = RoutesBuilder::default();
    routes.add_service(BridgeRoutes::new(Bridge::new(host)));
    routes.add_service(health_service);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // The descriptor sets are compiled in and a test serves them, so these cannot fail for a user.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => {
            routes.add_service(v1);
            routes.add_service(v1alpha);
        }
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "failed to set up reflection"),
    }
    (routes.routes(), health)
}

/// The bridge service as the worker of one launch sees it.
pub(crate) fn worker_routes(host: Arc<Host>, launch: Arc<Launch>) -> Routes {
    Routes::new(BridgeRoutes::new(Bridge::of_launch(host, launch)))
}

/// Reports the server as healthy while its pool serves and it is not hidden. What is true now is reported when this
/// returns; the future that it returns follows the changes, and at the stop ends the streams of those who watch.
pub(crate) async fn follow_readiness(
    mut health: HealthReporter,
    mut readiness: watch::Receiver<bool>,
    hidden: CancellationToken,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let serving = *readiness.borrow_and_update();
    set_serving(&health, serving).await;
    async move {
        let follow = |readiness| follow(&health, readiness, &hidden);
        while !ends_well("the report of readiness", follow(readiness.clone())).await {}
        set_serving(&health, false).await;
        stop.cancelled().await;
        for name in NAMES {
            health.clear_service_status(name).await;
        }
    }
}

/// Reports what is true now and follows the changes, until the host is hidden or its pool has ended.
async fn follow(health: &HealthReporter, mut readiness: watch::Receiver<bool>, hidden: &CancellationToken) {
    loop {
        let serving = *readiness.borrow_and_update();
        set_serving(health, serving).await;
        tokio::select! {
            () = hidden.cancelled() => return,
            // The pool is gone when it no longer says anything.
            changed = readiness.changed() => if changed.is_err() { return },
        }
    }
}

/// Reports health for the server as a whole and for the bridge service.
async fn set_serving(health: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in NAMES {
        health.set_service_status(name, status).await;
    }
}
