//! Explains responses of proxies between a client and a host. tonic alone would report compression flags.

use tonic::{Code, Status};

use crate::status::{DELIVERED, PROXY, error_status_with, root_cause};

/// The maximum length of a proxy name in an error, in characters.
const MAX_NAME_CHARS: usize = 64;

/// Replaces tonic's status of an HTTP response that is not gRPC with an explanation and the reason [`PROXY`]. Returns
/// other statuses unchanged.
#[must_use]
pub fn clarify(status: Status) -> Status {
    let Some(code) = http_status(status.message()) else { return status };
    let name =
        http::StatusCode::from_u16(code).ok().and_then(|code| code.canonical_reason()).unwrap_or_default();
    // Answers that stay the same for a repeated request have a code that no client repeats.
    let (meaning, answer, may_have_run) = match code {
        200..=299 => ("it cut the answer of the host, or is a web server", Code::Unavailable, true),
        300..=399 => ("it redirects, so this is the address of a web server", Code::Unimplemented, false),
        400 | 404 | 405 | 415 | 426 => {
            ("it passes no gRPC to a host at this address and path", Code::Unimplemented, false)
        }
        401 | 407 => ("it requires permission", Code::Unauthenticated, false),
        403 => ("it requires permission", Code::PermissionDenied, false),
        413 => (
            "the request is above its limit for bodies; lift the limit (nginx: `client_max_body_size 0`)",
            Code::InvalidArgument,
            false,
        ),
        429 => ("too many requests", Code::Unavailable, false),
        502 => ("it cannot reach the host behind it, or was cut off by it", Code::Unavailable, true),
        503 => ("it has no host behind it", Code::Unavailable, true),
        504 => (
            "the host behind it did not answer within the proxy's timeout; raise that timeout",
            Code::Unavailable,
            true,
        ),
        _ => ("it is not a host", Code::Unavailable, true),
    };
    // A server that mounts the host can send these codes too, for example from an authentication layer.
    let peer = match code {
        400..=406 | 408..=499 => "the server or a proxy",
        _ => "the proxy",
    };
    let message = format!("{peer} answered {}: {meaning}", format!("{code} {name}").trim_end());
    error_status_with(answer, PROXY, message, [(DELIVERED, may_have_run.to_string())])
}

/// Explains that a proxy cut a stream. `proxy` is the name from [`proxy_name`]. Without a proxy, returns the status as
/// [`clarify`] does.
pub(crate) fn explain_cut(status: Status, proxy: Option<&str>) -> Status {
    // A status that the host sent has no cause.
    let (Some(proxy), Some(cause)) = (proxy, std::error::Error::source(&status)) else {
        return clarify(status);
    };
    let cause = root_cause(cause);
    let message = format!(
        "the proxy ({proxy}) cut the stream that calls share: {cause}; lift its limits on bodies and its timeouts (nginx: \
         `client_max_body_size 0`, `grpc_read_timeout`, `grpc_send_timeout`)"
    );
    error_status_with(Code::Unavailable, PROXY, message, [(DELIVERED, true.to_string())])
}

/// The name of a proxy, from the header `server` of a response. Hosts do not send this header.
pub(crate) fn proxy_name(headers: &tonic::metadata::MetadataMap) -> Option<String> {
    let server = headers.get("server")?.to_str().ok()?;
    Some(server.chars().take(MAX_NAME_CHARS).collect())
}

/// The HTTP status of a response that is not gRPC. Only the text of tonic's status contains it. Tests check the form of that
/// text.
fn http_status(message: &str) -> Option<u16> {
    let code = |text: &str| text.get(..3)?.parse().ok();
    if let Some((_, status)) = message.split_once("while receiving response with status: ") {
        return code(status);
    }
    if let Some((_, status)) = message.split_once("grpc-status header missing, mapped from HTTP status code ")
    {
        return code(status);
    }
    message.starts_with("protocol error: missing grpc-status trailer").then_some(200)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::details_of;

    #[test]
    fn responses_of_proxies_are_explained() {
        for (text, needle, may_have_run) in [
            (
                "protocol error: received message with invalid compression flag: 60 (valid flags are 0 and 1) while receiving \
                 response with status: 502 Bad Gateway",
                "the proxy answered 502 Bad Gateway",
                "true",
            ),
            (
                "grpc-status header missing, mapped from HTTP status code 504",
                "the proxy answered 504 Gateway Timeout",
                "true",
            ),
            ("grpc-status header missing, mapped from HTTP status code 404", "no gRPC", "false"),
            (
                "grpc-status header missing, mapped from HTTP status code 401",
                "the server or a proxy answered 401 Unauthorized: it requires permission",
                "false",
            ),
            ("grpc-status header missing, mapped from HTTP status code 413", "client_max_body_size", "false"),
            (
                "grpc-status header missing, mapped from HTTP status code 599",
                "the proxy answered 599:",
                "true",
            ),
            ("protocol error: missing grpc-status trailer, stream was terminated", "cut", "true"),
        ] {
            let status = clarify(Status::internal(text));
            assert!(status.message().contains(needle), "{status:?}");
            let details = details_of(&status);
            assert_eq!(details.reason.as_deref(), Some(PROXY));
            assert_eq!(details.metadata[DELIVERED], may_have_run, "{text}");
        }
        let unchanged = clarify(Status::internal("tool `add` failed"));
        assert_eq!((unchanged.code(), unchanged.message()), (Code::Internal, "tool `add` failed"));
    }

    #[test]
    fn answers_that_stay_the_same_have_a_permanent_code() {
        for (http, code) in [
            (302, Code::Unimplemented),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::Unimplemented),
            (407, Code::Unauthenticated),
            (413, Code::InvalidArgument),
            (429, Code::Unavailable),
            (502, Code::Unavailable),
            (503, Code::Unavailable),
        ] {
            let text = format!("grpc-status header missing, mapped from HTTP status code {http}");
            assert_eq!(clarify(Status::unknown(text)).code(), code, "{http}");
        }
    }

    #[test]
    fn the_status_of_a_cut_stream_names_the_proxy() {
        let broken = || Status::from_error(Box::new(std::io::Error::other("reset")));
        let status = explain_cut(broken(), Some("nginx/1.22.1"));
        assert!(
            status.message().starts_with("the proxy (nginx/1.22.1) cut the stream that calls share: reset"),
            "{status:?}"
        );
        assert_eq!(details_of(&status).metadata[DELIVERED], "true");
        assert_eq!(explain_cut(broken(), None).message(), broken().message());
        let answered = Status::internal("grpc-status header missing, mapped from HTTP status code 502");
        assert!(explain_cut(answered, Some("nginx")).message().starts_with("the proxy answered 502"));
        let sent = Status::unavailable("the host shuts down");
        assert_eq!(explain_cut(sent, Some("nginx")).message(), "the host shuts down");
    }
}
