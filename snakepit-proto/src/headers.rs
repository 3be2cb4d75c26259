//! Names of gRPC metadata entries (HTTP/2 headers) that hosts, workers and clients exchange.

use std::time::Duration;

/// Identifies a call to the worker that runs it; what [`CancelToolRequest`](crate::pb::CancelToolRequest) names. When a call
/// is retried, all its attempts bear the same number; each begins only after the one before has ended.
pub const CALL_ID: &str = "snakepit-call-id";
/// In answers of the host: the worker that ran the call. In requests of a worker to its host: the worker, so that the host knows
/// which call waits for this one.
pub const WORKER_ID: &str = "snakepit-worker-id";
/// In requests to the host: `true` when the caller may safely run the same call twice.
pub const IDEMPOTENT: &str = "snakepit-idempotent";
/// W3C trace context, passed from client to host to worker to host tool.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace context, the vendor-specific part.
pub const TRACESTATE: &str = "tracestate";

/// The longest time that [`GRPC_TIMEOUT`] can say: eight digits of hours. Clients that would send a longer one must send
/// this instead; tonic panics.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(99_999_999 * 60 * 60);

/// The time that a caller gives a call, by the gRPC specification over HTTP/2; [`parse_timeout`] reads it.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Reads the value of [`GRPC_TIMEOUT`]: up to eight digits and a unit of `H`, `M`, `S`, `m`, `u` or `n`. `None` when it is
/// malformed.
#[must_use]
pub fn parse_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_specified() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout("99999999H"), Some(MAX_TIMEOUT));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        for odd in ["", "S", "5", "5s", "-5S", "123456789S", "5é"] {
            assert_eq!(parse_timeout(odd), None, "{odd:?}");
        }
    }
}
