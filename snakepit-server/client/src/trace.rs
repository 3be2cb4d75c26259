//! Attaches the current trace context to calls without one.

use snakepit_registry::ToolCall;

/// With the feature `opentelemetry`, gives a call without a trace context the current OpenTelemetry context.
#[doc(hidden)]
#[inline]
pub fn attach_current_trace(call: &mut ToolCall) {
    #[cfg(feature = "opentelemetry")]
    if call.trace.is_none() {
        call.trace = current::trace_context();
    }
    #[cfg(not(feature = "opentelemetry"))]
    let _ = call;
}

#[cfg(feature = "opentelemetry")]
mod current {
    use opentelemetry::{
        Context,
        trace::{TraceContextExt, TraceFlags},
    };
    use snakepit_registry::TraceContext;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    /// Returns the context of the current `tracing` span if `tracing-opentelemetry` records it, or else the context
    /// that the OpenTelemetry API has made current.
    pub(super) fn trace_context() -> Option<TraceContext> {
        from_context(&tracing::Span::current().context()).or_else(|| Context::map_current(from_context))
    }

    /// Writes the context in the W3C format.
    fn from_context(context: &Context) -> Option<TraceContext> {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| TraceContext {
            traceparent: format!(
                "00-{}-{}-{:02x}",
                span.trace_id(),
                span.span_id(),
                span.trace_flags() & TraceFlags::SAMPLED
            ),
            tracestate: Some(span.trace_state().header()).filter(|state| !state.is_empty()),
        })
    }
}
