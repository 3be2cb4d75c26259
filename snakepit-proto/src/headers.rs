//! Names of the gRPC metadata (HTTP/2 headers) between hosts, workers and clients.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Identifies a call to its worker, including in a [`CancelToolRequest`](crate::pb::CancelToolRequest). All attempts of a
/// retried call have the same id, and each begins after the previous one has ended.
///
/// In requests of a worker to its host, the call that makes the request, if the worker runs several. A multiplexed call has its
/// id on the stream, combined with [`MULTIPLEXED`](crate::launch::progress::MULTIPLEXED).
pub const CALL_ID: &str = "snakepit-call-id";
/// In responses of the host, the id of the worker that ran the call. In requests of a worker to its host, the id of that
/// worker, by which the host finds the parent call.
pub const WORKER_ID: &str = "snakepit-worker-id";
/// `true` in requests of a worker to its host if the [call](CALL_ID) that makes the request blocks the worker until the answer
/// arrives, so that the worker does not begin another call.
pub const BLOCKS_WORKER: &str = "snakepit-blocks-worker";
/// `true` in requests to the host if the call is idempotent.
pub const IDEMPOTENT: &str = "snakepit-idempotent";
/// `true` in requests to the host if the call must not run twice, even if its tool is declared idempotent.
pub const AT_MOST_ONCE: &str = "snakepit-at-most-once";
/// `true` in requests whose sender accepts [nested values](crate::value::inline_nested) in the response.
pub const TAKES_BUFFERS: &str = "snakepit-takes-buffers";
/// In requests of a host to its worker, the reports that the caller of the call receives: `progress`, `logs`, or both with a comma.
pub const REPORTS: &str = "snakepit-reports";
/// W3C trace context, passed from client to host to worker to host tool.
pub const TRACEPARENT: &str = "traceparent";
/// The vendor-specific part of the W3C trace context.
pub const TRACESTATE: &str = "tracestate";

/// Headers that a client, gRPC or HTTP sets. HTTP/2 forbids those from `connection` on.
const RESERVED: [&str; 11] = [
    "te",
    "host",
    "user-agent",
    TRACEPARENT,
    TRACESTATE,
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "trailer",
];

/// Whether programs must not set a header, whose name is in lower case, because the client sets it or its values are binary.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    ["grpc-", "snakepit-", "content-"].iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with("-bin")
        || RESERVED.contains(&name)
}

/// Whether a header is `true`, such as [`IDEMPOTENT`]. Any other value counts as no header.
#[must_use]
pub fn has_flag(headers: &MetadataMap, name: &str) -> bool {
    headers.get(name).is_some_and(|flag| flag == "true")
}

/// The maximum of the gRPC header `grpc-timeout`, which has eight digits of hours: more than 11,000 years. Clients must clamp longer
/// timeouts, because tonic panics on them.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(99_999_999 * 60 * 60);

/// The timeout of a call, as specified by gRPC over HTTP/2. [`parse_timeout`] parses it.
pub const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Parses the value of [`GRPC_TIMEOUT`]: up to eight digits and a unit `H`, `M`, `S`, `m`, `u` or `n`. Returns
/// `None` for a malformed value.
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
    fn only_true_sets_a_flag() {
        let mut headers = MetadataMap::new();
        assert!(!has_flag(&headers, IDEMPOTENT));
        for (value, is_set) in [("true", true), ("false", false), ("", false)] {
            headers.insert(IDEMPOTENT, value.parse().unwrap());
            assert_eq!(has_flag(&headers, IDEMPOTENT), is_set, "{value}");
        }
    }

    #[test]
    fn timeouts_parse_as_specified() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout("99999999H"), Some(MAX_TIMEOUT));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        for malformed in ["", "S", "5", "5s", "-5S", "123456789S", "5é"] {
            assert_eq!(parse_timeout(malformed), None, "{malformed:?}");
        }
    }
}
