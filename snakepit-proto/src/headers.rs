//! Names of gRPC metadata entries (HTTP/2 headers) that hosts, workers and clients exchange.

/// Identifies one attempt of a call on one worker; what [`CancelToolRequest`](crate::pb::CancelToolRequest) names.
pub const CALL_ID: &str = "snakepit-call-id";
/// In answers of the host: the worker that ran the call.
pub const WORKER_ID: &str = "snakepit-worker-id";
/// In requests to the host: `true` when the caller may safely run the same call twice.
pub const IDEMPOTENT: &str = "snakepit-idempotent";
/// W3C trace context, passed from client to host to worker to host tool.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace context, the vendor-specific part.
pub const TRACESTATE: &str = "tracestate";
