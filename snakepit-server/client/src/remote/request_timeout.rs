//! [`RequestTimeout`]: the time limit for requests other than calls, and the errors of these requests.

use std::{error::Error as _, time::Duration};

use snakepit_proto::headers::MAX_TIMEOUT;
use snakepit_registry::ToolError;
use tonic::{Code, Request, Response, Status};

use super::{cause_of, deadline::GRACE};
use crate::{Error, status::to_tool_error};

/// The time limit for requests other than calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestTimeout(pub(crate) Duration);

impl Default for RequestTimeout {
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

impl RequestTimeout {
    /// Creates a request that the host also abandons after this time.
    pub(super) fn apply<T>(self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.0.min(MAX_TIMEOUT));
        request
    }

    /// Waits for the response to a request. Uses the client's clock, because a host that no longer responds enforces no deadline.
    pub(super) async fn within<T>(
        self,
        rpc: &'static str,
        response: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.0.saturating_add(GRACE), response).await {
            Ok(response) => response.map(Response::into_inner).map_err(|status| self.error(rpc, &status)),
            Err(_) => Err(Error::TimedOut { rpc, within: self.0, is_read: false }),
        }
    }

    /// Converts the status of a request that changes state. For other requests, call [`Error::into_read_error`] on the result.
    pub(super) fn error(self, rpc: &'static str, status: &Status) -> Error {
        match to_tool_error(rpc, status) {
            ToolError::Session(error) => Error::Session(error),
            ToolError::DeadlineExceeded { .. } => Error::TimedOut { rpc, within: self.0, is_read: false },
            error @ (ToolError::ShuttingDown { .. } | ToolError::AccessDenied { .. }) => Error::Tool(error),
            _ if status.source().is_some() => {
                let source = Some(status.clone().into());
                Error::Unreachable { problem: cause_of(status), source, is_read: false }
            }
            ToolError::ConnectionLost { problem, .. } => {
                Error::Unreachable { problem, source: None, is_read: false }
            }
            error @ ToolError::Unavailable { .. } => Error::Tool(error),
            error if error.is_overloaded() => Error::Tool(error),
            error if !is_rejection(status.code()) => Error::Tool(error),
            _ => Error::Rejected { rpc, problem: status.message().to_owned() },
        }
    }
}

/// Returns whether a host responds with this code only if it did not execute the request.
const fn is_rejection(code: Code) -> bool {
    matches!(
        code,
        Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::NotFound
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use snakepit_proto::status::{DELIVERED, INTERNAL, PROXY, error_status, error_status_with};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_a_silent_host_only_until_the_request_timeout() {
        for (timeout, shown) in
            [(RequestTimeout::default(), "30s"), (RequestTimeout(Duration::from_millis(250)), "250ms")]
        {
            let silent = std::future::pending::<Result<Response<()>, Status>>();
            let start = tokio::time::Instant::now();
            let late = timeout.within("GetVariable", silent).await.unwrap_err();
            assert_eq!(late.to_string(), format!("the host did not answer GetVariable within {shown}"));
            assert_eq!(start.elapsed(), timeout.0 + GRACE);
        }
    }

    #[test]
    fn only_rejections_prove_that_a_request_was_not_executed() {
        let proxy_error = |may_have_run: bool| {
            let metadata = [(DELIVERED, may_have_run.to_string())];
            error_status_with(Code::Unavailable, PROXY, "the proxy answered 502", metadata)
        };
        for (status, may_have_run) in [
            (proxy_error(true), true),
            (proxy_error(false), false),
            (error_status(Code::Internal, INTERNAL, "a bug"), true),
            (Status::unknown("?"), true),
            (Status::invalid_argument("no"), false),
            (Status::unimplemented("no"), false),
        ] {
            let error = RequestTimeout(Duration::from_secs(1)).error("SetVariable", &status);
            assert_eq!(error.may_have_run(), may_have_run, "{error:?}");
        }
    }
}
