//! Authorizes the operations of principals. The host calls the function of the program once per operation, in every protocol.

use std::fmt;

use snakepit_registry::{Principal, ToolError, guard::catch};

/// An operation that a principal requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// Calls a worker tool or a host tool. The tool may not exist. A call in a session also needs the permission for
    /// [`WriteSession`](Self::WriteSession), because the tool can use the session.
    #[non_exhaustive]
    Call {
        /// The name of the tool.
        tool: &'a str,
        /// The session of the call.
        session: Option<&'a str>,
    },
    /// Reads a session, its variables or its programs, watches its variables, or renews it. The session may not exist.
    #[non_exhaustive]
    ReadSession {
        /// The id of the session.
        session: &'a str,
    },
    /// Creates, changes or deletes a session, its variables or its programs, or calls a tool in it.
    #[non_exhaustive]
    WriteSession {
        /// The id of the session.
        session: &'a str,
    },
    /// Reads global programs.
    ReadPrograms,
    /// Stores or deletes a global program.
    WritePrograms,
    /// Lists the tools. Without this permission, `InitializeSession` still opens a session, but its response lists no tools.
    ListTools,
    /// Lists workers or sessions, reads statistics, or subscribes to events of calls and sessions.
    Observe,
    /// Replaces all workers.
    RestartWorkers,
}

/// The error with which a program denies an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Denied {
    problem: String,
}

impl Denied {
    /// Creates the error with a message for the caller, such as "alice may not call `train`".
    pub fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into() }
    }
}

/// The function of the program that authorizes operations.
pub(crate) struct Authorizer(Box<Authorize>);

type Authorize = dyn Fn(&Principal, &Operation<'_>) -> Result<(), Denied> + Send + Sync;

impl Authorizer {
    pub(crate) fn new<F>(authorize: F) -> Self
    where
        F: Fn(&Principal, &Operation<'_>) -> Result<(), Denied> + Send + Sync + 'static,
    {
        Self(Box::new(authorize))
    }

    /// Calls the function of the program. A panic denies the operation.
    ///
    /// # Errors
    /// [`ToolError::AccessDenied`]
    pub(crate) fn authorize(
        &self,
        principal: &Principal,
        operation: &Operation<'_>,
    ) -> Result<(), ToolError> {
        if principal.is_unset() {
            tracing::error!(?operation, "a call without a principal was denied; its listener must set one");
            let problem = "the caller is not authenticated; set `ToolCall::principal`".to_owned();
            return Err(ToolError::access_denied(problem));
        }
        let problem = match catch(|| (self.0)(principal, operation)) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Denied { problem })) => {
                tracing::debug!(%principal, ?operation, problem, "an operation was denied");
                problem
            }
            Err(_) => {
                tracing::error!(%principal, ?operation, "the function that authorizes operations panicked");
                "the authorization failed; see the log of the host".to_owned()
            }
        };
        Err(ToolError::access_denied(problem))
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorizer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_denies_the_operation() {
        let authorizer = Authorizer::new(|principal, _| {
            assert!(!principal.is_worker(), "on purpose");
            Ok(())
        });
        let ask = |principal| authorizer.authorize(&principal, &Operation::ListTools);
        ask(Principal::loopback()).unwrap();
        let unset = ask(Principal::unset()).unwrap_err();
        assert!(unset.to_string().contains("set `ToolCall::principal`"), "{unset}");
        let denied = ask(Principal::worker("w".into())).unwrap_err();
        assert_eq!(denied.to_string(), "access denied: the authorization failed; see the log of the host");
    }
}
