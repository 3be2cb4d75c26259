//! The gRPC services as one set of routes: the bridge service of the protocol, health and reflection.
//!
//! `service` implements the generated trait. Each group of RPCs has its own file.

mod answer;
mod authorize;
mod bridge;
mod calls;
mod initialize_session;
mod inline_buffers;
mod listing;
mod multiplex;
mod open_ended;
mod programs;
mod registration;
mod request;
mod restart;
mod service;
mod sessions;
pub(crate) mod telemetry;
mod variables;

use std::sync::Arc;

use snakepit_pool::Readiness;
use snakepit_proto::FILE_DESCRIPTOR_SET;
use snakepit_worker::process::Launch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::{ServingStatus, server::HealthReporter};

use bridge::Bridge;
use initialize_session::BridgeRoutes;

use crate::{host::Host, listen::Services, panics::completes_without_panic};

/// The service names in health checks: the server as a whole, and the bridge service.
const HEALTH_NAMES: [&str; 2] = ["", SERVICES[0]];

/// The names of all services. The first is the bridge service.
pub(crate) const SERVICES: [&str; 4] = [
    "snakepit.bridge.BridgeService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// All services, and the handle that reports their health. They start as not serving.
pub(crate) async fn services(host: Arc<Host>) -> (Services, HealthReporter) {
    let (health, health_service) = tonic_health::server::health_reporter();
    set_serving(&health, false).await;
    let mut routes = RoutesBuilder::default();
    routes.add_service(health_service);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // The descriptor sets are compiled in, and a test builds them, so this cannot fail for a user.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => {
            routes.add_service(v1);
            routes.add_service(v1alpha);
        }
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "failed to set up reflection"),
    }
    (Services::new(BridgeRoutes::new(Bridge::new(host)), routes.routes()), health)
}

/// The bridge service for the worker of one launch.
pub(crate) fn worker_services(host: Arc<Host>, launch: Arc<Launch>) -> Services {
    Services::new(BridgeRoutes::new(Bridge::for_launch(host, launch)), Routes::default())
}

/// Reports the server as healthy while its pool is ready and the host is not hidden. Reports the current state
/// before it returns. The returned future reports changes, and ends the health watches of clients at the stop.
pub(crate) async fn follow_readiness(
    mut health: HealthReporter,
    mut readiness: watch::Receiver<Readiness>,
    hidden: CancellationToken,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let is_serving = readiness.borrow_and_update().serves_calls();
    set_serving(&health, is_serving).await;
    async move {
        let follow_once = |readiness| report_readiness(&health, readiness, &hidden);
        while !completes_without_panic("the report of readiness", follow_once(readiness.clone())).await {}
        set_serving(&health, false).await;
        stop.cancelled().await;
        for name in HEALTH_NAMES {
            health.clear_service_status(name).await;
        }
    }
}

/// Reports the current readiness and its changes until the host is hidden or its pool has ended.
async fn report_readiness(
    health: &HealthReporter,
    mut readiness: watch::Receiver<Readiness>,
    hidden: &CancellationToken,
) {
    let mut reported = None;
    loop {
        let is_serving = readiness.borrow_and_update().serves_calls();
        // Clients that watch the health receive every report, so the host reports only changes.
        if reported.replace(is_serving) != Some(is_serving) {
            set_serving(health, is_serving).await;
        }
        tokio::select! {
            () = hidden.cancelled() => return,
            // An error means that the pool was dropped.
            changed = readiness.changed() => if changed.is_err() { return },
        }
    }
}

/// Reports health for the server as a whole and for the bridge service.
async fn set_serving(health: &HealthReporter, is_serving: bool) {
    let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in HEALTH_NAMES {
        health.set_service_status(name, status).await;
    }
}
