//! The layers of a call on its way to a worker, and the reasons for their order.

use std::sync::Arc;

use snakepit_registry::CallLayers;
use tower::ServiceBuilder;

use crate::{
    attempt::Attempts,
    driver::Driver,
    metrics::{Metrics, MetricsLayer},
    retry::{Retry, RetryLayer},
    trace::{Trace, TraceLayer},
};

/// All layers between a caller and the workers of a pool.
pub(crate) type Stack = Trace<Metrics<Retry<Attempts>>>;

/// Builds the stack, outermost layer first. `attempt_layers` are the layers of the program.
pub(crate) fn stack(driver: &Arc<Driver>, attempt_layers: CallLayers) -> Stack {
    let totals = || Arc::clone(&driver.totals);
    ServiceBuilder::new()
        // Outermost, so that log events of the other layers are inside the call's span.
        .layer(TraceLayer)
        // Outside of the layers that reject, end or retry calls, so that each call counts once, with the outcome that
        // its caller sees.
        .layer(MetricsLayer(totals()))
        // Outside of the assignment to a worker, so that every attempt is queued anew and may get another worker.
        .layer(RetryLayer { max_attempts: driver.config.max_attempts, totals: totals() })
        // Innermost. Rejects calls when the queue is full, leases a worker until the reply is complete, and ends calls
        // at their deadline, because only this layer knows whether a call is queued or running.
        // The layers of the program wrap it, so that they see each attempt.
        .service(Attempts::new(driver, attempt_layers))
}
