//! The error type of calls and session operations.

use std::{error::Error as StdError, fmt, io, sync::Arc, time::Duration};

use snakepit_registry::ToolError;
use snakepit_session::{PayloadError, SessionError};

mod classification;

/// The reason why a call or a session operation failed, on a host in this process or on a remote one.
///
/// `{:?}` prints the message and its sources, because `main` prints a returned error that way.
///
/// To branch on an error, call a method such as [`is_timeout`](Self::is_timeout), or match on its [`kind`](Self::kind):
///
/// ```
/// use snakepit_client::Error;
///
/// /// The status line of a web service.
/// fn status(error: &Error) -> u16 {
///     match error.error_type() {
///         Some("shop.OutOfStock") => 409,
///         Some("ValueError") => 400,
///         _ => error.http_status(),
///     }
/// }
///
/// # use snakepit_client::{ToolError, ToolFailure};
/// # let raised = |error_type: &str| {
/// #     let failure = ToolFailure::new(error_type, "");
/// #     Error::Tool(ToolError::Failed(Box::new(failure)))
/// # };
/// # assert_eq!([status(&raised("ValueError")), status(&raised("KeyError"))], [400, 500]);
/// let overloaded = Error::Tool(ToolError::overloaded(9, 9));
/// assert_eq!(status(&overloaded), 429);
/// assert!(overloaded.is_overloaded() && overloaded.is_retryable());
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client could not connect: the address is invalid, nothing listens there, or the peer is not a Snakepit host.
    #[error("cannot reach a server at {address}: {problem}{}", advice(.source.as_deref()))]
    #[non_exhaustive]
    Connect {
        /// The requested address.
        address: String,
        /// A short description of the cause.
        problem: String,
        /// The error of the connection, if one was attempted.
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// The connection to the remote host failed before the host answered. The host may have executed the request.
    #[error("the host cannot be reached: {problem}")]
    #[non_exhaustive]
    Unreachable {
        /// A short description of the cause.
        problem: String,
        /// The error of the connection, if one was attempted.
        source: Option<Box<dyn StdError + Send + Sync>>,
        /// Whether the request only reads.
        is_read: bool,
    },
    /// The remote host did not answer in time. It may have executed the request.
    #[error("the host did not answer {rpc} within {within:?}")]
    #[non_exhaustive]
    TimedOut {
        /// The RPC.
        rpc: &'static str,
        /// The time limit.
        within: Duration,
        /// Whether the request only reads.
        is_read: bool,
    },
    /// An option of the client is invalid.
    #[error("client option `{option}` {problem}")]
    #[non_exhaustive]
    InvalidOption {
        /// The method of [`ClientBuilder`](crate::ClientBuilder).
        option: &'static str,
        /// The problem, as the end of a sentence.
        problem: String,
    },
    /// The client was created outside a tokio runtime.
    #[error("a client needs a tokio runtime; connect inside `Runtime::block_on` or an async main")]
    NoRuntime,
    /// The remote host rejected a session operation for a reason that [`SessionError`] does not cover.
    #[error("the host rejected {rpc}: {problem}")]
    #[non_exhaustive]
    Rejected {
        /// The RPC.
        rpc: &'static str,
        /// The host's message.
        problem: String,
    },
    /// The call failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The session operation failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A value does not serialize, or the value of a variable does not fit the requested type.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The tool ran, but its result, or a chunk of it, does not fit the requested type.
    #[error("result of tool `{tool}` cannot be read: {source}")]
    #[non_exhaustive]
    WrongResult {
        /// The called tool.
        tool: Arc<str>,
        /// The mismatch.
        source: PayloadError,
    },
    /// The arguments of a call are not a struct or a map with string keys.
    #[error(
        "arguments of tool `{tool}` are not an object; pass a struct or a map from parameter names to values"
    )]
    #[non_exhaustive]
    NotAnObject {
        /// The called tool.
        tool: String,
    },
    /// A host in this process did not start, or a [restart](crate::Client::restart_workers) of the workers failed.
    /// `snakepit-server` converts its `StartError` into it, so that `?` works with one error type in a program that starts a host
    /// and calls it.
    #[error(transparent)]
    Start(Box<dyn StdError + Send + Sync>),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with_sources(self, f)
    }
}

/// Writes the message of an error, followed by its sources, one per line. Omits the sources if the message contains the root
/// cause.
///
/// # Errors
/// Those of the formatter.
#[doc(hidden)]
pub fn write_with_sources(error: &dyn StdError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let message = error.to_string();
    f.write_str(&message)?;
    let sources = || std::iter::successors(error.source(), |&cause| cause.source());
    if sources().last().is_some_and(|root| !message.contains(&root.to_string())) {
        f.write_str("\n\nCaused by:")?;
        for cause in sources() {
            write!(f, "\n    {cause}")?;
        }
    }
    Ok(())
}

/// The end of the message from a client that cannot connect.
fn advice(source: Option<&(dyn StdError + Send + Sync + 'static)>) -> &'static str {
    let causes = std::iter::successors(source.map(|source| source as &(dyn StdError + 'static)), |&cause| {
        cause.source()
    });
    let mut kinds = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    if kinds.any(|kind| matches!(kind, io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)) {
        "; start one with `snakepit serve`"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the configuration is unreadable")]
    struct Unreadable(#[source] io::Error);

    #[test]
    fn debug_prints_the_message_and_the_sources() {
        let error = Error::TimedOut { rpc: "GetVariable", within: Duration::from_secs(30), is_read: true };
        assert_eq!(format!("{error:?}"), "the host did not answer GetVariable within 30s");

        let cause = Unreadable(io::Error::other("permission denied"));
        let shown = format!("{:?}", Error::Start(Box::new(cause)));
        assert_eq!(shown, "the configuration is unreadable\n\nCaused by:\n    permission denied");
    }

    #[test]
    fn debug_does_not_repeat_a_cause_that_the_message_contains() {
        let cause = Unreadable(io::Error::other("connection refused"));
        let (address, problem) = ("h:1".to_owned(), "connection refused".to_owned());
        let error = Error::Connect { address, problem, source: Some(Box::new(cause)) };
        assert_eq!(format!("{error:?}"), error.to_string());
        assert_eq!(error.source().unwrap().source().unwrap().to_string(), "connection refused");
    }
}
