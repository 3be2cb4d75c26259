//! The layers a call passes on its way to a worker, and why each is where it is.

use std::sync::Arc;

use tower::ServiceBuilder;

use crate::{
    dispatch::Dispatch,
    driver::Shared,
    metrics::{Metrics, MetricsLayer},
    retry::{Retry, RetryLayer},
    trace::{Trace, TraceLayer},
};

/// Everything between a caller and the workers of a pool.
pub(crate) type Stack = Trace<Metrics<Retry<Dispatch>>>;

/// Puts the stack together, outermost layer first.
pub(crate) fn stack(shared: &Arc<Shared>) -> Stack {
    let totals = || Arc::clone(&shared.totals);
    ServiceBuilder::new()
        // Outermost, so that whatever the other layers log about a call lies inside its span.
        .layer(TraceLayer)
        // Outside all that refuses, ends or repeats a call, so that each call counts once and as its caller sees it.
        .layer(MetricsLayer(totals()))
        // Outside the choice of a worker, so that every attempt queues anew and may get another one.
        .layer(RetryLayer { max_attempts: shared.config.max_attempts, totals: totals() })
        // Innermost, and the one that ends calls at their deadline: it alone knows how far each has come. Refuses when the
        // queue is full, picks the worker, and holds it until the answer is complete.
        .service(Dispatch::new(Arc::clone(shared)))
}
